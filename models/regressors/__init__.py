"""Regressors: recipes that make a model of a cohort. A new one is a file here and a line in `REGRESSORS`."""
