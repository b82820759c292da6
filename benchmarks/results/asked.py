"""All that is asked of the benchmarks, measured or not: the targets that each of them declares."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.provenance import digest
from benchmarks.results.runs import Run, Runs
from benchmarks.targets import Target

CONTROLS = "cohorts.controls"
AHEAD_ON = Target("cohorts where cpic is ahead of the best simple regressor", 1, at_least=True)


@dataclass(frozen=True)
class Asked:
    """Targets by the name of the case or of the benchmark, and the digests of today's recipes."""

    cases: Mapping[str, Sequence[Target]]
    others: Mapping[str, Sequence[Target]] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)
    ahead: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """By case the keys of differences, of which one must be positive, in one case at least."""


@dataclass(frozen=True)
class Answered:
    """A target of a run, and what was measured: None where nothing was."""

    run: str
    target: Target
    measured: float | None
    stale: bool = False

    @property
    def holds(self) -> bool | None:
        """None where it was not measured."""
        return None if self.measured is None else self.target.holds(self.measured)


def asked() -> Asked:
    """As the benchmarks declare it today."""
    from benchmarks import (
        cpic_cohort,
        cpic_predict,
        cpic_train,
        intervals,
        putt_bound,
        putt_rate,
        sttp_learning,
    )
    from benchmarks.cohorts import controls

    others = {
        "intervals": intervals.TARGETS,
        "cpic_predict": cpic_predict.TARGETS,
        "cpic_train": (),
        CONTROLS: controls.TARGETS,
        "putt_rate": putt_rate.TARGETS,
        "putt_bound": putt_bound.TARGETS,
        "sttp_learning": sttp_learning.TARGETS,
    }
    cases = cpic_cohort.CASES
    return Asked(
        {name: case.targets for name, case in cases.items()},
        others,
        {name: case.provenance["digest"] for name, case in cases.items()}
        | {
            "intervals": digest(intervals.DIGESTED),
            "cpic_predict": digest(cpic_predict.RECIPES),
            "cpic_train": digest(cpic_train.RECIPES),
        },
        {
            name: [cpic_cohort.ahead_of(*pair) for pair in case.ahead if _is_ours(*pair)]
            for name, case in cases.items()
            if any(_is_ours(*pair) for pair in case.ahead)
        },
    )


def _is_ours(name: str, other: str) -> bool:
    """Whether a pair is of C-PIC read through trains, and the best simple regressor."""
    from benchmarks.cpic_cohort import BEST

    return name.startswith("cpic") and other == BEST


def answers(runs: Runs, of: Asked) -> Iterator[Answered]:
    """Every target, in the order of the document."""
    for known, targets in ((runs.cases, of.cases), (runs.others, of.others)):
        for name, wanted in targets.items():
            run = known.get(name)
            stale = run is not None and is_stale(run, of.digests.get(name))
            for target in wanted:
                measured = None if run is None else _measured(run, target.key)
                yield Answered(name, target, measured, stale and measured is not None)
    if of.ahead:
        yield Answered("real cohorts", AHEAD_ON, _ahead_on(runs, of))


def is_stale(run: Run, digest: str | None) -> bool:
    """Whether the recipe has changed since, for all that the run tells: it does not know its code, or names
    settings that are not today's.
    """
    if not run.code:
        return True
    told = run.code.get("digest")
    return told is not None and digest is not None and told != digest


def _ahead_on(runs: Runs, of: Asked) -> int | None:
    """In how many cases `cpic` is ahead by one of its readings, which tells more than the mean does; None
    while it is in none, and some were not run.
    """
    gains = {
        name: [runs.cases[name].told.get("differences", {}).get(key) for key in keys]
        for name, keys in of.ahead.items()
        if name in runs.cases
    }
    count = sum(
        any(gain is not None and gain["value"] > 0 and _tells(runs.cases[name], gain) for gain in each)
        for name, each in gains.items()
    )
    known = len(gains) == len(of.ahead) and all(gain is not None for each in gains.values() for gain in each)
    return count if count or known else None


def _tells(run: Run, gain: Mapping[str, Any]) -> bool:
    """Whether R2 of what is ahead is above 0: of two that tell nothing one is always ahead."""
    return bool(run.told["regressors"][gain["of"]]["r2"]["value"] > 0)


def _measured(run: Run, key: str) -> float | None:
    """What a run tells of a target's key, though it was asked only after it."""
    for answer in run.told.get("targets", ()):
        if answer["key"] == key:
            found: float | None = answer["measured"]
            return found
    from benchmarks.cpic_cohort import keys_of

    told = keys_of(run.told.get("regressors", {}), run.told.get("differences", {}))
    if key in told:
        return told[key]
    shown, _, metric = key.rpartition(" ")
    scores = run.told.get("regressors", {}).get(shown, {})
    value = run.told.get(key) if metric not in scores else scores[metric]["value"]
    return value if isinstance(value, int | float) else None
