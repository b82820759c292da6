"""Tensor rings of trained kernels (RSDTR, arXiv 2405.10802): fewer numbers, with a guaranteed error."""
