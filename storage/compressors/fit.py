"""A volume compressed by the setting that meets a goal: a ratio, a PSNR, or a bound on every voxel.

The setting is searched (`search`) with all of the values. For a large volume a mosaic of its blocks is
searched first: the whole is tried from where that ended. Of the files that were tried and meet the goal the
smallest is the answer, or for a ratio the best: sizes and errors need not change quite evenly, nor always one
way.
"""

from __future__ import annotations

from dataclasses import dataclass

from storage.compressors.base import Compressor, spread
from storage.compressors.frame import Array, opened
from storage.compressors.goals import Goal, goal
from storage.compressors.mosaic import mosaic
from storage.compressors.ranking import rank
from storage.compressors.report import Report, reported
from storage.compressors.search import Start, sought

ROUGHLY = 10.0
"""On a mosaic a search ends at an excess so many times as large."""


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

    @property
    def compressor(self) -> str:
        """Whose bytes they are."""
        return opened(self.data).compressor


def fitted(
    compressor: Compressor,
    values: Array,
    *,
    ratio: float | None = None,
    psnr: float | None = None,
    bound: float | None = None,
    peak: float | None = None,
) -> Fitted:
    """Values (z, y, x) or (t, z, y, x) compressed so that a goal is met, and no better than that needs.

    The goal is one of `ratio`, source bytes for each stored byte, at least; `psnr`, dB, at least; `bound`, an
    error of every voxel in units of the values, at most. The `peak` of a PSNR is the values' range unless it
    is given.

    Raises UnreachableTarget, which says what can be had, and as `goals.goal` and `Compressor.compress`.
    """
    wanted = goal(ratio=ratio, psnr=psnr, bound=bound)
    part, start = mosaic(values), None
    if part is not None and compressor.setting(values) is not None:
        peak_of_part = spread(values) if peak is None else peak
        start = searched(compressor, part, wanted, peak_of_part, rough=True).end
    return searched(compressor, values, wanted, peak, start).answer()


@dataclass(eq=False)
class Search:
    """What was tried of a compressor: the best file that meets the goal, and the nearest that does not."""

    compressor: Compressor
    wanted: Goal
    best: Fitted | None = None
    nearest: Fitted | None = None
    end: Start | None = None
    """Where it ended; None where there is nothing to set."""

    def learn(self, trial: Fitted) -> float:
        """What came of a trial: by how much it exceeds the goal."""
        excess = self.wanted.of(trial.report)
        kept = self.best if excess >= 0 else self.nearest
        if kept is None or rank(trial.report, self.wanted) < rank(kept.report, self.wanted):
            if excess >= 0:
                self.best = trial
            else:
                self.nearest = trial
        return excess

    @property
    def found(self) -> Fitted:
        """The answer, or what comes nearest to it."""
        found = self.nearest if self.best is None else self.best
        assert found is not None
        return found

    def answer(self) -> Fitted:
        """What meets the goal. Raises UnreachableTarget."""
        if self.best is None:
            raise unreachable(self.compressor.name, self.found, self.wanted)
        return self.best


def searched(
    compressor: Compressor,
    values: Array,
    wanted: Goal,
    peak: float | None,
    start: Start | None = None,
    *,
    rough: bool = False,
) -> Search:
    """All that was tried on values, from a `start` on. Raises as `Compressor.compress`."""
    search = Search(compressor, wanted)
    scale = compressor.setting(values)
    if scale is None:
        search.learn(tried(compressor, values, {}, peak))
        return search
    name = scale.name

    def excess(number: float) -> float:
        return search.learn(tried(compressor, values, {name: number}, peak))

    enough = wanted.near * (ROUGHLY if rough else 1)
    search.end = sought(excess, scale, wanted, enough=enough, start=start)
    return search


def tried(compressor: Compressor, values: Array, setting: dict[str, float], peak: float | None) -> Fitted:
    """A file, and what it decodes to. Raises as `Compressor.compress`."""
    data = compressor.compress(values, **setting)
    told = compressor.decompress(data)
    return Fitted(data, setting, reported(values, told, len(data), peak=peak, with_ssim=False))


def unreachable(name: str, nearest: Fitted, wanted: Goal) -> UnreachableTarget:
    """The error, which says what can be had."""
    report = nearest.report
    by = ", ".join(f"{key} = {number:g}" for key, number in nearest.setting.items()) or "without loss"
    return UnreachableTarget(
        f"{name} cannot reach {wanted} on these values; nearest is a ratio of "
        f"{report.ratio:.4g}, {report.psnr:.2f} dB, an error of at most {report.max_error:g} ({by})",
        nearest,
    )
