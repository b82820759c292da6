"""What regressors learn of cohorts: five folds by person, several seeds, every baseline beside C-PIC.

Made cohorts (`benchmarks.cohorts`) have a target that is known exactly; they are tested by the protocol of
198 volumes of 22 people to learn from and 102 of 11 others, and `spread-32-folds` by five folds. They are
drawn with seed 1: recipes were developed on seed 0, which has other volumes and asks about other people. The
seeds that results are averaged over are those of the training. Real cohorts are tested by five folds. Scans
are prepared once, and kept in memory: reading is not what is measured here.

What is tried stands in `benchmarks.cohorts.subjects`. `given measures` are not of the scan: regions that
another network segmented (ages), the sides of a crop that was made to fit (hippocampus), the volume of a mask
that a person drew (strokes). `resnet3d` has the product's settings, 30 epochs at a rate of 1e-3. `auto` is
what the job `train` does; on strokes, whose grid is the largest, with three folds instead of five, and no
train is read by TT there: both for their cost.

Real cohorts say how far everything is ahead of the best simple regressor (of `BASELINES`), which is known
only after the test: that favours the simple one. A target of C-PIC's is met by a difference that is positive;
whether that may be luck is told by its interval.

`X, together` are the means of the answers of X with all of its seeds: what `cpic_ensemble` gives with seed 0
and as many members, for no further training.

`--only CASE,CASE` runs some cases. Two processes of one thread each share the cells of a case (one subject,
one seed, one split), each cell in a process of its own, which is what its memory is counted of: above the
start, all ways to read an encoder together. Times are of the processor. `torch._dynamo`, which optimisers
import when the first is made, is imported before, so that no cell pays for it.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch._dynamo
from jaxtyping import Float64

from benchmarks.cohorts import REAL, MadeCohort, RealCohort, spots, spread
from benchmarks.cohorts.kept import KeptScan
from benchmarks.cohorts.scores import ahead, best, scores
from benchmarks.cohorts.subjects import (
    GIVEN,
    INTENSITIES,
    Auto,
    Facts,
    Family,
    PaperForm,
    Simple,
    Subject,
    Told,
)
from benchmarks.memory import peak_rss_mib
from benchmarks.provenance import without_added
from benchmarks.targets import Target, judged, number, show_targets
from models.learning.cohort import Cohort
from models.learning.folds import patient_folds
from models.learning.preparation import Preparation, PreparationConfig
from models.regressors.cpic import Cpic
from models.regressors.encoders import EncoderConfig, ProjectionConfig
from models.regressors.readouts import VoxelReadoutConfig
from models.regressors.settings import settings_of
from models.types import Array, Int64

PROCESSES = 2
FOLDS = 5
COHORT_SEED = 1
Splits = list[tuple[Int64, Int64]]
"""Scans to learn from, and scans to test on."""
Cells = dict[str, dict[int, dict[int, tuple[Array, Facts]]]]
"""What was told, by who told it, seed and split."""


@dataclass(frozen=True)
class Case:
    """A cohort, how it is divided, and what is tried on it. `ahead` are pairs whose R2 are compared; in each
    `BEST` stands for the best of `BASELINES`. The answers of all seeds of `together` are averaged too.
    """

    cohort: Source
    subjects: tuple[tuple[Subject, tuple[int, ...]], ...]
    targets: tuple[Target, ...] = ()
    ahead: tuple[tuple[str, str], ...] = ()
    together: tuple[str, ...] = ()

    @property
    def provenance(self) -> dict[str, Any]:
        """What was asked for: the cohort, and every subject's settings and seeds, with their digest."""
        told = {
            "cohort": self.cohort.settings,
            "subjects": [
                {
                    "kind": type(subject).__name__,
                    "seeds": list(seeds),
                    "settings": without_added(subject.settings),
                }
                for subject, seeds in self.subjects
            ],
        }
        digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
        return {**told, "digest": digest}


