"""Volumes as quantised tensor trains of small integers: made, coded, and read at any box and level.

    digits           a block's voxels by the bits of their places, coarse bits first
    factorising      a block's train of integers, for a step
    integer_train    the train, and its values: exact, whatever the machine
    coder            the train as bytes
    block            a block as bytes: constant, a train, or raw

It needs numpy and an entropy coder, no torch: whoever opens the store can read what was compressed.
"""
