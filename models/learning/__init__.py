"""What all regressors share: cohorts, tasks, linear heads, folds by patient, metrics, intervals.

Knows no method: neither trains nor networks. Scans are `CubeSource`s that `preparation` has brought to one
grid and one scale of intensities.
"""
