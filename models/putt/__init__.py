"""PuTT (Loeschcke et al., ICML 2024): volumes as quantised tensor trains, coarse to fine. See PAPER.md."""
