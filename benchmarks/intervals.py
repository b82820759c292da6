"""Do conformal intervals cover as often as they say? At 80, 90 and 95 %, on made and on real cohorts.

Features of scans are computed once; each split by patient draws who trains a linear head, who calibrates it
and who is asked about. Split-conformal intervals on 20 such splits, and on 200, which tell the method from
the luck of 20: `noise` is the standard deviation from one 20 to the next. CV+ on the first 20, from those who
trained or calibrated, in 10 folds. Widths stand beside those of the training's mean, calibrated likewise.

Made cohorts are of phantoms, two volumes each; their block means know nothing of the target, the oracle's
features, which know how volumes are made, do. Coverage must not depend on that. Real ones are read as block
means, beside what covariates there are. Numbers of calibration patients K are such that (K + 1) level is
whole: what is promised is then exact, but for patients with several rows, where it is a little more.

*As shipped* is what `train` does (`workers.learning.learn` itself): 5 folds of all who train or calibrate,
thresholds from answers out of fold, applied to a model of all of them. It has no guarantee. Measured on the
first 20 splits for the cheap recipes, and for the one that `auto` takes of them; as a task of quantiles too,
where the answer's own q.2 to q.8 say that they hold 60 %. `cpic` by itself on *spread*, one volume per
person, on few splits in which everybody is asked about once, with a shorter training than the default.

`--only cheap` or `--only cpic` runs a part.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self, cast

import numpy as np
import torch
from jaxtyping import Float64

from benchmarks.cohorts import REAL, MadeCohort, Protocol, controls, phantom_heads, spots, spread
from benchmarks.provenance import digest
from benchmarks.targets import Target, judged, show_targets
from models.learning.cohort import Cohort, Inputs
from models.learning.conformal import COVERAGES, Conformal, cv_plus
from models.learning.folds import Split, patient_folds, patient_numbers
from models.learning.linear import LinearHead
from models.learning.metrics import metrics_of
from models.learning.preparation import Preparation, PreparationConfig
from models.learning.task import QUANTILE_LEVELS, Task
from models.regressors.base import Model, Regressor
from models.regressors.blocks import BlockMeans
from models.regressors.constant import Constant
from models.regressors.cpic import Cpic
from models.regressors.linear_model import LinearModel
from models.regressors.tabular import Tabular
from models.training import Watch
from models.types import Array, Int64, Size
from storage.jobs import Progress
from workers.context import JobContext
from workers.jobs.train import TrainParameters
from workers.learning import learn
from workers.trials import Terms

SPLITS, MANY_SPLITS, FOLDS, SEED = 20, 200, 10, 0
GRID = 8
TASK, QUANTILES = Task("mean"), Task("quantiles")
OWN_LEVEL = round(QUANTILE_LEVELS[-1] - QUANTILE_LEVELS[0], 9)
"""What the outer quantiles say that they hold."""
CPU = torch.device("cpu")
SHIPPED_FOLDS: int = TrainParameters.model_fields["folds"].default
PARTS = CHEAP, CPIC = "cheap", "cpic"
CPIC_SIZE, CPIC_RECIPE = 32, Cpic(steps=60, starts=1)
CPIC_COUNTS, CPIC_SPLITS = (96, 24, 40), 4
DIGESTED = {"cpic": CPIC_RECIPE}
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
    *(Target(f"{name}_coverage_gap_as_shipped", 0.03) for name in COUNTS),
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


def run(only: Sequence[str] = ()) -> dict[str, Any]:
    """Coverage and widths of all cohorts, and the largest gap between coverage and level of each."""
    if unknown := set(only) - set(PARTS):
        raise SystemExit(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    began = time.perf_counter()
    found: dict[str, Any] = {"seed": SEED, "digest": digest(DIGESTED)}
    if not only or CHEAP in only:
        tables = [measured(rows) for rows in (*made_rows(), *real_rows())]
        gaps = gaps_of(tables)
        found |= {**gaps, "targets": judged(gaps, TARGETS), "cohorts": tables}
    if not only or CPIC in only:
        found["cpic_as_shipped"] = by_cpic()
    return {**found, "seconds": round(time.perf_counter() - began, 1)}


def gaps_of(tables: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The largest gap between coverage and level of each cohort, whoever reads it."""
    gaps: dict[str, float] = {}
    for table in tables:
        of = {
            "coverage_gap": table["split"],
            "coverage_gap_of_many": table["split_many"],
            "coverage_gap_as_shipped": [row for rows in table["as_shipped"].values() for row in rows],
            "quantiles_gap": [table["quantiles"]["own"]],
        }
        for key, rows in of.items():
            name = f"{table['cohort']}_{key}"
            gap = max(abs(row["coverage"] - row["level"]) for row in rows)
            gaps[name] = max(gaps.get(name, 0.0), round(gap, 4))
    return gaps


