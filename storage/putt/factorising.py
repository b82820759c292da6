"""A block's train of integers: TT-SVD from the right, with each core rounded before the next is found.

At bond b the unfolding A (n_1 ... n_b) x (n_{b+1} r_{b+1}), in the Walsh basis of its digit, has right
singular vectors V and singular values sigma, by the eigenvectors of its smaller Gram matrix. The rows
sigma V^T / (f step) are rounded to integers, with a dead zone. What stands to the left of the rounded rows H,
of unit norm, is fitted to them, A' = A H^T (H H^T)^{-1}: it makes good what rounding spoilt in their span.
Only the share 1 - K / N of the error of K rows in N dimensions lies outside of it: f = (1 - K / N)^{-1/2}.

A direction is kept if what it takes from the squared error pays for its numbers: its row, and its column in
the core before.
"""

from __future__ import annotations

from math import prod

import numpy as np
from numpy.typing import NDArray

from storage.putt.integer_train import Float64, Int64, IntegerTrain, power, scales_of, walsh

FINENESS = 0.5
"""Of the train's step over what is asked for: what is left out is most of the error."""
DEAD_ZONE = 0.62
"""An entry below this, in steps, becomes 0; the others are rounded as much down."""
PRICE = 0.05
"""Of a number that is kept, in squared steps."""
COARSEST = 2.0
"""Largest f."""
SMALLEST = 1e-14
"""Of eigenvalues of a Gram matrix over the largest: less is rounding."""
DEPENDENT = 1e-10
"""Added to the Gram matrix of rounded rows, relative to its trace."""


def factorised(values: NDArray[np.floating], step: float, *, max_rank: int | None = None) -> IntegerTrain:
    """The train of values (n_1, ..., n_L), without their mean first: its error's deviation is about a quarter
    of a step, in units of the values, or less. Ranks are at most `max_rank`.

    Raises ValueError for values that are not finite and for a step that is not above 0.
    """
    if not (np.isfinite(step) and step > 0):
        raise ValueError(f"step = {step}: must be above 0 and finite")
    if not np.isfinite(values).all():
        raise ValueError("values must be finite: fill what was not measured first")
    modes = values.shape
    offset = float(values.mean())
    finer = FINENESS * step
    A = (np.asarray(values, np.float64) - offset) / finer
    cores: list[Int64] = []
    right = 1
    for level in range(len(modes) - 1, 0, -1):
        A = _by_patterns(A, modes[level], right)
        q = _rounded_rows(A, _most_left(modes, level), max_rank)
        A = _fitted(A, q * power(-scales_of(q))[:, None])
        cores.append(q.reshape(len(q), modes[level], right))
        right = len(q)
    first = np.rint(_by_patterns(A, modes[0], right)).astype(np.int64)
    cores.append(first.reshape(1, modes[0], right))
    return IntegerTrain(tuple(cores[::-1]), finer, offset)


def _by_patterns(A: Float64, mode: int, right: int) -> Float64:
    """(rows, mode right) in the Walsh basis of the digit: orthonormal."""
    return np.asarray((walsh(A.reshape(-1, mode, right)) / np.sqrt(mode)).reshape(-1, mode * right))


def _most_left(modes: tuple[int, ...], level: int) -> tuple[int, int]:
    """Digits of the core before `level`, and the most rows that it may have."""
    return modes[level - 1], prod(modes[: level - 1])


def _fitted(A: Float64, H: Float64) -> Float64:
    """A H^T (H H^T)^{-1}; rows that rounding made dependent share what is theirs."""
    G = H @ H.T
    G[np.diag_indices(len(G))] += DEPENDENT * np.trace(G)
    return np.asarray(A @ np.linalg.solve(G, H).T)


def _right_singular(A: Float64, most: int | None) -> tuple[Float64, Float64]:
    """sigma (k,), descending, and sigma V^T (k, columns); at least one, and no direction of rounding."""
    tall = A.shape[0] >= A.shape[1]
    energies, vectors = np.linalg.eigh(A.T @ A if tall else A @ A.T)
    energies, vectors = energies[::-1][:most], vectors[:, ::-1][:, :most]
    kept = max(1, int((energies > max(1.0, SMALLEST * energies[0])).sum()))
    sigma, vectors = np.sqrt(np.maximum(energies[:kept], 0)), vectors[:, :kept]
    return sigma, vectors.T * sigma[:, None] if tall else vectors.T @ A


def _rounded_rows(A: Float64, left: tuple[int, int], max_rank: int | None) -> Int64:
    """The rows that pay for their numbers, (k, columns), the largest first; one at least."""
    sigma, rows = _right_singular(A, max_rank)
    price = PRICE * (A.shape[1] + left[0] * min(left[1], len(sigma)))
    kept = max(1, int((sigma**2 > price).sum()))
    x = rows[:kept] / min(COARSEST, (1 - min(kept / A.shape[1], 1 - COARSEST**-2)) ** -0.5)
    sizes = np.abs(x)
    q = np.floor(sizes + (1 - DEAD_ZONE))
    worth = np.flatnonzero((q * (2 * sizes - q)).sum(axis=1) > price)
    q = np.copysign(q, x).astype(np.int64)
    if not len(worth):
        q[0, int(sizes[0].argmax())] = max(1, int(sizes[0].max()))
        worth = np.array([0])
    q = q[worth]
    return np.asarray(q[np.argsort(-scales_of(q), kind="stable")])
