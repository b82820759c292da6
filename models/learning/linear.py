"""Linear heads in closed form: ridge regression, and its leave-one-out residuals with a gradient."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from models.errors import InvalidConfig, InvalidShape, refuse_non_finite


def leave_one_out(
    features: Float[Tensor, "b p"], targets: Float[Tensor, " b"], penalty: float
) -> Float64[Tensor, " b"]:
    """What ridge regression with an intercept misses each row by when fitted to all others.

    Differentiable in both. The fit minimises sum_i (y_i - a - x_i w)^2 + penalty ||w||^2. Its hat matrix H
    gives the residuals without row i as (y - H y)_i / (1 - H_ii) (Allen, 1974; Golub, Heath & Wahba, 1979).
    With centred features X and any c > 0, I - H = penalty G where

        G = (X X^T + penalty I + c 11^T / b)^{-1} - 11^T / (b (penalty + c)),

    so that they are (G y)_i / G_ii: a quotient of numbers of one size, also where H_ii nears 1. In float64;
    the relative error is about 1e-16 ||X||^2 / penalty. `penalty` has the unit of the features' squares:
    standardise them. Raises InvalidShape for fewer than two rows or shapes that differ, InvalidConfig for a
    penalty that is not above 0, and NonFinite.
    """
    b = len(features)
    if features.ndim != 2 or targets.shape != (b,) or b < 2:
        raise InvalidShape(
            f"features {tuple(features.shape)} and targets {tuple(targets.shape)} must be (b, p) and (b,), "
            "of at least 2 rows"
        )
    if not 0 < penalty < float("inf"):
        raise InvalidConfig("penalty", penalty, "finite and above 0")
    refuse_non_finite(features, "features")
    refuse_non_finite(targets, "targets")
    X, y = features.double(), targets.double()
    X, y = X - X.mean(dim=0), y - y.mean()
    K = X @ X.T
    c = float(K.detach().diagonal().mean()) + penalty
    eye = torch.eye(b, dtype=K.dtype, device=K.device)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(K + penalty * eye + c / b))
    G = inverse - 1 / (b * (penalty + c))
    return G @ y / G.diagonal()
