"""Noise told from signal: how strong it is, and which directions of a train it explains.

Of white noise with deviation sigma, an m x n unfolding has singular values up to about
sigma (sqrt(m) + sqrt(n)) (Marchenko & Pastur 1967; Geman 1980). Orthonormal frames keep white noise white, so
that this holds for each unfolding that TT-SVD meets, in its own size. A direction that is no stronger tells
nothing. Of those that are, the ones near that edge carry more noise than signal: with known sigma the hard
threshold of least mean squared error is lambda(beta) sqrt(n) sigma, n the longer side and beta = m / n
(Gavish & Donoho, The Optimal Hard Threshold for Singular Values is 4 / sqrt(3), 2014, equation 11), for a
matrix of low rank. The unfoldings of scans are of no low rank, and each bond's loss adds to the others': the
edge itself is the rule unless the other one is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from models.errors import InvalidConfig, refuse_non_finite
from models.putt.factorising import tt_svd_by_gram
from models.putt.morton import levels_of_cube, to_morton
from models.tt.train import TensorTrain

NORMAL_MEDIAN = 0.674489750196082
"""Of the magnitude of a standard normal number."""


def marchenko_pastur(rows: int, columns: int) -> float:
    """The largest singular value that noise of deviation 1 is expected to have."""
    return math.sqrt(rows) + math.sqrt(columns)


def gavish_donoho(rows: int, columns: int) -> float:
    """The optimal hard threshold for noise of deviation 1: 4 / sqrt(3) sqrt(n) for a square."""
    short, long = sorted((rows, columns))
    beta = short / long
    root = math.sqrt(beta * beta + 14 * beta + 1)
    return math.sqrt(long * (2 * (beta + 1) + 8 * beta / (beta + 1 + root)))


RULES: dict[str, Callable[[int, int], float]] = {
    "marchenko_pastur": marchenko_pastur,
    "gavish_donoho": gavish_donoho,
}


@dataclass(frozen=True, eq=False)
class Denoised:
    """A train of what noise of deviation `sigma` does not explain."""

    train: TensorTrain
    sigma: float


def noise_deviation(cube: Float[Tensor, "z y x"]) -> float:
    """The deviation of white noise in a cube, by the median magnitude of its finest details.

    Donoho & Johnstone (Ideal Spatial Adaptation by Wavelet Shrinkage, 1994): of the Haar wavelet in all three
    axes, over 0.6745. Blocks of 2 x 2 x 2 equal values (air that was set to 0) say nothing and are left out;
    0 where all are. Raises InvalidShape for what is no cube of side 2^L, NonFinite for values that are not.
    """
    half = 1 << levels_of_cube(cube) - 1
    refuse_non_finite(cube, "values")
    blocks = cube.to(torch.float64).reshape((half, 2) * 3).permute(0, 2, 4, 1, 3, 5).reshape(-1, 8)
    varied = blocks[(blocks != blocks[:, :1]).any(dim=1)]
    if not len(varied):
        return 0.0
    signs = varied.new_tensor([1, -1, -1, 1, -1, 1, 1, -1])
    return float((varied @ signs).abs().median()) / math.sqrt(8) / NORMAL_MEDIAN


def denoised(
    cube: Float[Tensor, "z y x"],
    *,
    sigma: float | None = None,
    rule: str = "marchenko_pastur",
    max_rank: int | None = None,
) -> Denoised:
    """The train of a noisy cube, of as many directions as stand out of noise of deviation `sigma`.

    Without `sigma` it is estimated (`noise_deviation`). Raises InvalidConfig for a rule that there is not and
    a deviation that is none, else as `noise_deviation`.
    """
    if rule not in RULES:
        raise InvalidConfig("rule", rule, f"one of {', '.join(RULES)}")
    sigma = noise_deviation(cube) if sigma is None else sigma
    if not 0 <= sigma < math.inf:
        raise InvalidConfig("sigma", sigma, "at least 0, and finite")
    threshold = RULES[rule]

    def floor(rows: int, columns: int) -> float:
        return (sigma * threshold(rows, columns)) ** 2

    return Denoised(tt_svd_by_gram(to_morton(cube), max_rank=max_rank, floor=floor)[0], sigma)
