"""Do conformal intervals cover as often as they say? At 80, 90 and 95 %, on made and on real cohorts.

Features of scans are computed once; each split by patient draws who trains a linear head, who calibrates it
and who is asked about. Split-conformal intervals on 20 such splits, and on 200, which tell the method from
the luck of 20: `noise` is the standard deviation from one 20 to the next. CV+ on the first 20, from those who
trained or calibrated, in 10 folds. Widths stand beside those of the training's mean, calibrated likewise.

Made cohorts are of phantoms, two volumes each; their block means know nothing of the target, the oracle's
features, which know how volumes are made, do. Coverage must not depend on that. Real ones are read as block
means, beside what covariates there are. Numbers of calibration patients K are such that (K + 1) level is
whole: what is promised is then exact, but for patients with several rows, where it is a little more.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from benchmarks.cohorts import REAL, MadeCohort, Protocol, controls, phantom_heads, spots, spread
from benchmarks.targets import Target, judged, show_targets
from models.learning.conformal import COVERAGES, Conformal, cv_plus
from models.learning.folds import Split, patient_folds, patient_numbers
from models.learning.linear import LinearHead
from models.learning.preparation import Preparation, PreparationConfig
from models.learning.task import Task
from models.regressors.blocks import BlockMeans
from models.types import Array, Int64

SPLITS, MANY_SPLITS, FOLDS, SEED = 20, 200, 10, 0
GRID = 8
TASK = Task("mean")
PEOPLE, VOLUMES = 160, 2
MADE_SIZE = {"spread": 32, "spots": 48}
COUNTS = {
    "spread": (49, 79, 32),
    "spots": (49, 79, 32),
    "ixi_age": (8, 19, 6),
    "hippocampus": (73, 39, 28),
    "soop": (121, 59, 60),
}
"""Patients that train, calibrate and are asked about."""
MASKS = PreparationConfig(intensity="fixed", centre=0.0, scale=1.0)
PREPARED = {"ixi_age": PreparationConfig(), "hippocampus": PreparationConfig(), "soop": MASKS}
TARGETS = (
    *(Target(f"{name}_coverage_gap", 0.03) for name in COUNTS),
    *(Target(f"{name}_coverage_gap_of_many", 0.03) for name in COUNTS),
)


Answer = Callable[[Int64], Float64[Array, "m 1"]]
"""What a model says of rows, by their numbers."""


@dataclass(frozen=True, eq=False)
class Rows:
    """A cohort as numbers: what a head is fitted to."""

    cohort: str
    reader: str
    unit: str
    features: Float64[Array, "n p"]
    covariates: Float64[Array, "n t"]
    targets: Float64[Array, " n"]
    patients: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Covered:
    """Of one split, by level: the share of rows covered, and the mean width."""

    coverage: Float64[Array, " levels"]
    widths: Float64[Array, " levels"]

    @classmethod
    def of(cls, bands: Float64[Array, "levels m 2"], targets: Float64[Array, " m"]) -> Covered:
        """Of intervals for the same rows."""
        inside = (bands[..., 0] <= targets) & (targets <= bands[..., 1])
        return cls(inside.mean(axis=1), (bands[..., 1] - bands[..., 0]).mean(axis=1))


def run() -> dict[str, Any]:
    """Coverage and widths of all cohorts, and the largest gap between coverage and level of each."""
    began = time.perf_counter()
    tables = [measured(rows) for rows in (*made_rows(), *real_rows())]
    gaps: dict[str, float] = {}
    for table in tables:
        for key, of in (("coverage_gap", "split"), ("coverage_gap_of_many", "split_many")):
            name = f"{table['cohort']}_{key}"
            gap = max(abs(row["coverage"] - row["level"]) for row in table[of])
            gaps[name] = max(gaps.get(name, 0.0), round(gap, 4))
    return {
        **gaps,
        "seed": SEED,
        "seconds": round(time.perf_counter() - began, 1),
        "targets": judged(gaps, TARGETS),
        "cohorts": tables,
    }


def show(result: dict[str, Any]) -> None:
    """Print the tables."""
    print(f"seed {result['seed']}, {result['seconds']} s")
    for table in result["cohorts"]:
        train, calibration, test = COUNTS[table["cohort"]]
        print(
            f"\n{table['cohort']}, {table['reader']}: {train} patients train, {calibration} calibrate, "
            f"{test} are asked about; widths in {table['unit']}"
        )
        print(f"  {'level':>6}{'covered':>9}{'noise':>8}{'of 200':>9}{'width':>9}{'constant':>10}", end="")
        print(f"{'CV+ covers':>12}{'CV+ width':>11}")
        columns = (table[name] for name in ("split", "split_many", "noise", "constant", "cv_plus"))
        for row, many, luck, constant, plus in zip(*columns, strict=True):
            print(
                f"  {row['level']:>6}{row['coverage']:>9.3f}{luck:>8.3f}{many['coverage']:>9.3f}"
                f"{row['width']:>9.3g}{constant['width']:>10.3g}{plus['coverage']:>12.3f}"
                f"{plus['width']:>11.3g}"
            )
    show_targets(result["targets"])


def made_rows() -> list[Rows]:
    """Block means and the oracle's features of the made cohorts."""
    heads, protocol = phantom_heads(PEOPLE, SEED), Protocol(PEOPLE // 2, VOLUMES, PEOPLE)
    made = {
        "spread": spread(MADE_SIZE["spread"], heads=heads, protocol=protocol, seed=SEED),
        "spots": spots(MADE_SIZE["spots"], heads=heads, protocol=protocol, seed=SEED),
    }
    oracles: dict[str, Callable[[Any, Array], Array]] = {
        "spread": controls.texture_energy,
        "spots": controls.spot_strengths,
    }
    rows = []
    for name, cohort in made.items():
        kept = cohort.dense().sources
        blocks = np.stack([BlockMeans(GRID)(volume) for volume in kept])
        oracle = np.stack(
            [oracles[name](of, volume.array) for of, volume in zip(cohort.sources, kept, strict=True)]  # type: ignore[attr-defined]
        )
        rows += [_made(name, cohort, "block means", blocks), _made(name, cohort, "oracle", oracle)]
    return rows


def _made(name: str, cohort: MadeCohort, reader: str, features: Array) -> Rows:
    nothing = np.zeros((len(cohort), 0))
    return Rows(name, reader, "shares", features, nothing, cohort.targets, cohort.patients)


def real_rows() -> list[Rows]:
    """Block means of the real cohorts' prepared scans, beside their covariates; none where they are not."""
    rows = []
    for name, config in PREPARED.items():
        try:
            cohort = REAL[name]()
        except FileNotFoundError:
            continue
        raw = [entry.scan.raw() for entry in cohort.entries]
        preparation = Preparation.fit(config, raw)
        features = np.stack([BlockMeans(GRID)(preparation.apply(scan, SEED)) for scan in raw])
        rows.append(
            Rows(
                name, "block means", cohort.unit, features, cohort.covariates, cohort.targets, cohort.patients
            )
        )
    return rows


def measured(rows: Rows) -> dict[str, Any]:
    """Split-conformal on few and on many splits, beside a constant's, and CV+ on few."""
    splits = [rotated(rows.patients, COUNTS[rows.cohort], number) for number in range(MANY_SPLITS)]
    few = splits[:SPLITS]
    found = [by_split(rows, split, head_of(rows, split.train)) for split in splits]
    return {
        "cohort": rows.cohort,
        "reader": rows.reader,
        "unit": rows.unit,
        "rows": len(rows.targets),
        "split": table(found[:SPLITS]),
        "split_many": table(found),
        "noise": noise(found),
        "constant": table([by_split(rows, split, mean_of(rows, split.train)) for split in few]),
        "cv_plus": table([by_cv_plus(rows, split) for split in few]),
    }


def head_of(rows: Rows, chosen: Int64) -> Answer:
    """What a head of some rows says of others."""
    patients = [rows.patients[row] for row in chosen.tolist()]
    head = LinearHead.fit(
        rows.features[chosen], rows.targets[chosen], patients, TASK, free=rows.covariates[chosen], seed=SEED
    )
    return lambda asked: head.predict(rows.features[asked], rows.covariates[asked])


def mean_of(rows: Rows, chosen: Int64) -> Answer:
    """The mean of some rows, for all others."""
    mean = rows.targets[chosen].mean()
    return lambda asked: np.full((len(asked), 1), mean)


def by_split(rows: Rows, split: Split, answer: Answer) -> Covered:
    """Answers of who trained, widened by those who calibrate, for who is asked about."""
    patients = [rows.patients[row] for row in split.calibration.tolist()]
    found = Conformal.of(answer(split.calibration), rows.targets[split.calibration], patients, TASK)
    told = answer(split.test)
    bands = np.stack([found.intervals(told, level) for level in COVERAGES])
    return Covered.of(bands, rows.targets[split.test])


def by_cv_plus(rows: Rows, split: Split) -> Covered:
    """CV+ of all but those who are asked about."""
    known = np.sort(np.concatenate([split.train, split.calibration]))
    patients = [rows.patients[row] for row in known.tolist()]
    folds = patient_folds(patients, FOLDS, seed=SEED)
    answers = [head_of(rows, known[folds != fold]) for fold in range(FOLDS)]
    own = np.empty((len(known), 1))
    for fold, answer in enumerate(answers):
        own[folds == fold] = answer(known[folds == fold])
    told = np.stack([answer(split.test) for answer in answers])
    bands = [cv_plus(told, own, rows.targets[known], folds, patients, TASK, level) for level in COVERAGES]
    return Covered.of(np.stack(bands), rows.targets[split.test])


def table(found: Sequence[Covered]) -> list[dict[str, float]]:
    """Means over splits, level by level."""
    coverage = np.array([each.coverage for each in found])
    widths = np.array([each.widths for each in found])
    columns = {
        "coverage": coverage.mean(axis=0),
        "width": widths.mean(axis=0),
    }
    return [
        {"level": level, **{name: round(float(values[k]), 4) for name, values in columns.items()}}
        for k, level in enumerate(COVERAGES)
    ]


def noise(found: Sequence[Covered]) -> list[float]:
    """How much the coverage of `SPLITS` splits deviates from that of as many others, level by level."""
    coverage = np.array([each.coverage for each in found]).reshape(-1, SPLITS, len(COVERAGES))
    return [round(float(each), 4) for each in coverage.mean(axis=1).std(axis=0, ddof=1)]


def rotated(patients: Sequence[str], counts: tuple[int, int, int], number: int) -> Split:
    """Split `number` of a row in which everybody is asked about equally often, and calibrates nearly so.

    Patients stand in a random order; who is asked about, who calibrates and who trains moves on by the number
    of those asked about, and when it has come round a new order is drawn. Each split by itself is drawn as
    any other, but together they are less a matter of luck.
    """
    numbers = patient_numbers(patients)
    train, calibration, test = counts
    count = sum(counts)
    turn, step = divmod(number, count // math.gcd(count, test))
    order = np.roll(np.random.default_rng([SEED, turn]).permutation(count), -step * test)
    use = np.empty(count, np.int64)
    use[order] = np.repeat([2, 1, 0], [test, calibration, train])
    trained, calibrated, asked = (np.flatnonzero(use[numbers] == part) for part in range(3))
    return Split(trained, calibrated, asked)
