"""Noise told from signal: how strong it is, and which directions of a train it explains.

Of white noise with deviation sigma, an m x n unfolding has singular values up to about
sigma (sqrt(m) + sqrt(n)) (Marchenko & Pastur 1967; Geman 1980). Orthonormal frames keep white noise white, so
that this holds for each unfolding that TT-SVD meets, in its own size. A direction that is no stronger tells
nothing. Of those that are, the ones near that edge carry more noise than signal: with known sigma the hard
threshold of least mean squared error is lambda(beta) sqrt(n) sigma, n the longer side and beta = m / n
(Gavish & Donoho, The Optimal Hard Threshold for Singular Values is 4 / sqrt(3), 2014, equation 11), for a
matrix of low rank. The unfoldings of scans are of no low rank, and each bond's loss adds to the others': the
edge itself is the rule unless the other one is asked for.

A train's cells lie where its digits put them; the noise that it keeps depends on where that is, what it keeps
of the scan does so less. So the cube is moved round by a few random shifts, and the results, moved back, are
averaged (cycle spinning, Coifman & Donoho, Translation-Invariant De-Noising, 1995). The average is dense, and
better than any one train; the train that stays is that of the average, to a quarter of the noise's edge.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from models.errors import InvalidConfig, InvalidShape, refuse_non_finite
from models.putt.factorising import tt_svd_by_gram
from models.putt.morton import from_morton, to_morton
from models.training import ignore
from models.tt.train import TensorTrain
from models.types import Report

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


AVERAGED_EDGE = 0.25
"""Of the noise's edge, that the train of an average keeps."""
MOST_SHIFTS = 1024


@dataclass(frozen=True, eq=False)
class Denoised:
    """A train of what noise of deviation `sigma` does not explain."""

    train: TensorTrain
    sigma: float


@dataclass(frozen=True, eq=False)
class Averaged:
    """The mean of what such trains of a moved volume say, and a train of that mean.

    The train is that of the volume in the first corner of the smallest cube of side 2^L, reflected beyond.
    """

    values: Float64[Tensor, "z y x"]
    train: TensorTrain
    sigma: float


def noise_deviation(volume: Float[Tensor, "z y x"]) -> float:
    """The deviation of white noise in a volume, by the median magnitude of its finest details.

    Donoho & Johnstone (Ideal Spatial Adaptation by Wavelet Shrinkage, 1994): of the Haar wavelet in all
    three axes, over 0.6745; in those axes that have more than one voxel. Blocks of 2 x 2 x 2 equal values
    (air that was set to 0) say nothing and are left out; 0 where all are. Raises InvalidShape for what has
    not three axes, NonFinite for values that are not.
    """
    if volume.ndim != 3 or not volume.numel():
        raise InvalidShape(f"a volume has three axes of at least a voxel, not {tuple(volume.shape)}")
    refuse_non_finite(volume, "values")
    details = least = most = volume.to(torch.float64)
    for axis, size in enumerate(volume.shape):
        if size > 1:
            even, odd = ((slice(None),) * axis + (slice(k, size - size % 2, 2),) for k in (0, 1))
            details = (details[even] - details[odd]) / math.sqrt(2)
            least, most = torch.minimum(least[even], least[odd]), torch.maximum(most[even], most[odd])
    varied = details[least < most]
    return float(varied.abs().median()) / NORMAL_MEDIAN if varied.numel() else 0.0


def denoised(
    cube: Float[Tensor, "z y x"],
    *,
    sigma: float | None = None,
    rule: str = "marchenko_pastur",
    max_rank: int | None = None,
) -> Denoised:
    """The train of a noisy cube, of as many directions as stand out of noise of deviation `sigma`.

    Without `sigma` it is estimated (`noise_deviation`). Raises InvalidConfig for a rule that there is not and
    a deviation that is none, InvalidShape for what is no cube of side 2^L, NonFinite for values that are not.
    """
    edge = Edge(_checked(sigma, cube, rule), rule)
    return Denoised(tt_svd_by_gram(to_morton(cube), max_rank=max_rank, floor=edge)[0], edge.sigma)


def denoise(
    values: Float[Tensor, "z y x"],
    *,
    sigma: float | None = None,
    rule: str = "marchenko_pastur",
    max_rank: int | None = None,
    shifts: int = 8,
    seed: int = 0,
    report: Report = ignore,
) -> Averaged:
    """A volume of any shape without what noise of deviation `sigma` explains, averaged over random shifts.

    Without `sigma` it is estimated (`noise_deviation`). Shifts are drawn from the seed. `max_rank` caps the
    train that is returned. `report` is called with the shifts done, and cancels by raising. Raises
    InvalidConfig for a rule that there is not, a deviation that is none and a number of shifts that is none,
    InvalidShape for a rank below 1, else as `noise_deviation`.
    """
    if not 1 <= shifts <= MOST_SHIFTS:
        raise InvalidConfig("shifts", shifts, f"between 1 and {MOST_SHIFTS:,}")
    sigma = _checked(sigma, values, rule)
    mean = _averaged(_reflected(values.to(torch.float64)), sigma, rule, shifts, seed, report)
    train = denoised(mean, sigma=AVERAGED_EDGE * sigma, rule=rule, max_rank=max_rank).train
    return Averaged(mean[tuple(slice(n) for n in values.shape)], train, sigma)


@dataclass(frozen=True)
class Edge:
    """The squared singular value up to which a direction is noise."""

    sigma: float
    rule: str

    def __call__(self, rows: int, columns: int) -> float:
        """Of an unfolding; infinite where a float does not hold it."""
        edge = self.sigma * RULES[self.rule](rows, columns)
        return edge * edge


def _checked(sigma: float | None, volume: Tensor, rule: str) -> float:
    """The deviation, estimated where it is not given."""
    if rule not in RULES:
        raise InvalidConfig("rule", rule, f"one of {', '.join(RULES)}")
    sigma = noise_deviation(volume) if sigma is None else sigma
    if not 0 <= sigma < math.inf:
        raise InvalidConfig("sigma", sigma, "at least 0, and finite")
    return sigma


def _averaged(cube: Tensor, sigma: float, rule: str, shifts: int, seed: int, report: Report) -> Tensor:
    """The mean of what trains of the shifted cube keep, shifted back."""
    generator, total = torch.Generator().manual_seed(seed), torch.zeros_like(cube)
    for done in range(shifts):
        report("denoising", done, shifts)
        by = torch.randint(len(cube), (3,), generator=generator).tolist()
        train = denoised(torch.roll(cube, by, (0, 1, 2)), sigma=sigma, rule=rule).train
        total += torch.roll(from_morton(train.full()), [-step for step in by], (0, 1, 2))
    report("denoising", shifts, shifts)
    return total / shifts


def _reflected(volume: Tensor) -> Tensor:
    """In the first corner of the smallest cube of side 2^L, reflected beyond its last voxels."""
    side = max(2, 1 << (max(volume.shape) - 1).bit_length())
    for axis, size in enumerate(volume.shape):
        places = torch.arange(side, device=volume.device) % (2 * size)
        volume = volume.index_select(axis, torch.minimum(places, 2 * size - 1 - places))
    return volume
