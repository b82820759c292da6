"""Features in few coordinates: standardised, and along the principal axes of the rows they were learnt on.

Standardised features are X = (features - centre) / deviation / sqrt(number that vary), so that rows have a
mean square norm of 1 whatever the number of features. X = U S V^T gives coordinates X V of at most as many
dimensions as there are rows. What is rotation invariant, as ridge penalties are, may be computed in them.

How far a row lies from those it was learnt from is told in the metric of a ridge penalty, the leverage

    d(x) = (x - m)^T (X^T X + penalty I)^{-1} (x - m)
         = sum_j (V^T x)_j^2 / (S_j^2 + penalty) + ||x_out||^2 / penalty

with m the rows' mean and x_out what the axes do not span. A new row was not among those; rows learnt from are
made comparable by leaving all rows of their group out. With B = I + 11^T / n' for n' other rows and H the
block of X (X^T X + penalty I)^{-1} X^T of the group, their distances are the diagonal of
B H (B^{-1} - H)^{-1} (Woodbury; centre and scatter are those of the others, the deviations those of all).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from models.types import Array, Int64

VARIES = 1e-12
"""Relative to a feature's size: with less deviation it is constant, but for rounding."""
SPANS = 1e-13
"""Relative to the largest singular value: what is less is rounding."""


def deviations(features: Float64[Array, "n p"]) -> Float64[Array, " p"]:
    """Standard deviations of columns; 0 where all that varies is rounding."""
    deviation = features.std(axis=0)
    return np.where(deviation > VARIES * np.abs(features).max(axis=0, initial=0), deviation, 0.0)


@dataclass(frozen=True, eq=False)
class Standard:
    """How features are standardised: (features - centre) * inverse_scale. Constant ones become 0."""

    centre: Float64[Array, " p"]
    inverse_scale: Float64[Array, " p"]

    @classmethod
    def of(cls, features: Float64[Array, "n p"], *, proportional: bool = False) -> Standard:
        """By these rows; their mean square norm is then 1, or 0 where nothing varies.

        `proportional` features have one scale for all: each weighs by its own deviation.
        """
        centre, deviation = features.mean(axis=0), deviations(features)
        varies = deviation > 0
        count = max(1, int(varies.sum()))
        each = np.full_like(deviation, np.sqrt(np.square(deviation).sum() / count))
        scale = np.where(varies, each if proportional else deviation, 1.0) * np.sqrt(count)
        return cls(centre, np.where(varies, 1 / scale, 0.0))

    def __call__(self, features: Float64[Array, "m p"]) -> Float64[Array, "m p"]:
        """The rows, standardised."""
        return (features - self.centre) * self.inverse_scale


@dataclass(frozen=True, eq=False)
class PrincipalAxes:
    """The axes V (p, r) of standardised rows, and the squares S^2 (r,) of the singular values."""

    axes: Float64[Array, "p r"]
    energies: Float64[Array, " r"]

    def distances(self, rows: Float64[Array, "m p"], penalty: float) -> Float64[Array, " m"]:
        """d(x) of standardised rows that the axes were not made from."""
        inside = np.square(rows @ self.axes)
        outside = np.maximum(np.square(rows).sum(axis=1) - inside.sum(axis=1), 0)
        return np.asarray((inside / (self.energies + penalty)).sum(axis=1) + outside / penalty)


def principal_axes(rows: Float64[Array, "n p"]) -> tuple[PrincipalAxes, Float64[Array, "n r"]]:
    """The axes of standardised (so centred) rows, and the rows' coordinates along them.

    Rows that are equal, as those of one scan are, cost nothing but the first.
    """
    first, number = distinct_rows(rows)
    if len(first) < rows.shape[1]:
        span, coordinates = np.linalg.qr(rows[first].T)
        U, S, Vh = np.linalg.svd(coordinates.T[number], full_matrices=False)
        V = span @ Vh.T
    else:
        U, S, Vh = np.linalg.svd(rows, full_matrices=False)
        V = Vh.T
    negligible = SPANS * S.max(initial=0) * max(rows.shape)
    spans = np.greater(S, negligible)
    axes = PrincipalAxes(np.ascontiguousarray(V[:, spans]), np.square(S[spans]))
    return axes, U[:, spans] * S[spans]


def left_out_distances(
    coordinates: Float64[Array, "n r"], energies: Float64[Array, " r"], groups: Int64, penalty: float
) -> Float64[Array, " n"]:
    """d(x) of each row that the axes were made from, as if all rows of its group had not been there.

    `groups` (n,) are numbers; there are two groups or more.
    """
    distances = np.empty(len(coordinates))
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group)
        own = coordinates[rows]
        H = own / (energies + penalty) @ own.T
        ones = np.ones((len(rows), len(rows)))
        others = len(coordinates) - len(rows)
        inverse_B = np.eye(len(rows)) - ones / len(coordinates)
        distances[rows] = np.diag((H + ones / others @ H) @ np.linalg.inv(inverse_B - H))
    return distances


def distinct_rows(rows: Float64[Array, "n p"]) -> tuple[Int64, Int64]:
    """The first of each kind of equal rows (d,), ascending, and which of them each row equals (n,)."""
    seen: dict[bytes, int] = {}
    number = [seen.setdefault(row.tobytes(), len(seen)) for row in np.ascontiguousarray(rows)]
    indices = np.array(number, np.int64)
    return np.unique(indices, return_index=True)[1], indices