@dataclass(frozen=True)
class Made:
    """A made cohort at `size`^3, by the protocol of its split or by folds."""

    make: Callable[..., MadeCohort]
    size: int
    folds: bool = False
    seed: int = COHORT_SEED

    @property
    def settings(self) -> dict[str, Any]:
        """As plain JSON."""
        return {"name": self.make.__name__, "size": self.size, "folds": self.folds, "seed": self.seed}

    def __call__(self) -> tuple[Cohort, Splits]:
        """The cohort in memory, and how it is divided."""
        made = self.make(self.size, seed=self.seed).dense()
        cohort = made.cohort()
        return cohort, in_folds(cohort) if self.folds else [(made.split.train, made.split.test)]


@dataclass(frozen=True)
class Real:
    """A real cohort, or the part of it with this intensity scale."""

    name: str
    preparation: PreparationConfig
    scale: str | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """As plain JSON."""
        return {"name": self.name, "preparation": settings_of(self.preparation), "scale": self.scale}

    def __call__(self) -> tuple[Cohort, Splits]:
        """The cohort, prepared and in memory, with what was measured of its scans by others."""
        real: RealCohort = REAL[self.name]()
        wanted = [entry for entry in real.entries if self.scale in (None, entry.labels.get(SCALE))]
        real = replace(real, entries=tuple(wanted))
        raws = [entry.scan.raw() for entry in real.entries]
        preparation = Preparation.fit(self.preparation, raws)
        kept = [
            KeptScan(preparation.apply(raw, 0), measures)
            for raw, measures in zip(raws, real.baselines, strict=True)
        ]
        cohort = real.cohort(kept)
        return cohort, in_folds(cohort)


Source = Made | Real
SCALE = "intensity_scale_group"


def in_folds(cohort: Cohort) -> Splits:
    """Each fold of scans once to test on."""
    folds = patient_folds(cohort.row_patients, FOLDS, seed=0)
    of_scan = np.zeros(len(cohort.inputs.scans), np.int64)
    of_scan[cohort.inputs.scan_of] = folds
    return [(np.flatnonzero(of_scan != fold), np.flatnonzero(of_scan == fold)) for fold in range(FOLDS)]


MANY, SEEDS, FEW, ONE = (0, 1, 2, 3, 4), (0, 1, 2), (0, 1), (0,)
SIMPLE = tuple((Simple(name), ONE) for name in ("constant", "voxel_ridge", "tt_ridge"))
TABULAR = (Simple("tabular"), ONE)
FROZEN = Family(Cpic(starts=1, steps=0), mark="frozen ")
QUANTISED = Family(trains=("cpic",))
WHOLE = Family(trains=("cpic", "cpic TT", "cpic TT + overview"))
MASKED = Family(trains=("cpic", "cpic + overview"))
GUIDED = Family(
    replace(Cpic(), steps=400, voxels=512, uniform=0.3),
    VoxelReadoutConfig(count=8000, uniform=0.3),
    mark="guided ",
    trains=(),
)
"""Voxels where scans are rough, and four times as many: for what is sparse."""
LESIONS = Family(
    Cpic(steps=100, uniform=0.2),
    VoxelReadoutConfig(count=2000, uniform=0.2, poolings=(1, 2)),
    mark="guided ",
    trains=(),
)
"""For masks, which are empty nearly everywhere."""
MASKS = PreparationConfig(grid="pad", intensity="fixed", centre=0.0, scale=1.0)
HEADS = PreparationConfig(grid="pad", intensity="standard")
CROPS = PreparationConfig(grid="pad", intensity="robust")
COARSE = {"grid": 2}
VARIANTS = {
    "paper's width ": Cpic(encoder=EncoderConfig(hidden=(5, 15, 25), features=16)),
    "sigmoid ": Cpic(encoder=EncoderConfig(sigmoid=True)),
    "280 voxels ": Cpic(voxels=280),
    "66 steps ": Cpic(steps=66),
    "one start ": Cpic(starts=1),
    "through trains ": Cpic(projected_steps=66),
    "low-rank term ": Cpic(projected_steps=66, projection=ProjectionConfig(low_rank=0.1)),
}
"""Of the recipe, one thing changed at a time."""

