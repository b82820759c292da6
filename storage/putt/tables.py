"""Probabilities of magnitudes by what is expected: fixed, so that files stay readable. Version 1.

Class i expects a magnitude of 2^((i + 0.5) / 4 - 7). A magnitude is 0 with probability p_0, and otherwise 1 +
k with (1 - rho) rho^k; from `ESCAPE` on all are one symbol. Both were fitted to pooled counts of trains of
scans.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CLASSES = 40
FINENESS = 4
"""Classes in an octave."""
FIRST_OCTAVE = -7
ESCAPE = 24


def tables(zero: NDArray[np.float64], ratio: NDArray[np.float64]) -> NDArray[np.float32]:
    """(CLASSES, ESCAPE + 1) probabilities, from p_0 and rho of each class; by products alone."""
    probabilities = np.empty((len(zero), ESCAPE + 1))
    probabilities[:, 0] = zero
    tail = 1 - zero
    for magnitude in range(1, ESCAPE):
        probabilities[:, magnitude] = tail * (1 - ratio)
        tail = tail * ratio
    probabilities[:, ESCAPE] = tail
    return np.maximum(probabilities, 1e-6).astype(np.float32)


ZERO = (
    3984, 3979, 3974, 3968, 3953, 3931, 3906, 3877, 3844, 3808, 3769, 3720, 3660, 3596, 3527, 3448,
    3357, 3251, 3126, 2986, 2835, 2672, 2501, 2324, 2140, 1953, 1782, 1633, 1492, 1356, 1239, 1138,
    1044, 957, 878, 823, 797, 760, 691, 625,
)  # fmt: skip
"""p_0 by class, in 1 / 4096."""
RATIO = (
    282, 206, 147, 114, 98, 98, 108, 108, 98, 99, 114, 140, 168, 183, 191, 209,
    233, 253, 279, 329, 411, 515, 643, 806, 1007, 1233, 1474, 1714, 1951, 2190, 2419, 2629,
    2826, 3003, 3148, 3268, 3380, 3486, 3568, 3614,
)  # fmt: skip
"""rho by class, in 1 / 4096."""
TABLES = tables(np.array(ZERO) / 4096, np.array(RATIO) / 4096)