def show(result: dict[str, Any]) -> None:
    """Print the tables."""
    print(f"seed {result['seed']}, {result['seconds']} s")
    for table in result.get("cohorts", ()):
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
        for recipe, rows in table["as_shipped"].items():
            show_rows(f"as shipped, {recipe}", rows)
        own, widened = table["quantiles"]["own"], table["quantiles"]["as_shipped"]
        show_rows("quantiles, ridge", [own, *widened])
    if (cpic := result.get("cpic_as_shipped")) is not None:
        print(f"\nspread at {cpic['size']}^3, cpic, {cpic['splits']} splits; R2 {cpic['r2']:.3f}")
        show_rows("as shipped, cpic", cpic["as_shipped"])
    show_targets(result.get("targets", ()))


def show_rows(name: str, rows: Sequence[Mapping[str, float]]) -> None:
    """One line: coverage and width by level."""
    cells = (f"{row['level']:.2f}: {row['coverage']:.3f} ({row['width']:.3g})" for row in rows)
    print(f"  {name:<24}{'   '.join(cells)}")


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
        "as_shipped": as_shipped(rows, few),
        "quantiles": by_quantiles(rows, few),
    }


def as_shipped(rows: Rows, splits: Sequence[Split]) -> dict[str, list[dict[str, float]]]:
    """The intervals that `train` makes, by recipe, and of the recipe that it takes by itself (`auto`)."""
    cohort, recipes = cohort_of(rows), recipes_of(rows)
    each = {name: {name: recipe} for name, recipe in recipes.items()}
    return {
        name: table([shipped(cohort, split, some, TASK)[1] for split in splits])
        for name, some in {**each, "auto": recipes}.items()
    }


def by_quantiles(rows: Rows, splits: Sequence[Split]) -> dict[str, Any]:
    """The same of the ridge where it tells quantiles, and what its own outer quantiles hold."""
    cohort, own, widened = cohort_of(rows), [], []
    for split in splits:
        told, covered = shipped(cohort, split, {"ridge": RIDGE}, QUANTILES)
        band = told[None][..., [0, -1]]
        own.append(Covered.of(band, rows.targets[split.test]))
        widened.append(covered)
    return {"own": table(own, (OWN_LEVEL,))[0], "as_shipped": table(widened)}


