"""A block's train of integers: TT-SVD from the right, with each core rounded before the next is found.

At bond b the unfolding A (n_1 ... n_b) x (n_{b+1} r_{b+1}) has right singular vectors V and singular values
sigma, by the eigenvectors of its smaller Gram matrix. The rows sigma V^T / step are rounded to integers, with
a dead zone; rows that vanish are the ranks that the step does not pay for. What stands to the left of the
rounded rows H is fitted to them, A' = A H^T (H H^T)^{-1}: it makes good what rounding spoilt.

To first order an entry's rounding error is the error of a coefficient in an orthonormal basis: the mean
squared error is about (numbers kept) step^2 / 12 per voxel, plus what was left out.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from storage.putt.coder import MOST_SCALE
from storage.putt.integer_train import OCTAVE, Float64, IntegerTrain, power

DEAD_ZONE = 0.6
"""An entry below this, in steps, becomes 0; the others are rounded as much down."""
SMALLEST = 1e-14
"""Of eigenvalues of a Gram matrix over the largest: less is rounding."""
DEPENDENT = 1e-10
"""Added to the Gram matrix of rounded rows, relative to its trace."""


def factorised(
    values: NDArray[np.floating], step: float, *, max_rank: int | None = None, offset: float | None = None
) -> IntegerTrain:
    """The train of values (n_1, ..., n_L); its error is about that of rounding orthonormal coefficients.

    `offset`, the mean if it is not given, is taken off first. Raises ValueError for values that are not
    finite and for a step that is not above 0.
    """
    if not (np.isfinite(step) and step > 0):
        raise ValueError(f"step = {step}: must be above 0 and finite")
    if not np.isfinite(values).all():
        raise ValueError("values must be finite: fill what was not measured first")
    modes = values.shape
    offset = float(values.mean()) if offset is None else offset
    A = np.asarray(values, np.float64) - offset
    cores, scales = [], []
    right = 1
    for mode in modes[:0:-1]:
        A = A.reshape(-1, mode * right)
        q, s = _rounded_rows(*_right_singular(A, max_rank), step)
        H = q * power(-s)[:, None]
        A = _fitted(A, H)
        cores.append(q.reshape(len(q), mode, right))
        scales.append(s)
        right = len(q)
    cores.append(np.rint(A / step).astype(np.int64).reshape(1, modes[0], right))
    return IntegerTrain(tuple(cores[::-1]), tuple(scales[::-1]), step, offset)


def _fitted(A: Float64, H: Float64) -> Float64:
    """A H^T (H H^T)^{-1}; rows that rounding made dependent share what is theirs."""
    G = H @ H.T
    G[np.diag_indices(len(G))] += DEPENDENT * np.trace(G)
    return np.asarray(np.linalg.solve(G, H @ A.T).T)


def _right_singular(A: Float64, max_rank: int | None) -> tuple[Float64, Float64]:
    """sigma (k,), descending, and V^T (k, columns); at least one."""
    tall = A.shape[0] >= A.shape[1]
    energies, vectors = np.linalg.eigh(A.T @ A if tall else A @ A.T)
    energies, vectors = energies[::-1], vectors[:, ::-1]
    kept = max(1, int((energies > SMALLEST * max(energies[0], 0)).sum()))
    kept = min(kept, max_rank or kept)
    sigma = np.sqrt(np.maximum(energies[:kept], 0))
    rows = vectors[:, :kept].T
    if not tall:
        rows = (rows @ A) / np.where(sigma > 0, sigma, 1.0)[:, None]
    return sigma, rows


def _rounded_rows(sigma: Float64, rows: Float64, step: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """q and s of the rows that do not vanish; one at least."""
    with np.errstate(divide="ignore"):
        s = np.clip(np.rint(OCTAVE * np.log2(sigma / step)), 0, MOST_SCALE).astype(np.int64)
    x = rows * power(s)[:, None]
    q = (np.sign(x) * np.floor(np.abs(x) + 1 - DEAD_ZONE)).astype(np.int64)
    left = np.flatnonzero(q.any(axis=1))
    if not len(left):
        q[0, int(np.abs(x[0]).argmax())] = 1
        left = np.array([0])
    return q[left], s[left]
