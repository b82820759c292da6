"""Blocks of voxels as coefficients of a wavelet transform, coded by a range coder with contexts.

    lifting    the transform, with as many levels along each axis as are worth it
    bands      a level's bands, side by side
    expected   how large a coefficient is expected to be, from what is known already
    weights    what each known magnitude counts for there: fixed, with the version of the format
    tables     probabilities by expected magnitude, likewise
    coder      coefficients as bytes
    block      a block as bytes: a constant, coefficients, or as it is

It needs numpy, an entropy coder and Blosc.
"""
