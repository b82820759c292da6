"""Pooled moments: means of a train's features over a volume, weighted with a few functions per axis.

On an axis of N voxels there are B functions w_0 ... w_{B-1}, each averaged over every voxel's extent (so that
none is zero, however few voxels there are) and normalised to mean 1. With w_b = w_{b_z} w_{b_y} w_{b_x},

    m_{b, c} = 1 / V sum_v w_b(v) T(v, c),

B^3 numbers per feature, ordered (z, y, x): a constant field has that constant in every moment. Padding weighs
nothing. For a layout with many digits each axis' functions are themselves a short train over the axis'
digits, of rank about 2 B for piecewise linear functions, and the product is contracted digit by digit: the
cost is of the axes' sizes, never of the volume's.

`sampled_moments` estimates the same from voxels that were drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float64
from numpy.typing import NDArray
from torch import Tensor

from models.errors import InvalidConfig, InvalidShape
from models.tt.qtt import Layout
from models.tt.rounding import tt_svd
from models.tt.train import TensorTrain
from models.types import Int64

AXES = "zyx"
TRAIN_EPS = 1e-14
"""Relative error of the trains that the functions are put into."""
PORTION_NUMBERS = 1 << 20
"""Float64 numbers that one step of a contraction may take."""

Integral = Callable[[NDArray[np.float64], int], NDArray[np.float64]]
"""(positions (n,) in [0, 1], B) to the integrals of all B functions from 0 to there, (n, B)."""


def hat_integrals(positions: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Of piecewise linear functions, 1 at one of B equidistant nodes, 0 at the others; both ends are nodes.

    Together they are 1 everywhere. A single one is constant.
    """
    if count == 1:
        return positions[:, None]
    from_node = np.clip(positions[:, None] * (count - 1) - np.arange(count), -1, 1)
    below = np.where(from_node < 0, np.square(from_node + 1) / 2, 1 - np.square(1 - from_node) / 2)
    return np.asarray((below - np.where(np.arange(count) == 0, 0.5, 0.0)) / (count - 1))


