"""How far a scan is from those that principal axes of trains were made from.

It is told by what of its train the axes do not span (`Basis.outside`),

    d(x) = sqrt(outside(x) / N),

the root mean square over the N values of a scan. For scans that the axes were made from, all scans of their
patient are left out, of the Gram matrix alone: with G of the others, M their mean and (L, U) the leading
eigenpairs of H G H,

    outside(x) = ||T_x - M||^2 - ||L^{-1/2} U^T H (g(x) - mean g)||^2.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

from models.cpic.projection import ENERGY_TOLERANCE
from models.types import Array


def left_out(G: Float64[Array, "k k"], patients: Sequence[str], count: int) -> Float64[Array, " k"]:
    """The energy of each of K > 1 trains outside of the basis of all other patients' trains, from <T_k, T_l>.

    Of a single patient, outside of that of all other trains.
    """
    names = np.asarray(patients)
    if len(set(patients)) == 1:
        names = np.arange(len(G))
    outside = np.empty(len(G))
    for name in np.unique(names):
        own, others = np.flatnonzero(names == name), np.flatnonzero(names != name)
        g = G[np.ix_(own, others)]
        outside[own] = _outside(G[np.ix_(others, others)], g, np.diag(G)[own], count)
    return outside


def _outside(
    G: Float64[Array, "k k"], g: Float64[Array, "m k"], energy: Float64[Array, " m"], count: int
) -> Float64[Array, " m"]:
    """||T_x - M||^2 - ||f(x)||^2 of trains x with inner products `g` with those of the Gram matrix G."""
    means = G.mean(axis=1)
    centred = G - means - means[:, None] + means.mean()
    eigenvalues, U = np.linalg.eigh((centred + centred.T) / 2)
    kept = max(0, len(G) - count) + np.flatnonzero(eigenvalues[-count:] > ENERGY_TOLERANCE * np.trace(G))
    A = U[:, kept] / np.sqrt(eigenvalues[kept])
    f = (g - means) @ (A - A.mean(axis=0))
    distance = energy - 2 * g.mean(axis=1) + means.mean()
    return np.asarray(np.maximum(distance - np.square(f).sum(axis=1), 0))