SUMMED = ("train_s", "fit_s", "predict_s", "parameters")
"""Facts of which those of several trainings are a sum."""
BASELINES = ("constant", "tabular", "voxel_ridge", "tt_ridge")
BEST = "best simple"
OWN_HEAD = "own_head_behind"


def asked_of_spread(allowance: float) -> tuple[Target, ...]:
    """The targets on *spread*: at sizes above 32^3 figures may be worse by an allowance."""
    least = {
        "cpic TT moments 2": 0.85,
        "random_voxels": 0.85,
        "cpic": 0.90,
        "cpic principal 10": 0.90,
    }
    return (
        *(Target(f"{name} r2", round(r2 - allowance, 2), at_least=True) for name, r2 in least.items()),
        Target(OWN_HEAD, round(0.03 + allowance, 2)),
        Target("voxel_ridge r2", 0.05),
        Target("intensities r2", 0.05),
    )


def compared(names: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Ways to read encoders, and `auto`, against the best simple regressor and the given measures."""
    return tuple((name, other) for other in (BEST, GIVEN.shown) for name in (*names, "auto"))


def together(name: str) -> str:
    """The name of the mean answer of all seeds."""
    return f"{name}, together"


def ahead_of(name: str, other: str) -> str:
    """The key of a difference of R2."""
    return f"{name} minus {other} r2"


def surely_behind(name: str, other: str) -> str:
    """The key of the lower end of the interval of how far one is behind."""
    return f"{name} behind {other} r2, low end"


def real_case(
    cohort: Real, simple: Sequence[Subject], families: Mapping[Family, tuple[int, ...]], auto: Auto | None
) -> Case:
    """Simple regressors, given measures, encoders, and `auto`, compared."""
    automatic = () if auto is None else ((auto, ONE),)
    names = [name for family in families for name in family.tells]
    several = [name for family, seeds in families.items() if len(seeds) > 1 for name in family.tells]
    return Case(
        cohort,
        (*((each, ONE) for each in (*simple, GIVEN)), *families.items(), *automatic),
        () if auto is None else (Target(surely_behind("auto", BEST), 0.0),),
        compared([*names, *map(together, several)]),
        tuple(several),
    )


PLAIN = [Simple(name) for name in BASELINES]
OF_MASKS = [replace(each, given=COARSE) if each.name == "voxel_ridge" else each for each in PLAIN]

CASES: dict[str, Case] = {
    "spread-32": Case(
        Made(spread, 32),
        (*SIMPLE, (INTENSITIES, ONE), (Family(), MANY), (FROZEN, FEW), (Simple("tt_mlp"), FEW)),
        asked_of_spread(0.0),
    ),
    "spread-32-folds": Case(Made(spread, 32, folds=True), (*SIMPLE[:2], (QUANTISED, SEEDS))),
    "spread-32-baselines": Case(
        Made(spread, 32),
        ((QUANTISED, SEEDS), (PaperForm(), ONE), (Simple("resnet3d"), ONE)),
        (Target(surely_behind("cpic", "resnet3d"), 0.0),),
        tuple((name, "resnet3d") for name in QUANTISED.tells),
    ),
    "spread-32-variants": Case(
        Made(spread, 32),
        tuple((Family(recipe, mark=mark, trains=("cpic",)), FEW) for mark, recipe in VARIANTS.items()),
    ),
    "spread-64": Case(
        Made(spread, 64), (*SIMPLE, (INTENSITIES, ONE), (Family(), SEEDS)), asked_of_spread(0.05)
    ),
    "spread-128": Case(
        Made(spread, 128), (*SIMPLE[:2], (INTENSITIES, ONE), (Family(), SEEDS)), asked_of_spread(0.05)
    ),
    "spots-64": Case(Made(spots, 64), (*SIMPLE, (INTENSITIES, ONE), (Family(), FEW), (GUIDED, FEW))),
    "ixi_age": real_case(Real("ixi_age", HEADS), PLAIN, {WHOLE: SEEDS}, Auto()),
    "ixi_age-late": real_case(Real("ixi_age", HEADS, scale="late"), PLAIN, {WHOLE: SEEDS}, None),
    "hippocampus": real_case(
        Real("hippocampus", CROPS),
        [each for each in PLAIN if each.name != "tabular"],
        {WHOLE: SEEDS},
        Auto(),
    ),
    "soop": real_case(
        Real("soop", MASKS),
        OF_MASKS,
        {MASKED: SEEDS, LESIONS: ONE},
        Auto({"voxel_ridge": COARSE}, folds=3),
    ),
}


def run(only: Sequence[str] = ()) -> dict[str, Any]:
    """All cases, or those named."""
    if unknown := set(only) - set(CASES):
        raise SystemExit(f"no case {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    found = {name: tried(case) for name, case in CASES.items() if not only or name in only}
    return {"cases": found, "peak_rss_mib": peak_rss_mib()}


def tried(case: Case) -> dict[str, Any]:
    """All cells of a case, and what they come to."""
    cohort, splits = case.cohort()
    return summary(case, cohort, splits, measured(case, cohort, splits))


def measured(case: Case, cohort: Cohort, splits: Splits) -> Cells:
    """Every subject with every seed on every split; the last, which take longest, first."""
    wanted = [
        (subject, seed, split)
        for subject, seeds in case.subjects
        for seed in seeds
        for split in range(len(splits))
    ]
    global _SHARED  # noqa: PLW0603 - forked processes find the cohort there, and none is sent to them
    _SHARED = cohort, splits
    fork = multiprocessing.get_context("fork")
    with fork.Pool(PROCESSES, torch.set_num_threads, (1,), maxtasksperchild=1) as pool:
        told = pool.starmap(cell, wanted[::-1], chunksize=1)[::-1]
    found: Cells = {}
    for (_, seed, split), answers in zip(wanted, told, strict=True):
        for shown, each in answers.items():
            found.setdefault(shown, {}).setdefault(seed, {})[split] = each
    return found


_SHARED: tuple[Cohort, Splits] | None = None


def cell(subject: Subject, seed: int, split: int) -> Told:
    """One subject, one seed, one split, and the memory that they took."""
    assert _SHARED is not None
    cohort, splits = _SHARED
    training, test = splits[split]
    before = peak_rss_mib()
    told = subject(cohort.only(np.sort(training)), cohort.only(np.sort(test)), seed)
    memory = {"memory_mib": peak_rss_mib() - before}
    return {shown: (answers, facts | memory) for shown, (answers, facts) in told.items()}


def summary(case: Case, cohort: Cohort, splits: Splits, cells: Cells) -> dict[str, Any]:
    """Metrics of each regressor, differences, and what was asked of them."""
    rows = np.concatenate([cohort.inputs.rows_of(np.sort(test)) for _, test in splits])
    targets, patients = cohort.targets[rows], [cohort.row_patients[row] for row in rows]
    outputs = {shown: stacked(seeds) for shown, seeds in cells.items()}
    facts = {shown: facts_of(seeds) for shown, seeds in cells.items()}
    for name in case.together:
        outputs[together(name)] = outputs[name].mean(axis=0, keepdims=True)
        facts[together(name)] = of_all(facts[name])
    results = {
        shown: {**scores(told, targets, patients), **facts[shown], "answers": rounded(told)}
        for shown, told in outputs.items()
    }
    differences = dict(compare(case, outputs, targets, patients))
    return {
        "rows": len(rows),
        "patients": len(set(cohort.patients)),
        "splits": len(splits),
        "target_sd": float(cohort.targets.std()),
        "provenance": case.provenance,
        "regressors": results,
        "differences": differences,
        "targets": judged(keys_of(results, differences), case.targets),
    }


def stacked(seeds: Mapping[int, Mapping[int, tuple[Array, Facts]]]) -> Float64[Array, "seeds n"]:
    """The answers to all rows that were tested, split by split."""
    return np.stack(
        [np.concatenate([each[split][0][:, 0] for split in sorted(each)]) for each in seeds.values()]
    )


def rounded(outputs: Float64[Array, "seeds n"]) -> list[list[float]]:
    """To read, not to compute with."""
    return [[round(float(value), 6) for value in each] for each in outputs]


def facts_of(seeds: Mapping[int, Mapping[int, tuple[Array, Facts]]]) -> Facts:
    """Means of numbers over cells, the first one's histories, and all words."""
    cells = [each[split][1] for each in seeds.values() for split in sorted(each)]
    told: Facts = {"seeds": len(seeds)}
    for key, value in cells[0].items():
        if key == "histories":
            told[key] = value
        elif isinstance(value, str):
            told[key] = [facts[key] for facts in cells]
        else:
            told[key] = float(np.mean([facts[key] for facts in cells]))
    return told


def of_all(facts: Facts) -> Facts:
    """What all seeds take together: of one prediction too."""
    seeds = int(facts["seeds"])
    summed = {key: seeds * facts[key] for key in SUMMED if key in facts}
    return {**{key: facts[key] for key in ("memory_mib", "voxels") if key in facts}, **summed, "seeds": 1}


def compare(
    case: Case,
    outputs: Mapping[str, Float64[Array, "seeds n"]],
    targets: Float64[Array, " n"],
    patients: Sequence[str],
) -> Iterator[tuple[str, dict[str, Any]]]:
    """How far regressors are ahead of others, in R2, and of whom."""
    for name, other in case.ahead:
        against = best(BASELINES, outputs, targets) if other == BEST else other
        if name in outputs and against in outputs:
            gain = ahead(outputs[name], outputs[against], targets, patients)
            yield ahead_of(name, other), {**gain, "of": name, "against": against, "other": other}


def keys_of(
    results: Mapping[str, Mapping[str, Any]], differences: Mapping[str, Mapping[str, Any]]
) -> dict[str, float]:
    """What targets are about."""
    keys = {f"{shown} r2": float(result["r2"]["value"]) for shown, result in results.items()}
    keys |= {key: float(gain["value"]) for key, gain in differences.items()}
    keys |= {
        surely_behind(gain["of"], gain["other"]): 0.0 - float(gain["high"]) for gain in differences.values()
    }
    if "cpic own head r2" in keys:
        keys[OWN_HEAD] = keys["cpic moments 2 r2"] - keys["cpic own head r2"]
    return keys


def show(result: dict[str, Any]) -> None:
    """One table for each case."""
    for name, case in result["cases"].items():
        print(
            f"\n{name}: {case['rows']} rows tested, {case['patients']} people, {case['splits']} splits, "
            f"target sd {case['target_sd']:.4g}"
        )
        width = max(map(len, case["regressors"])) + 2
        print(
            f"{'':<{width}}{'R2':>7}  {'95 %':<16}{'least':>7}{'RMSE':>9}{'seeds':>7}{'CPU s':>9}"
            f"{'epoch s':>9}{'read s':>8}{'MiB':>7}{'voxels':>10}"
        )
        for shown, told in case["regressors"].items():
            r2, rmse = told["r2"], told["rmse"]
            print(
                f"{shown:<{width}}{r2['value']:>7.3f}  [{r2['low']:.3f}, {r2['high']:.3f}]"
                f"{r2['least']:>9.3f}{rmse['value']:>9.4g}{told['seeds']:>7}"
                f"{told.get('train_s', told.get('fit_s', 0)):>9.1f}{told.get('epoch_s', 0):>9.2f}"
                f"{told.get('predict_s', 0):>8.3f}{told['memory_mib']:>7.0f}{told.get('voxels', 0):>10.0f}"
            )
        show_differences(case["differences"])
        show_targets(case["targets"])


def show_differences(differences: Mapping[str, Mapping[str, Any]]) -> None:
    """One line each."""
    for key, gain in differences.items():
        ends = f"[{number(gain['low'])}, {number(gain['high'])}]"
        print(f"{key:<60}{number(gain['value']):>8} {ends:<18}{gain['of']}, {gain['against']}")
