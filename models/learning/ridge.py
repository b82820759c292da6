"""Ridge regression for many penalties at once, beside covariates that are not penalised.

For rows X, covariates C (both centred) and targets y it minimises

    ||y - a - X w - C c||^2 + penalty ||w||^2 + e ||c||^2

with a tiny e, which keeps covariates finite that depend on each other or are as many as the rows. Without w,
the best c is B (y - X w) with B = (C^T C + e I)^{-1} C^T; what remains is ridge regression with M = I - C B:
with X' = M^{1/2} X, y' = M^{1/2} y, C = U S V^T,

    M^{1/2} = I - U U^T + U diag(sqrt(e / (S^2 + e))) U^T,    w = A (b / (E + penalty))

from one eigendecomposition, X'^T X' = A E A^T and b = A^T X'^T y', or X' X'^T = U' E U'^T, A = X'^T U' and
b = U'^T y', whichever is smaller.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from models.types import Array, Int64

FREE_PENALTY = 1e-8
"""e, for each row: of covariates that are standardised."""


@dataclass(frozen=True, eq=False)
class RidgePath:
    """The regressions of some rows for all penalties. Make one with `RidgePath.of`."""

    row_mean: Float64[Array, " r"]
    free_mean: Float64[Array, " t"]
    target_mean: float
    free_alone: Float64[Array, " t"]
    free_of_rows: Float64[Array, "t r"]
    basis: Float64[Array, "r k"]
    eigenvalues: Float64[Array, " k"]
    projections: Float64[Array, " k"]

    @classmethod
    def of(
        cls, rows: Float64[Array, "n r"], free: Float64[Array, "n t"], targets: Float64[Array, " n"]
    ) -> RidgePath:
        """From one eigendecomposition. `rows` and `free` are of order 1, and not centred."""
        X, C, y = rows - rows.mean(axis=0), free - free.mean(axis=0), targets - targets.mean()
        e = FREE_PENALTY * len(rows)
        U, S, Vh = np.linalg.svd(C, full_matrices=False)
        B = (Vh.T * (S / (np.square(S) + e))) @ U.T
        shrinking = 1 - np.sqrt(e / (np.square(S) + e))

        def half(values: Array) -> Array:
            return np.asarray(values - (U * shrinking) @ (U.T @ values))

        basis, eigenvalues, projections = _decomposed(half(X), half(y))
        return cls(
            row_mean=rows.mean(axis=0),
            free_mean=free.mean(axis=0),
            target_mean=float(targets.mean()),
            free_alone=B @ y,
            free_of_rows=B @ X,
            basis=basis,
            eigenvalues=eigenvalues,
            projections=projections,
        )

    def weights(self, penalties: Float64[Array, " g"]) -> Float64[Array, "r g"]:
        """w for each penalty."""
        scaled = self.projections[:, None] / (self.eigenvalues[:, None] + penalties)
        return np.asarray(self.basis @ scaled)

    def free_weights(self, penalties: Float64[Array, " g"]) -> Float64[Array, "t g"]:
        """c for each penalty."""
        return np.asarray(self.free_alone[:, None] - self.free_of_rows @ self.weights(penalties))

    def predictions(
        self, rows: Float64[Array, "m r"], free: Float64[Array, "m t"], penalties: Float64[Array, " g"]
    ) -> Float64[Array, "m g"]:
        """What each penalty's regression says of other rows."""
        by_rows = (rows - self.row_mean) @ self.weights(penalties)
        by_free = (free - self.free_mean) @ self.free_weights(penalties)
        return np.asarray(self.target_mean + by_rows + by_free)


def out_of_fold(
    rows: Float64[Array, "n r"],
    free: Float64[Array, "n t"],
    targets: Float64[Array, " n"],
    folds: Int64,
    penalties: Float64[Array, " g"],
) -> Float64[Array, "n g"]:
    """What the regressions of all other folds say of each row, for each penalty."""
    told = np.empty((len(rows), len(penalties)))
    for fold in np.unique(folds):
        inside, others = folds == fold, folds != fold
        path = RidgePath.of(rows[others], free[others], targets[others])
        told[inside] = path.predictions(rows[inside], free[inside], penalties)
    return told


def _decomposed(
    X: Float64[Array, "n r"], y: Float64[Array, " n"]
) -> tuple[Float64[Array, "r k"], Float64[Array, " k"], Float64[Array, " k"]]:
    """(A, E, b), of the smaller of the two Gram matrices."""
    if X.shape[1] <= X.shape[0]:
        E, A = np.linalg.eigh(X.T @ X)
        return A, np.maximum(E, 0), A.T @ (X.T @ y)
    E, U = np.linalg.eigh(X @ X.T)
    return X.T @ U, np.maximum(E, 0), U.T @ y
