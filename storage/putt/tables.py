"""Probabilities of magnitudes by what is expected: fixed, so that files stay readable. Version 1.

Class i expects a magnitude of 2^((i + 0.5) / 4 - 7). A magnitude is 0 with probability p_0, and otherwise 1 +
k with (1 - rho) rho^k; from `ESCAPE` on all are one symbol. Both were fitted to pooled counts of trains of
scans.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CLASSES = 48
FINENESS = 4
"""Classes in an octave."""
FIRST_OCTAVE = -7
ESCAPE = 16


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
    4085, 4085, 4085, 4085, 4084, 4082, 4079, 4075, 4069, 4061, 4049, 4033, 4010, 3978, 3932, 3870,
    3786, 3674, 3530, 3352, 3139, 2896, 2631, 2357, 2087, 1831, 1598, 1393, 1216, 1067, 944, 843,
    760, 694, 642, 600, 568, 543, 524, 509, 499, 491, 484, 478, 478, 478, 478, 478,
)  # fmt: skip
"""p_0 by class, in 1 / 4096."""
RATIO = (
    38, 38, 38, 38, 38, 38, 38, 38, 38, 38, 38, 39, 43, 49, 59, 72,
    91, 116, 152, 200, 265, 351, 463, 605, 780, 988, 1224, 1481, 1748, 2014, 2266, 2499,
    2705, 2885, 3039, 3168, 3275, 3365, 3439, 3501, 3553, 3597, 3635, 3669, 3669, 3669, 3669, 3669,
)  # fmt: skip
"""rho by class, in 1 / 4096."""
TABLES = tables(np.array(ZERO) / 4096, np.array(RATIO) / 4096)
