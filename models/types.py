"""Shape aliases, and the one seam between the mathematics and the store: `CubeSource`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]
Array = NDArray[Any]

Size = int | tuple[int, int, int]
"""The edge of a cube, or the sides (Z, Y, X) of a box, in voxels."""

Report = Callable[[str, int, int | None], None]
"""Called between steps with (phase, done, total where known). May raise: that is how work is cancelled."""


class CubeSource(Protocol):
    """A volume that is only ever looked at through small cubes and boxes.

    `shape` is `(z, y, x)`, `channels` the number of values per voxel. `cubes` may be asked for any
    origins, outside of the volume too: what lies outside is `padding`.
    """

    @property
    def shape(self) -> tuple[int, int, int]:
        """The volume's size in voxels, (z, y, x)."""

    @property
    def channels(self) -> int:
        """Values per voxel."""

    def cubes(self, origins: Int64, size: Size) -> Array:
        """Boxes of `size` with the lowest corners `origins` (n, 3) in (z, y, x): (n, channels, Z, Y, X)."""


@runtime_checkable
class Ranged(Protocol):
    """A volume that states what its values lie within."""

    @property
    def value_range(self) -> tuple[float, float]:
        """No value is below the first or above the second."""
