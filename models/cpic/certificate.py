"""How far the approximation may be from the truth: errors on held-out voxels, with a confidence bound.

Errors are centred, per feature: sqrt(mean (T - E)^2 / var E), which is sqrt(1 - R^2): 0 is exact, 1 is as
good as the mean. (The uncentred error says nothing where a feature hardly varies, as after a sigmoid.)

The bound holds with the stated confidence for whichever volume, since both means are of bounded independent
samples: m voxels drawn uniformly with replacement, and never used to choose anything; E in a known range
[a, b], and T clipped to it (clipping never makes T worse). By the empirical Bernstein inequality (Maurer &
Pontil 2009, Theorem 4), with half of the level for each,

    mean (T - E)^2 <= U   from m samples in [0, (b - a)^2],
    var E          >= L   from m / 2 independent pairs, (E - E')^2 / 2 in [0, (b - a)^2 / 2],

and so the centred error is at most sqrt(U / L). Where L <= 0 the samples are too few: there is then no finite
bound, and the certificate says so. Each feature's statement, and the one for all, holds on its own.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.errors import InvalidConfig
from models.types import Int64

Numbers = NDArray[np.float64]

METHOD = "empirical Bernstein (Maurer & Pontil 2009, Theorem 4), level halved between error and variance"
ROUNDING = 1e-12
"""Relative to the range of E: what varies by no more is constant, what errs by no more is exact."""

CONSTANT = "constant on the held-out voxels: a centred error has no meaning"
CONSTANT_EXACT = "constant on the held-out voxels, and reproduced exactly"
TOO_FEW = "the variance is not bounded away from zero: more held-out voxels would give a bound"


@dataclass(frozen=True)
class ErrorBound:
    """The centred error of one feature, or of all together.

    `centred_error` is the estimate, `upper_bound` what it does not exceed with the certificate's confidence;
    None where there is no finite value, and `note` then says why. `max_error` is the largest |T - E| that
    was seen, at `worst_voxel` (z, y, x) and `worst_feature`.
    """

    centred_error: float | None
    upper_bound: float | None
    rms_error: float
    std: float
    max_error: float
    worst_voxel: tuple[int, int, int]
    worst_feature: int
    note: str | None


@dataclass(frozen=True)
class Certificate:
    """Error bounds from `held_out` voxels at level `confidence`, for all features together and for each."""

    held_out: int
    confidence: float
    overall: ErrorBound
    features: tuple[ErrorBound, ...]
    method: str = METHOD

    def to_json(self) -> dict[str, Any]:
        """As numbers, strings, lists and None; no NaN and no infinity."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Certificate:
        """What `to_json` wrote."""
        features = tuple(_bound_from_json(feature) for feature in data["features"])
        return cls(**{**data, "overall": _bound_from_json(data["overall"]), "features": features})


def certify(
    approximation: Numbers, truth: Numbers, voxels: Int64, value_range: tuple[float, float], confidence: float
) -> Certificate:
    """The certificate of T from its values and the truth (m, f) at held-out voxels (m, 3) in (z, y, x).

    Raises InvalidConfig for fewer than 4 voxels or a confidence outside (0, 1).
    """
    if len(truth) < 4:
        raise InvalidConfig("held_out", len(truth), "at least 4")
    if not 0 < confidence < 1:
        raise InvalidConfig("confidence", confidence, "between 0 and 1")
    low, high = value_range
    error = np.clip(approximation, low, high) - truth
    span, level = high - low, 1 - confidence
    features = range(truth.shape[1])
    return Certificate(
        held_out=len(truth),
        confidence=confidence,
        overall=_bound(error, truth, voxels, span, level),
        features=tuple(_bound(error[:, [f]], truth[:, [f]], voxels, span, level, f) for f in features),
    )


def bernstein_margin(samples: Numbers, span: float, level: float) -> float:
    """Maurer & Pontil (2009), Theorem 4: how far, to one side, the true mean may be.

    It is farther with probability `level` at most. `samples` (n,) are independent, from an interval of
    length `span`.
    """
    n, log = len(samples), math.log(2 / level)
    return math.sqrt(2 * float(samples.var(ddof=1)) * log / n) + 7 * span * log / (3 * (n - 1))


def _bound(
    error: Numbers, truth: Numbers, voxels: Int64, span: float, level: float, first_feature: int = 0
) -> ErrorBound:
    """The bound for the columns of `error` and `truth` (m, f), averaged over them."""
    squares = np.square(error).mean(axis=1)
    half = len(truth) // 2
    pairs = np.square(truth[:half] - truth[half : 2 * half]).mean(axis=1) / 2
    constant = bool(np.ptp(truth, axis=0).max() <= ROUNDING * span)
    mean_square = float(squares.mean())
    variance = 0.0 if constant else float(truth.var(axis=0, ddof=1).mean())
    row, column = np.unravel_index(int(np.abs(error).argmax()), error.shape)
    worst = float(np.abs(error[row, column]))
    centred, upper, note = None, None, None
    if constant:
        exact = worst <= ROUNDING * span
        centred, note = (0.0, CONSTANT_EXACT) if exact else (None, CONSTANT)
    else:
        centred = math.sqrt(mean_square / variance)
        most = mean_square + bernstein_margin(squares, span**2, level / 2)
        least = float(pairs.mean()) - bernstein_margin(pairs, span**2 / 2, level / 2)
        upper, note = (math.sqrt(most / least), None) if least > 0 else (None, TOO_FEW)
    z, y, x = voxels[row].tolist()
    return ErrorBound(
        centred_error=centred,
        upper_bound=upper,
        rms_error=math.sqrt(mean_square),
        std=math.sqrt(variance),
        max_error=worst,
        worst_voxel=(z, y, x),
        worst_feature=first_feature + int(column),
        note=note,
    )


def _bound_from_json(data: dict[str, Any]) -> ErrorBound:
    return ErrorBound(**{**data, "worst_voxel": tuple(data["worst_voxel"])})
