"""Alternating least squares (Holtz, Rohwedder & Schneider 2012): one core at a time, in orthonormal frames.

All entries known: with orthonormal frames L (left) and R (right) of a core, the best core is
W = (L^T x I) X R^T. Some entries known, y_i at places whose frames' rows are l_i and q_i: slice s of the core
minimises sum_{i in s} (y_i - l_i^T W_s q_i)^2 + ridge |W_s|^2, each slice for itself. In orthonormal frames
sum_s |W_s|^2 is the squared norm of the tensor, so every step lowers one and the same sum:
|y - X|^2 over the known entries + ridge |X|^2.
"""

from __future__ import annotations

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from models.errors import InvalidConfig, InvalidShape, refuse_non_finite
from models.tt.rounding import right_orthogonal
from models.tt.train import TensorTrain

DIRECT = 24 * 24
"""Unknowns of a slice, up to which its normal equations are solved directly; beyond, step by step."""
PORTION_NUMBERS = 1 << 20
"""Float64 numbers of a design matrix that are made at a time."""
CG_STEPS = 50
CG_TOLERANCE = 1e-10
"""Of the residual over the right-hand side, in norm."""


def als(tensor: Float64[Tensor, "*modes"], train: TensorTrain, *, sweeps: int = 1) -> TensorTrain:
    """A train nearer to a dense tensor, from one that is near: sweeps from right to left and back.

    The error never grows, nor do the ranks. Raises InvalidShape where the two have other modes.
    """
    if train.batch or tuple(tensor.shape) != train.modes:
        raise InvalidShape(f"a train of modes {train.modes} is not fitted to shape {tuple(tensor.shape)}")
    whole = tensor.to(torch.float64)
    backwards = whole.permute(*reversed(range(whole.ndim)))
    for _ in range(sweeps):
        train = _mirrored(_half_sweep(backwards, _mirrored(train)))
        train = _half_sweep(whole, train)
    return train


def als_observed(
    train: TensorTrain,
    indices: Int64[Tensor, "m d"],
    values: Float64[Tensor, " m"],
    *,
    ridge: float,
    sweeps: int = 1,
) -> TensorTrain:
    """A train nearer to known entries, in |y - X|^2 + ridge |X|^2: sweeps from right to left and back.

    `ridge` must be above 0: places that nobody looked at have no other say. Raises InvalidConfig for one
    that is not, InvalidShape where indices, values and train do not fit, NonFinite for such values.
    """
    if not 0 < ridge < float("inf"):
        raise InvalidConfig("ridge", ridge, "above 0, and finite")
    modes = indices.new_tensor(train.modes)
    if indices.shape != (len(values), len(modes)) or not len(values) or train.batch:
        raise InvalidShape(f"indices {tuple(indices.shape)} for {len(values)} values and {len(modes)} modes")
    if bool(((indices < 0) | (indices >= modes)).any()):
        raise InvalidShape(f"an index lies outside of the modes {train.modes}")
    refuse_non_finite(values, "values")
    for _ in range(sweeps):
        train = _mirrored(_observed_half_sweep(_mirrored(train), indices.flip(1), values, ridge))
        train = _observed_half_sweep(train, indices, values, ridge)
    return train


def _mirrored(train: TensorTrain) -> TensorTrain:
    """The train of the tensor with its axes in reverse order."""
    return TensorTrain(tuple(core.permute(2, 1, 0).contiguous() for core in reversed(train.cores)))


def _half_sweep(tensor: Tensor, train: TensorTrain) -> TensorTrain:
    """Each core from left to right, but for the last one's neighbours."""
    frames = _right_frames(train)
    rest, rank, cores = tensor, 1, []
    for n, frame in zip(train.modes[:-1], frames, strict=True):
        rows = rest.reshape(rank * n, -1)
        basis = torch.linalg.qr(rows @ frame.mT)[0]
        cores.append(basis.reshape(rank, n, -1))
        rank = basis.shape[1]
        rest = basis.mT @ rows
    return TensorTrain((*cores, rest.reshape(rank, train.modes[-1], 1)))


