"""Multinomial logistic regression with L2 penalties, by Newton's method with conjugate gradients.

Minimises sum_i -log p_i(y_i) + 1/2 sum_d penalties_d ||Theta_d||^2 over Theta (d, K) with p_i the softmax of
x_i Theta. The Hessian is only ever applied to a direction V, as X^T (P o XV - P (P o XV) 1) + penalties V
(Lin, Weng & Keerthi, Trust region Newton method for large-scale logistic regression, JMLR 2008); columns
along principal axes make its diagonal a good preconditioner. Steps are halved until they descend (Armijo).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from models.learning.ridge import FREE_PENALTY
from models.types import Array, Int64

TOLERANCE = 1e-9
"""Of the gradient's largest entry, for each row."""
MOST_STEPS = 100
SUFFICIENT = 1e-4
"""Of the descent that the gradient promises, what a step must keep."""
SMALLEST_STEP = 1e-12
ROUNDING = 1e-14
"""Relative, of the objective."""


def fitted(
    rows: Float64[Array, "n d"],
    classes: Int64,
    count: int,
    penalties: Float64[Array, " d"],
    start: Float64[Array, "d k"] | None = None,
) -> Float64[Array, "d k"]:
    """Theta, to `TOLERANCE` or as far as floating point descends. Penalties are above 0; so it is finite."""
    Y = np.eye(count)[classes]
    theta = np.zeros((rows.shape[1], count)) if start is None else start
    for _ in range(MOST_STEPS):
        P = np.exp(log_softmax(rows @ theta))
        gradient = rows.T @ (P - Y) + penalties[:, None] * theta
        if np.abs(gradient).max() <= TOLERANCE * len(rows):
            break
        direction = _newton_direction(rows, P, penalties, gradient)
        moved = _descended(rows, Y, penalties, theta, direction, float((gradient * direction).sum()))
        if moved is None:
            break
        theta = moved
    return theta


@dataclass(frozen=True, eq=False)
class LogisticPath:
    """The regressions of some rows for many penalties. Make one with `LogisticPath.of`.

    Rows and covariates are centred, and stand beside a column of ones; only the rows' weights have more than
    a tiny penalty.
    """

    row_mean: Float64[Array, " r"]
    free_mean: Float64[Array, " t"]
    designed: Float64[Array, "n d"]
    classes: Int64
    count: int

    @classmethod
    def of(
        cls, rows: Float64[Array, "n r"], free: Float64[Array, "n t"], classes: Int64, count: int
    ) -> LogisticPath:
        """For `classes` (n,), numbers below `count`."""
        means = rows.mean(axis=0), free.mean(axis=0)
        return cls(*means, _beside_ones(rows - means[0], free - means[1]), classes, count)

    def design(self, rows: Float64[Array, "m r"], free: Float64[Array, "m t"]) -> Float64[Array, "m d"]:
        """Other rows, as they are multiplied with Theta."""
        return _beside_ones(rows - self.row_mean, free - self.free_mean)

    def along(self, penalties: Float64[Array, " g"]) -> Iterator[Float64[Array, "d k"]]:
        """Theta for each penalty in turn, each from the one before: give the largest first."""
        n, d = self.designed.shape
        penalised = np.arange(d) < len(self.row_mean)
        theta = np.zeros((d, self.count))
        for penalty in penalties.tolist():
            each = np.where(penalised, penalty, FREE_PENALTY * n)
            theta = fitted(self.designed, self.classes, self.count, each, theta)
            yield theta


def _beside_ones(rows: Float64[Array, "m r"], free: Float64[Array, "m t"]) -> Float64[Array, "m d"]:
    return np.concatenate([rows, free, np.ones((len(rows), 1))], axis=1)


def log_softmax(scores: Float64[Array, "n k"]) -> Float64[Array, "n k"]:
    """log of the softmax of each row."""
    shifted = scores - scores.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def _objective(
    rows: Float64[Array, "n d"],
    Y: Float64[Array, "n k"],
    penalties: Float64[Array, " d"],
    theta: Float64[Array, "d k"],
) -> float:
    likelihood = (Y * log_softmax(rows @ theta)).sum()
    return float((penalties[:, None] * np.square(theta)).sum() / 2 - likelihood)


def _newton_direction(
    rows: Float64[Array, "n d"],
    P: Float64[Array, "n k"],
    penalties: Float64[Array, " d"],
    gradient: Float64[Array, "d k"],
) -> Float64[Array, "d k"]:
    """-H^{-1} gradient, the more exactly the smaller the gradient is."""
    diagonal = np.square(rows).T @ (P * (1 - P)) + penalties[:, None]
    size = float(np.sqrt(np.square(gradient).sum()))
    enough = min(0.1, np.sqrt(size / len(rows))) * size
    solution = np.zeros_like(gradient)
    residual = -gradient
    preconditioned = residual / diagonal
    direction, product = preconditioned, float((residual * preconditioned).sum())
    for _ in range(gradient.size):
        if np.sqrt(np.square(residual).sum()) <= enough:
            break
        scores = P * (rows @ direction)
        image = rows.T @ (scores - P * scores.sum(axis=1, keepdims=True)) + penalties[:, None] * direction
        step = product / float((direction * image).sum())
        solution = solution + step * direction
        residual = residual - step * image
        preconditioned = residual / diagonal
        product, before = float((residual * preconditioned).sum()), product
        direction = preconditioned + product / before * direction
    return solution


def _descended(
    rows: Float64[Array, "n d"],
    Y: Float64[Array, "n k"],
    penalties: Float64[Array, " d"],
    theta: Float64[Array, "d k"],
    direction: Float64[Array, "d k"],
    slope: float,
) -> Float64[Array, "d k"] | None:
    """The first of the steps 1, 1/2, 1/4, ... that descends enough; None where none does."""
    here, step = _objective(rows, Y, penalties, theta), 1.0
    while step > SMALLEST_STEP:
        moved = theta + step * direction
        if _objective(rows, Y, penalties, moved) <= here * (1 + ROUNDING) + SUFFICIENT * step * slope:
            return moved
        step /= 2
    return None
