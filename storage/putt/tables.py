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
    3927, 3931, 3946, 3957, 3952, 3931, 3905, 3878, 3851, 3820, 3781, 3726, 3661, 3594, 3524, 3445,
    3354, 3245, 3120, 2985, 2839, 2676, 2502, 2329, 2149, 1959, 1783, 1636, 1497, 1356, 1234, 1135,
    1046, 956, 874, 823, 798, 755, 677, 610,
)  # fmt: skip
"""p_0 by class, in 1 / 4096."""
RATIO = (
    175, 163, 145, 128, 121, 117, 108, 94, 85, 88, 106, 129, 154, 181, 202, 219,
    234, 252, 284, 338, 413, 515, 647, 809, 1001, 1223, 1466, 1712, 1954, 2191, 2415, 2624,
    2819, 2994, 3142, 3266, 3377, 3481, 3564, 3610,
)  # fmt: skip
"""rho by class, in 1 / 4096."""
TABLES = tables(np.array(ZERO) / 4096, np.array(RATIO) / 4096)
