"""Tensor trains: cores and their algebra, rounding, maximal volumes, and index arithmetic."""
