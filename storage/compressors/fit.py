"""The setting of a compressor for what is wanted of its files: a ratio, a PSNR, or a bound on every voxel.

It is bisected in its logarithm. Of the files that were tried and do what is wanted the nearest to it is the
answer: sizes and errors need not change quite evenly, nor always one way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from storage.compressors.base import Compressor, Setting
from storage.compressors.frame import Array
from storage.compressors.report import Report, reported

TRIALS = 16
NEAR_RATIO = 1.005
"""A ratio that exceeds the target by less ends the search."""
NEAR_PSNR = 0.02
"""Likewise, dB."""


class UnreachableTarget(ValueError):
    """No setting does what was wanted. `best` is what comes nearest."""

    def __init__(self, said: str, best: Fitted) -> None:
        super().__init__(said)
        self.best = best


@dataclass(frozen=True, eq=False)
class Fitted:
    """A compressed volume, by what setting, and how well it decodes (without SSIM)."""

    data: bytes
    setting: dict[str, float]
    report: Report


@dataclass(frozen=True)
class Target:
    """What is wanted of a file."""

    said: str
    met: Callable[[Report], bool]
    near: Callable[[Report], bool]
    coarser_meets: bool
    """Whether it is coarser settings that do it."""


def target(*, ratio: float | None = None, psnr: float | None = None, bound: float | None = None) -> Target:
    """One of: source bytes for each stored byte, at least; dB, at least; an error of every voxel, at most.
    Raises ValueError for none and for several, and for a number that nothing can meet.
    """
    given = {"ratio": ratio, "psnr": psnr, "bound": bound}
    wanted = {name: value for name, value in given.items() if value is not None}
    if len(wanted) != 1:
        raise ValueError(f"one of ratio, psnr and bound is the target, got {', '.join(wanted) or 'none'}")
    ((name, value),) = wanted.items()
    if not value >= 0:
        raise ValueError(f"{name} = {value}: must be at least 0")
    if name == "ratio":
        return Target(
            f"a ratio of {value:g}",
            lambda report: report.ratio >= value,
            lambda report: report.ratio <= value * NEAR_RATIO,
            coarser_meets=True,
        )
    if name == "psnr":
        return Target(
            f"{value:g} dB",
            lambda report: report.psnr >= value,
            lambda report: report.psnr <= value + NEAR_PSNR,
            coarser_meets=False,
        )
    return Target(
        f"an error of at most {value:g} on every voxel",
        lambda report: report.max_error <= value,
        lambda report: False,
        coarser_meets=False,
    )


def fitted(
    compressor: Compressor,
    values: Array,
    *,
    ratio: float | None = None,
    psnr: float | None = None,
    bound: float | None = None,
    peak: float | None = None,
) -> Fitted:
    """Values compressed so that a target is met, and no better than that needs. The `peak` of a PSNR is the
    values' range unless it is given.

    Raises UnreachableTarget, which says what can be had, and as `target` and `Compressor.compress`.
    """
    wanted = target(ratio=ratio, psnr=psnr, bound=bound)
    scale = compressor.setting(values)
    if scale is None:
        return _checked(compressor, _tried(compressor, values, {}, peak), wanted)
    return _bisected(compressor, values, scale, wanted, peak)


def _bisected(
    compressor: Compressor, values: Array, scale: Setting, wanted: Target, peak: float | None
) -> Fitted:
    fine, coarse, best = 0.0, 1.0, None
    for _ in range(TRIALS):
        share = (fine + coarse) / 2
        trial = _tried(compressor, values, {scale.name: scale.at(share)}, peak)
        met = wanted.met(trial.report)
        if met:
            best = _nearer(best, trial, wanted)
            if wanted.near(trial.report):
                break
        if met == wanted.coarser_meets:
            coarse = share
        else:
            fine = share
    if best is not None:
        return best
    end = scale.coarsest if wanted.coarser_meets else scale.finest
    return _checked(compressor, _tried(compressor, values, {scale.name: end}, peak), wanted)


def _nearer(best: Fitted | None, trial: Fitted, wanted: Target) -> Fitted:
    """The larger of two files that reach a ratio; the smaller of two that are good enough."""
    if best is None:
        return trial
    sizes = len(trial.data) - len(best.data)
    return trial if (sizes > 0) == wanted.coarser_meets else best


def _checked(compressor: Compressor, end: Fitted, wanted: Target) -> Fitted:
    if wanted.met(end.report):
        return end
    report = end.report
    by = ", ".join(f"{name} = {number:g}" for name, number in end.setting.items()) or "without loss"
    raise UnreachableTarget(
        f"{compressor.name} cannot reach {wanted.said} on these values; nearest is a ratio of "
        f"{report.ratio:.4g}, {report.psnr:.2f} dB, an error of at most {report.max_error:g} ({by})",
        end,
    )


def _tried(compressor: Compressor, values: Array, setting: dict[str, float], peak: float | None) -> Fitted:
    data = compressor.compress(values, **setting)
    told = compressor.decompress(data)
    return Fitted(data, setting, reported(values, told, len(data), peak=peak, with_ssim=False))
