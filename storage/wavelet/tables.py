"""Probabilities of magnitudes by what is expected: fixed, so that files stay readable. Version 1.

Class i expects a magnitude from 2^(i / 2 - 12), an octave's lower half apart from its upper one, up to that
of the next class; less is in the first class. A magnitude is 0 with probability p_0, else 1 with p_1, else 2
+ k with (1 - rho) rho^k; from ESCAPE on all are one symbol. All three were fitted to pooled counts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CLASSES = 30
FIRST_OCTAVE = -12
ESCAPE = 18
UNIT = 65536


def tables(
    zero: NDArray[np.float64], one: NDArray[np.float64], ratio: NDArray[np.float64]
) -> NDArray[np.float32]:
    """(CLASSES, ESCAPE + 1) probabilities, from p_0, p_1 and rho of each class; by products alone."""
    probabilities = np.empty((len(zero), ESCAPE + 1))
    probabilities[:, 0] = zero
    probabilities[:, 1] = (1 - zero) * one
    tail = (1 - zero) * (1 - one)
    for magnitude in range(2, ESCAPE):
        probabilities[:, magnitude] = tail * (1 - ratio)
        tail = tail * ratio
    probabilities[:, ESCAPE] = tail
    return np.maximum(probabilities, 1e-6).astype(np.float32)


ZERO = (
    65506, 65437, 65372, 65364, 65036, 64971, 64861, 64878, 64704, 64563,
    64261, 64003, 63711, 63280, 62551, 61563, 60816, 59047, 56720, 52996,
    48166, 41974, 34907, 28066, 21811, 16474, 12373, 9258, 7654, 5671,
)  # fmt: skip
"""p_0 by class, in 1 / UNIT."""
ONE = (
    57026, 60123, 60688, 60242, 58181, 58171, 57163, 60971, 60429, 61407,
    60734, 61124, 61693, 62394, 61968, 62274, 62354, 62470, 61970, 60660,
    58542, 55127, 49862, 42097, 33624, 25378, 18836, 13707, 9215, 6463,
)  # fmt: skip
"""p_1 by class, likewise."""
RATIO = (
    43497, 46650, 48815, 49105, 48775, 49548, 50159, 49287, 49865, 50926,
    49415, 50139, 46624, 47407, 46302, 43951, 42153, 35536, 27515, 22973,
    17241, 16489, 18976, 23347, 29656, 36766, 43614, 49306, 53257, 56435,
)  # fmt: skip
"""rho by class, likewise."""
TABLES = tables(np.array(ZERO) / UNIT, np.array(ONE) / UNIT, np.array(RATIO) / UNIT)
LENGTHS = np.array([1 / (2 << bits) for bits in range(31)], np.float32)
"""Probabilities of the bits that stand behind the leading one of what is beyond ESCAPE."""
