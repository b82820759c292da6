"""Index arithmetic: every tensorisation of a volume is a table of (stride, mode) over one linear key.

The entry (z, y, x, c) of a volume with Z x Y x X voxels and C features has the key
((z Y + y) X + x) C + c. A tensorisation splits that key into digits: key = sum_k stride_k i_k. Its order,
interleaving and radices only permute and refine the table; no index is ever unravelled bit by bit. Partial
sums over the first or the last digits are keys of prefixes and suffixes, and a full key is their sum.

Quantised layouts (QTT, Oseledets 2010, Khoromskij 2011) split each axis into digits of its size's prime
factors. A size with another factor than 2, 3 and 5 is padded virtually up to the next one without: no voxel
is resampled, indices beyond the border read the border's voxel again (clamping), so no cube around a voxel
outside of the volume is ever asked for. A size of 1 contributes no digit.

Order of digits: within an axis the coarse digits come first (most significant first, and among those the
large radices): from a random start this converges faster than the opposite order, with the same result.
`sequential` keeps each axis together, which suits generic data; `interleaved` sets digits of equal scale
side by side, which suits functions of z + y + x. The features' digits always come last.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from models.errors import InvalidShape
from models.types import Int64

Shape4 = tuple[int, int, int, int]

LAYOUTS = ("tt", "qtt")
ORDERS = ("sequential", "interleaved")
RADICES = (5, 3, 2)


@dataclass(frozen=True)
class Layout:
    """A tensorisation of (z, y, x, feature). Make one with `tt_layout` or `qtt_layout`.

    `shape` is what there is, `padded` what the keys count in; mode k has `modes[k]` indices, which are
    `strides[k]` apart in the key. Keys are int64.
    """

    shape: Shape4
    padded: Shape4
    strides: tuple[int, ...]
    modes: tuple[int, ...]

    def __post_init__(self) -> None:
        if min(self.shape) < 1:
            raise InvalidShape(f"a volume of (z, y, x, features) = {self.shape} has no voxels")
        if math.prod(self.padded) >= 2**63:
            raise InvalidShape(f"{self.padded} has {math.prod(self.padded):,} entries; keys go up to 2^63")

    @property
    def features(self) -> int:
        """Values per voxel."""
        return self.shape[3]

    @property
    def voxels(self) -> int:
        """Voxels that there are: without padding."""
        return math.prod(self.shape[:3])

    def digits(self, core: int) -> Int64:
        """The partial keys of mode `core`'s indices."""
        return np.arange(self.modes[core], dtype=np.int64) * self.strides[core]

    def keys(self, indices: Int64) -> Int64:
        """The keys of multi-indices (m, d)."""
        return np.asarray(indices @ np.array(self.strides, np.int64))

    def indices(self, keys: Int64) -> Int64:
        """The multi-indices (m, d) of keys (m,)."""
        return keys[:, None] // np.array(self.strides, np.int64) % np.array(self.modes, np.int64)

    def keys_of(self, entries: Int64) -> Int64:
        """The keys of entries (m, 4), in (z, y, x, feature)."""
        z, y, x, feature = entries.T
        _, Y, X, C = self.padded
        return np.asarray(((z * Y + y) * X + x) * C + feature, np.int64)

    def entries(self, keys: Int64) -> Int64:
        """The (z, y, x, feature) that keys (m,) read, padding clamped to the border: (m, 4)."""
        axes = np.stack(np.unravel_index(keys, self.padded), axis=-1)
        return np.asarray(np.minimum(axes, np.array(self.shape) - 1))

    def mirrored(self) -> Layout:
        """The same keys with the modes in opposite order."""
        return Layout(self.shape, self.padded, self.strides[::-1], self.modes[::-1])

    @property
    def spatial_modes(self) -> int:
        """How many modes split the voxels; the others, which come last, split the features."""
        return sum(stride >= self.padded[3] for stride in self.strides) if self.voxels > 1 else 0

    def spatial(self) -> Layout:
        """The layout of the voxels alone, one entry each: modes of the features left out."""
        shape, padded, features = (*self.shape[:3], 1), (*self.padded[:3], 1), self.padded[3]
        kept = range(self.spatial_modes)
        return _layout(shape, padded, [(self.strides[k] // features, self.modes[k]) for k in kept])


def make_layout(
    name: str,
    shape: tuple[int, int, int],
    features: int,
    order: str = "sequential",
    *,
    whole_features: bool = False,
) -> Layout:
    """The layout `tt` (`order` and `whole_features` do not matter) or `qtt` as `qtt_layout` makes it.

    Raises InvalidShape for other names.
    """
    if name == "tt":
        return tt_layout(shape, features)
    if name == "qtt":
        return qtt_layout(shape, features, order, whole_features=whole_features)
    raise InvalidShape(f"there is no layout {name!r}; layouts: {', '.join(LAYOUTS)}")


def tt_layout(shape: tuple[int, int, int], features: int) -> Layout:
    """One mode per axis: Z, Y, X, features. Axes of size 1 have no mode."""
    sizes: Shape4 = (*shape, features)
    table = list(zip(_axis_strides(sizes), sizes, strict=True))
    return _layout(sizes, sizes, table)


def qtt_layout(
    shape: tuple[int, int, int], features: int, order: str = "sequential", *, whole_features: bool = False
) -> Layout:
    """One mode per digit of each axis, in mixed radix 2, 3, 5; see the module's text.

    With `whole_features` the features are one mode, as block cross-approximation has them.
    """
    if order not in ORDERS:
        raise InvalidShape(f"there is no order {order!r}; orders: {', '.join(ORDERS)}")
    sizes: Shape4 = (*shape, features)
    z, y, x, c = (smooth_size(n) for n in sizes)
    padded: Shape4 = (z, y, x, features if whole_features else c)
    digits = [
        (scale, radix, stride, axis)
        for axis, (n, stride) in enumerate(zip(padded, _axis_strides(padded), strict=True))
        for scale, radix in ([(1, n)] if axis == 3 and whole_features else _axis_digits(n))
    ]
    if order == "interleaved":
        digits.sort(key=lambda digit: (digit[3] == 3, -digit[0], digit[3]))
    return _layout(sizes, padded, [(scale * stride, radix) for scale, radix, stride, _ in digits])


def smooth_size(n: int) -> int:
    """The smallest size of at least `n` that has no prime factor other than 2, 3 and 5."""
    while math.prod(_factors(n)) != n:
        n += 1
    return n


def _factors(n: int) -> list[int]:
    """The prime factors 5, 3 and 2 of `n`, large ones first."""
    found = []
    for radix in RADICES:
        while n > 1 and n % radix == 0:
            found.append(radix)
            n //= radix
    return found


def _axis_digits(n: int) -> list[tuple[int, int]]:
    """(scale, radix) of an axis of size `n`, coarse first: index = sum of scale * digit."""
    digits, scale = [], n
    for radix in _factors(n):
        scale //= radix
        digits.append((scale, radix))
    return digits


def _axis_strides(sizes: Shape4) -> Shape4:
    _, Y, X, C = sizes
    return Y * X * C, X * C, C, 1


def _layout(shape: Shape4, padded: Shape4, table: list[tuple[int, int]]) -> Layout:
    """Drop the modes of size 1, but keep one mode where nothing else is left."""
    kept = [(stride, n) for stride, n in table if n != 1] or [(1, 1)]
    return Layout(shape, padded, *map(tuple, zip(*kept, strict=True)))
