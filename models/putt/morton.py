"""Cubes of side 2^L by the bits of their voxels' places: modes (8, ..., 8), one per level, coarse first.

The digit of a level is 4 bit_z + 2 bit_y + bit_x, the most significant level first: Morton's order, in which
the sub-cubes of an octree lie one after another. The storage's blocks have the same digits.
"""

from __future__ import annotations

import torch
from jaxtyping import Shaped
from torch import Tensor

from models.errors import InvalidShape

MODE = 8


def levels_of(side: int) -> int:
    """L of a cube of side 2^L. Raises InvalidShape for any other side, and for a single voxel."""
    levels = side.bit_length() - 1
    if side < 2 or side != 1 << levels:
        raise InvalidShape(f"a cube's side must be a power of two, and at least 2, not {side}")
    return levels


def levels_of_cube(cube: Shaped[Tensor, "z y x"]) -> int:
    """L of a cube. Raises InvalidShape for what is no cube of such a side."""
    if cube.ndim != 3 or len(set(cube.shape)) != 1:
        raise InvalidShape(f"a cube has three equal sides, not the shape {tuple(cube.shape)}")
    return levels_of(cube.shape[0])


def to_morton(cube: Shaped[Tensor, "z y x"]) -> Shaped[Tensor, "*modes"]:
    """The cube's values by digits, (8,) * L; contiguous. Raises InvalidShape for what is no cube."""
    levels = levels_of_cube(cube)
    above, below = 1 << levels // 2, 1 << levels - levels // 2
    blocks = cube.reshape(above, below, above, below, above, below).permute(0, 2, 4, 1, 3, 5)
    fine = _interleaved(blocks.reshape(above**3, *(below,) * 3))
    coarse = _interleaved(fine.T.reshape(below**3, *(above,) * 3))
    return coarse.T.contiguous().reshape((MODE,) * levels)


def from_morton(values: Shaped[Tensor, "*modes"]) -> Shaped[Tensor, "z y x"]:
    """The cube of values by digits, (8,) * L, or of as many in a matrix or a row. Undoes `to_morton`.

    Raises InvalidShape for a number of values that is no power of 8.
    """
    bits = values.numel().bit_length() - 1
    if values.numel() != 1 << bits or bits % 3 or not bits:
        raise InvalidShape(f"{values.numel()} values fill no cube of side 2^L")
    levels = bits // 3
    above, below = 1 << levels // 2, 1 << levels - levels // 2
    coarse = _by_axes(values.reshape(above**3, below**3).T)
    fine = _by_axes(coarse.reshape(below**3, above**3).T)
    blocks = fine.reshape(above, above, above, below, below, below)
    return blocks.permute(0, 3, 1, 4, 2, 5).reshape((above * below,) * 3)


def _interleaved(cubes: Tensor) -> Tensor:
    """(b, s, s, s) as (b, s^3), the bits of the three axes side by side."""
    bits = cubes.shape[1].bit_length() - 1
    order = [1 + axis * bits + bit for bit in range(bits) for axis in range(3)]
    return cubes.reshape(-1, *(2,) * (3 * bits)).permute(0, *order).reshape(len(cubes), -1)


def _by_axes(rows: Tensor) -> Tensor:
    """(b, s^3) as (b, s, s, s): undoes `_interleaved`."""
    bits = (rows.shape[1].bit_length() - 1) // 3
    order = [1 + bit * 3 + axis for axis in range(3) for bit in range(bits)]
    return rows.reshape(-1, *(2,) * (3 * bits)).permute(0, *order).reshape(len(rows), *(1 << bits,) * 3)


def pooled(cube: Shaped[Tensor, "z y x"]) -> Shaped[Tensor, "z2 y2 x2"]:
    """Means of 2 x 2 x 2 voxels: the level above."""
    half = levels_of_cube(cube) - 1
    return cube.reshape((1 << half, 2) * 3).mean(dim=(1, 3, 5))


def pyramid(
    values: Shaped[Tensor, "z y x"], counts: Shaped[Tensor, "z y x"] | None, start: int
) -> list[tuple[Tensor, Tensor | None]]:
    """(values, counts) of every level from side `start` to the whole, of means over what was observed.

    At a level of f^3 voxels per cell the value is sum(y m) / sum(m), 0 where nothing was observed, and the
    count is sum(m). Without counts everything counts the same.
    """
    if not 1 <= levels_of(start) <= levels_of_cube(values):
        raise InvalidShape(f"a cube of side {values.shape[0]} has no level of side {start}")
    found = [(values if counts is None else torch.where(counts > 0, values, 0), counts)]
    while found[-1][0].shape[0] > start:
        fine, seen = found[-1]
        if seen is None:
            found.append((pooled(fine), None))
        else:
            mass = MODE * pooled(seen)
            found.append((MODE * pooled(fine * seen) / mass.clamp(min=1), mass))
    return found[::-1]
