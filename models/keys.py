"""Sets of keys."""

from __future__ import annotations

import numpy as np

from models.types import Int64


def distinct(keys: Int64) -> Int64:
    """Keys of any shape, each once, ascending (m,).

    By sorting: `np.unique` goes by hashes, and takes up to a hundred times as long for keys that are
    regularly spaced, as those of fibres are (numpy 2.4).
    """
    ordered = np.sort(keys, axis=None)
    return ordered[np.diff(ordered, prepend=ordered[:1] - 1) > 0]
