"""C-PIC (Usvyatsov et al., ICCV 2021): low-rank embeddings by cross-approximation. See PAPER.md."""
