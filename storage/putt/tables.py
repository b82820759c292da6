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
    4095, 4095, 4095, 4094, 4092, 4090, 4087, 4083, 4077, 4067, 4053, 4034, 4007, 3969, 3917, 3847,
    3755, 3638, 3490, 3312, 3102, 2867, 2612, 2347, 2082, 1829, 1594, 1383, 1199, 1041, 908, 799,
    711, 640, 585, 544, 516, 500, 495, 501, 521, 555, 608, 683, 683, 683, 683, 683,
)  # fmt: skip
"""p_0 by class, in 1 / 4096."""
RATIO = (
    38, 38, 38, 38, 38, 38, 38, 38, 38, 31, 28, 27, 28, 31, 36, 44,
    56, 74, 99, 136, 189, 262, 363, 497, 669, 882, 1131, 1407, 1697, 1984, 2255, 2501,
    2715, 2898, 3051, 3178, 3283, 3369, 3442, 3503, 3556, 3604, 3648, 3691, 3691, 3691, 3691, 3691,
)  # fmt: skip
"""rho by class, in 1 / 4096."""
TABLES = tables(np.array(ZERO) / 4096, np.array(RATIO) / 4096)
