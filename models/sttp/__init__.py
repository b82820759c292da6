"""Spectral tensor trains (Obukhov et al., ICML 2021): weights as frames and singular values. See PAPER.md."""