def block_integrals(positions: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Of indicators of B equal parts: halves, thirds. A voxel on a border belongs to both in part."""
    return np.asarray(np.clip(positions[:, None] * count - np.arange(count), 0, 1) / count)


FUNCTIONS: dict[str, Integral] = {
    "hat": hat_integrals,
    "block": block_integrals,
}


@dataclass(frozen=True)
class Pooling:
    """`count` functions of one kind per axis: `count`^3 for a volume. Raises InvalidConfig for others."""

    functions: str = "hat"
    count: int = 2

    def __post_init__(self) -> None:
        if self.functions not in FUNCTIONS:
            raise InvalidConfig("functions", self.functions, f"one of {', '.join(FUNCTIONS)}")
        if self.count < 1:
            raise InvalidConfig("count", self.count, "at least 1")

    @property
    def moments(self) -> int:
        """Moments per feature, B^3."""
        return self.count**3

    def on_axis(self, size: int) -> NDArray[np.float64]:
        """The functions on an axis of `size` voxels, each with mean 1: (size, B)."""
        weights = np.diff(FUNCTIONS[self.functions](np.linspace(0, 1, size + 1), self.count), axis=0)
        return np.asarray(weights / weights.mean(axis=0))

    def at(self, voxels: Int64, shape: tuple[int, int, int]) -> NDArray[np.float64]:
        """The products w_b at linear voxel indices (m,): (m, B^3)."""
        z, y, x = (
            self.on_axis(size)[at] for size, at in zip(shape, np.unravel_index(voxels, shape), strict=True)
        )
        return np.asarray(np.einsum("mz,my,mx->mzyx", z, y, x).reshape(len(voxels), -1))


def pooled_moments(trains: TensorTrain, layout: Layout, pooling: Pooling) -> Float64[Tensor, "*batch b f"]:
    """The moments of one train, or of a batch, in a layout: (..., B^3, features). Differentiable.

    Trains are taken in portions of bounded memory (without a gradient: the graph keeps what it needs).
    Raises InvalidShape for trains of other modes than the layout's, or whose features do not come last.
    """
    if trains.modes != layout.modes:
        raise InvalidShape(f"a train of modes {trains.modes} is not of the layout's modes {layout.modes}")
    if (
        any(stride >= layout.padded[3] for stride in layout.strides[layout.spatial_modes :])
        and layout.voxels > 1
    ):
        raise InvalidShape("pooled moments need a layout whose features come last")
    flat = TensorTrain(tuple(core.reshape(-1, *core.shape[-3:]) for core in trains.cores))
    axes = _axes(layout, pooling, flat.cores[0].device)
    step = max(1, PORTION_NUMBERS // _numbers_per_train(flat, layout, axes))
    moments = torch.cat(
        [_contracted(flat[start : start + step], layout, axes) for start in range(0, flat.batch[0], step)]
    )
    return moments.reshape(*trains.batch, pooling.moments, layout.features)


def sampled_moments(
    values: Float64[Tensor, "m f"],
    weights: Float64[Tensor, "m b"],
    shares: Float64[Tensor, " m"],
    *,
    self_normalised: bool = False,
) -> Float64[Tensor, "b f"]:
    """Moments (B^3, features) estimated from the features at m voxels. Differentiable.

    `weights` are w_b there, `shares` the part of the volume that each voxel stands for. Unbiased, m_b =
    sum_i share_i w_b(v_i) values_i (Horvitz & Thompson 1952). Self-normalised, m_b is divided by
    sum_i share_i w_b(v_i): constants are exact, at the price of a bias of the order 1 / m; a function that is
    zero at every voxel drawn gives the mean of all.
    """
    values = values.double()
    shared = weights * shares[:, None]
    moments = shared.T @ values
    if not self_normalised:
        return moments
    totals = shared.sum(dim=0)[:, None]
    mean = (shares @ values) / shares.sum()
    return torch.where(totals > 0, moments / torch.where(totals > 0, totals, 1.0), mean)


class _Axis(NamedTuple):
    """An axis' functions as a train over its digits, in the layout's order: w_b / N."""

    modes: list[int]
    """Which of the layout's modes are its digits."""
    digits: list[Float64[Tensor, "s n t"]]
    end: Float64[Tensor, "s b"]
    """From the state after the last digit to the functions."""


def _axes(layout: Layout, pooling: Pooling, device: torch.device) -> list[_Axis]:
    _, Y, X, C = layout.padded
    strides = (Y * X * C, X * C, C)
    axis_of = [_axis_of(layout.strides[k], strides) for k in range(layout.spatial_modes)]
    return [
        _axis(layout, pooling, axis, [k for k, of in enumerate(axis_of) if of == axis], stride, device)
        for axis, stride in enumerate(strides)
    ]


def _axis_of(stride: int, strides: tuple[int, int, int]) -> int:
    return next(axis for axis, least in enumerate(strides) if stride >= least)


def _axis(
    layout: Layout, pooling: Pooling, axis: int, modes: list[int], stride: int, device: torch.device
) -> _Axis:
    size, padded = layout.shape[axis], layout.padded[axis]
    weights = np.zeros((padded, pooling.count))
    weights[:size] = pooling.on_axis(size) / size
    positions = reduce(np.add.outer, [layout.digits(k) // stride for k in modes], np.zeros((), np.int64))
    functions = torch.from_numpy(weights[positions]).to(device)
    *digits, end = tt_svd(functions, eps=TRAIN_EPS).cores
    return _Axis(modes, digits, end[:, :, 0])


def _numbers_per_train(trains: TensorTrain, layout: Layout, axes: list[_Axis]) -> int:
    """The most that contracting a mode takes: its operator, or the states of all axes."""
    rank, mode = max((1, *trains.ranks)), max(layout.modes)
    states = [max(len(core) for core in (*axis.digits, axis.end)) for axis in axes]
    return rank * max(rank * max(states) ** 2, int(np.prod(states)), rank * mode)


def _contracted(trains: TensorTrain, layout: Layout, axes: list[_Axis]) -> Float64[Tensor, "k b f"]:
    """States of the three axes and of the train, (K, s_z, s_y, s_x, r), taken through all modes."""
    digit_of = {
        k: (AXES[axis], of.digits[at]) for axis, of in enumerate(axes) for at, k in enumerate(of.modes)
    }
    states = trains.cores[0].new_ones(trains.batch[0], 1, 1, 1, 1)
    for k in range(layout.spatial_modes):
        s, digit = digit_of[k]
        operator = torch.einsum(f"krnq,{s}nt->kr{s}tq", trains.cores[k], digit)
        states = torch.einsum(f"kzyxr,kr{s}tq->{'kzyxq'.replace(s, 't')}", states, operator)
    z, y, x = (axis.end for axis in axes)
    moments = torch.einsum("kzyxr,za,yb,xc->kabcr", states, z, y, x).flatten(1, 3)[:, :, None]
    for core in trains.cores[layout.spatial_modes :]:
        moments = torch.einsum("kbfr,krnq->kbfnq", moments, core).flatten(2, 3)
    return moments[:, :, : layout.features, 0]
