"""What the jobs `denoise` and `complete` are made of: windows of a volume, restored and blended box by box.

    boxes       the voxels and the gaps of a box, and the boxes of a volume
    blending    windows of a box: restored by threads, blended into one
    filling     gaps of a box, filled from the pyramid or smoothly
    denoising   a box without what is no stronger than the noise; how strong that is
    observed    which voxels were observed: by the scan's gaps, and by a mask
    hiding      which of them are hidden, to tell how well they are found
    overview    the means of cells of a whole frame, without gaps
    completing  a box without gaps, over the overview

Each window is restored by itself, from what it holds: the values of a box do not depend on which boxes were
made before.
"""
