"""Spectral tensor trains (Obukhov et al., AISTATS 2021): weights of known singular values. See PAPER.md."""