def by_cpic() -> dict[str, Any]:
    """What `train` makes of `cpic`, on few splits in which everybody is asked about once."""
    began, people = time.process_time(), sum(CPIC_COUNTS)
    made = spread(
        CPIC_SIZE,
        heads=phantom_heads(people, SEED),
        protocol=Protocol(people // 2, 1, people - people // 2),
        seed=SEED,
    )
    cohort, answers, found = made.dense().cohort(), np.empty(len(made)), []
    for number in range(CPIC_SPLITS):
        split = rotated(cohort.row_patients, CPIC_COUNTS, number)
        told, covered = shipped(cohort, split, {"cpic": CPIC_RECIPE}, TASK)
        answers[split.test] = told[:, 0]
        found.append(covered)
    r2 = 1 - np.square(answers - cohort.targets).mean() / cohort.targets.var()
    return {
        "size": CPIC_SIZE,
        "people": people,
        "rows": len(cohort),
        "splits": CPIC_SPLITS,
        "steps": CPIC_RECIPE.steps,
        "starts": CPIC_RECIPE.starts,
        "r2": round(float(r2), 4),
        "as_shipped": table(found),
        "cpu_s": round(time.process_time() - began, 1),
    }


def shipped(
    cohort: Cohort, split: Split, recipes: Mapping[str, Regressor], task: Task
) -> tuple[Float64[Array, "m o"], Covered]:
    """What the product learns of all but those who are asked about, and how its intervals cover these.

    Rows of the cohort are its scans.
    """
    known = cohort.only(np.sort(np.concatenate([split.train, split.calibration])))
    patients = known.row_patients
    folds = patient_folds(patients, min(SHIPPED_FOLDS, len(set(patients))), seed=SEED, targets=known.targets)
    terms = Terms(task, folds, metrics_of(task), SEED, CPU)
    learned = learn(cast(JobContext, Unwatched()), known, recipes, terms)
    told = learned.model.predict(cohort.inputs.only(split.test))
    bands = np.stack([learned.conformal.intervals(told, level) for level in COVERAGES])
    return told, Covered.of(bands, cohort.targets[split.test])


class Unwatched:
    """What `learn` asks of a job: nobody is told, and nothing is kept."""

    parameters: ClassVar[Mapping[str, Any]] = {}

    @property
    def job(self) -> Self:
        """One without parameters."""
        return self

    @property
    def checkpoints(self) -> Self:
        """Nothing is kept."""
        return self

    def meant_for(self, purpose: str) -> Self:
        """Of whatever it is."""
        return self

    def part(self, name: str) -> Self:
        """Of any part."""
        return self

    def save(self, tensors: Mapping[str, Array], manifest: Mapping[str, Any]) -> None:
        """Not kept."""

    def load(self) -> None:
        """Nothing."""

    def report(self, progress: Progress) -> None:
        """To nobody."""


@dataclass(frozen=True, eq=False)
class RowScan:
    """A scan whose features are known: as a `CubeSource` it is a voxel, which nobody reads."""

    features: Float64[Array, " p"]
    shape: ClassVar[tuple[int, int, int]] = (1, 1, 1)
    channels: ClassVar[int] = 1

    def cubes(self, origins: Int64, size: Size) -> Array:
        """Raises NotImplementedError."""
        raise NotImplementedError("a row of features has no voxels")


class KnownFeatures:
    """Turns a scan into the features that it has."""

    def __call__(self, scan: RowScan) -> Float64[Array, " p"]:
        """See `ScanFeatures`."""
        return scan.features

    def tensors(self) -> dict[str, Array]:
        """None."""
        return {}

    def manifest(self) -> dict[str, Any]:
        """Nothing."""
        return {}


@dataclass(frozen=True)
class RowRidge:
    """`voxel_ridge` on features that are known already."""

    name: ClassVar[str] = "ridge"

    def fit(self, cohort: Cohort, task: Task, *, seed: int, device: torch.device, watch: Watch) -> Model:
        """See `Regressor`."""
        features = cast(Any, KnownFeatures())
        return LinearModel.fit(features, cohort, task, seed=seed, watch=watch)


RIDGE = cast(Regressor, RowRidge())


def cohort_of(rows: Rows) -> Cohort:
    """One scan for each row."""
    scans = [RowScan(features) for features in rows.features]
    return Cohort(Inputs.of(scans, rows.covariates), rows.patients, rows.targets)


def recipes_of(rows: Rows) -> dict[str, Regressor]:
    """Those that cost next to nothing, from simple to complex."""
    tabular = {"tabular": Tabular()} if rows.covariates.shape[1] else {}
    return {"constant": Constant(), **tabular, "ridge": RIDGE}


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


def table(found: Sequence[Covered], levels: Sequence[float] = COVERAGES) -> list[dict[str, float]]:
    """Means over splits, level by level."""
    coverage = np.array([each.coverage for each in found])
    widths = np.array([each.widths for each in found])
    columns = {
        "coverage": coverage.mean(axis=0),
        "width": widths.mean(axis=0),
    }
    return [
        {"level": level, **{name: round(float(values[k]), 4) for name, values in columns.items()}}
        for k, level in enumerate(levels)
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