def _right_frames(train: TensorTrain) -> list[Tensor]:
    """R_b (r_b, n_{b+1} ... n_d) with orthonormal rows, for every inner bond."""
    cores = right_orthogonal(train).cores
    frames = [cores[-1].flatten(1)]
    for core in cores[-2:0:-1]:
        frames.append((core.flatten(0, 1) @ frames[-1]).reshape(len(core), -1))
    return frames[::-1] if len(cores) > 1 else []


def _observed_half_sweep(train: TensorTrain, indices: Tensor, values: Tensor, ridge: float) -> TensorTrain:
    """Each core from left to right, with what its basis does not hold passed on to the next."""
    cores = list(right_orthogonal(train).cores)
    right_rows = [values.new_ones(len(values), 1)]
    for core, digits in zip(cores[:0:-1], indices.T.flip(0), strict=False):
        right_rows.append(torch.einsum("lmr,mr->ml", core[:, digits], right_rows[-1]))
    left = values.new_ones(len(values), 1)
    for k, core in enumerate(cores):
        right = right_rows.pop()
        solved = torch.zeros_like(core)
        for digit in range(core.shape[1]):
            here = indices[:, k] == digit
            solved[:, digit] = _slice(left[here], right[here], values[here], core[:, digit], ridge)
        cores[k] = solved
        if k + 1 < len(cores):
            basis, carry = torch.linalg.qr(solved.flatten(0, 1))
            cores[k] = basis.reshape(len(core), core.shape[1], -1)
            cores[k + 1] = torch.einsum("ab,bnc->anc", carry, cores[k + 1])
            left = torch.einsum("ml,lmr->mr", left, cores[k][:, indices[:, k]])
    return TensorTrain(tuple(cores))


def _slice(left: Tensor, right: Tensor, values: Tensor, start: Tensor, ridge: float) -> Tensor:
    """argmin_W sum_i (y_i - l_i^T W q_i)^2 + ridge |W|^2."""
    if start.numel() <= DIRECT:
        return _directly(left, right, values, ridge).reshape(start.shape)
    return _conjugate_gradients(left, right, values, start, ridge)


def _directly(left: Tensor, right: Tensor, values: Tensor, ridge: float) -> Tensor:
    """By the normal equations of the design matrix, whose rows are l_i x q_i."""
    unknowns = left.shape[1] * right.shape[1]
    normal = ridge * torch.eye(unknowns, dtype=left.dtype, device=left.device)
    wanted = left.new_zeros(unknowns)
    portion = max(1, PORTION_NUMBERS // unknowns)
    for start in range(0, len(values), portion):
        part = slice(start, start + portion)
        design = (left[part, :, None] * right[part, None, :]).flatten(1)
        normal += design.mT @ design
        wanted += design.mT @ values[part]
    return torch.cholesky_solve(wanted[:, None], torch.linalg.cholesky(normal))


def _conjugate_gradients(left: Tensor, right: Tensor, values: Tensor, start: Tensor, ridge: float) -> Tensor:
    """From `start`, in O(m r r') a step. Each step lowers the sum of squares."""

    def normal(W: Tensor) -> Tensor:
        return left.mT @ (((left @ W) * right).sum(1, keepdim=True) * right) + ridge * W

    W = start
    wanted = left.mT @ (values[:, None] * right)
    residual = wanted - normal(W)
    direction, energy = residual, residual.square().sum()
    enough = CG_TOLERANCE**2 * wanted.square().sum()
    for _ in range(CG_STEPS):
        if energy <= enough:
            break
        image = normal(direction)
        length = energy / (direction * image).sum()
        W, residual = W + length * direction, residual - length * image
        before, energy = energy, residual.square().sum()
        direction = residual + energy / before * direction
    return W
