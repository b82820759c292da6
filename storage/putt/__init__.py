"""Volumes as quantised tensor trains of small integers: made, coded, and read at any box and level.

    digits           a block's voxels by the bits of their places, coarse bits first
    factorising      a block's train of integers, for a step
    integer_train    the train, and its values: exact, whatever the machine
    coder            the train as bytes
    tables           its probabilities: fixed, with the version of the format
    varints          numbers of any size as bytes
    block            a block as bytes: constant, a train, or as it is
    trimming         a chunk without its trailing planes of fill
    zarr_codec       chunks as blocks, for any Zarr reader

It needs numpy, an entropy coder and Blosc (the last module zarr too), no torch: whoever opens the store can
read what was compressed.
"""
