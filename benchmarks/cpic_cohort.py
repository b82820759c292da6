"""What regressors learn of cohorts: five folds by person, several seeds, every baseline beside C-PIC.

Made cohorts (`benchmarks.cohorts`) have a target that is known exactly; they are tested by the protocol of
198 volumes of 22 people to learn from and 102 of 11 others, and `spread-32` by five folds too. Real ones are
tested by five folds. Scans are prepared once, and kept in memory: reading is not what is measured here.

One training of an encoder is read in several ways: `random_voxels`, `cpic` (QTT of rank 10; principal
features or moments, whichever inner cross-validation prefers), its principal features alone, a TT, and the
head that descended with the encoder (`cpic own head`, on the moments of the QTT, statistics made anew).
`frozen` encoders were never trained.

`--only CASE,CASE` runs some cases. Two processes of one thread each share the cells of a
case; times are of the processor, per scan where it says read.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64

from benchmarks.cohorts import REAL, MadeCohort, RealCohort, spots, spread
from benchmarks.cohorts.kept import KeptScan
from benchmarks.memory import peak_rss_mib
from benchmarks.targets import Target, judged, show_targets
from models.cpic.fibres import FibreConfig
from models.learning.cohort import Cohort
from models.learning.evaluation import cross_validate
from models.learning.folds import patient_folds
from models.learning.metrics import Metric, interval, metrics_of
from models.learning.preparation import Preparation, PreparationConfig
from models.learning.selection import auto
from models.learning.task import Task
from models.regressors import REGRESSORS
from models.regressors.base import Regressor
from models.regressors.cpic import Cpic
from models.regressors.cpic_model import CpicModel
from models.regressors.encoder_training import Trained, train_encoder
from models.regressors.encoders import EncoderConfig, ProjectionConfig, calibrated, recalibrated
from models.regressors.guides import guide_of
from models.regressors.neural import Answers
from models.regressors.readouts import FibreReadout, FibreReadoutConfig, VoxelReadout, VoxelReadoutConfig
from models.regressors.settings import settings_of
from models.training import Watch
from models.types import Array, Int64

CPU = torch.device("cpu")
PROCESSES = 2
FOLDS = 5
TASK = Task()

Facts = dict[str, Any]
"""Numbers, which are averaged over cells, and `histories` of training, of which the first is kept."""
Told = dict[str, tuple[Float64[Array, "m o"], Facts]]
"""By the name of what told it: answers to the test's rows, and what that took."""
Subject = Callable[[Cohort, Cohort, int], Told]
"""(training, test, seed) to what is told of the test."""


@dataclass(frozen=True)
class Simple:
    """A regressor by name, as it is registered."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    shown: str | None = None

    def __call__(self, training: Cohort, test: Cohort, seed: int) -> Told:
        """Fit and predict."""
        recipe: Regressor = REGRESSORS[self.name].from_settings(self.settings)
        began = time.process_time()
        model = recipe.fit(training, TASK, seed=seed, device=CPU, watch=Watch())
        fitted = time.process_time()
        answers = model.predict(test.inputs)
        facts = {
            "fit_s": fitted - began,
            "predict_s": (time.process_time() - fitted) / len(test.inputs.scans),
            "parameters": float(model.manifest().get("parameters", 0)),
        }
        return {self.shown or self.name: (answers, facts)}


@dataclass(frozen=True)
class Family:
    """One encoder, read in several ways. `mark` is put before their names."""

    recipe: Cpic = field(default_factory=Cpic)
    voxels: VoxelReadoutConfig = field(default_factory=VoxelReadoutConfig)
    mark: str = ""
    trains: tuple[str, ...] = ("cpic", "cpic TT")

    def __call__(self, training: Cohort, test: Cohort, seed: int) -> Told:
        """Train once, fit a head for each way."""
        began = time.process_time()
        trained = train_encoder(self.recipe, training, TASK, seed=seed, device=CPU, watch=Watch())
        train_s = time.process_time() - began
        told = self._by_voxels(trained, training, test, seed)
        if self.trains:
            told |= self._by_fibres(trained, training, test, seed)
        histories = {stage: history.to_json() for stage, history in trained.histories.items()}
        for _, facts in told.values():
            facts["train_s"] = train_s
            facts["histories"] = histories
        return {f"{self.mark}{name}": each for name, each in told.items()}

    def _by_voxels(self, trained: Trained, training: Cohort, test: Cohort, seed: int) -> Told:
        encoder = calibrated(trained.encoder, training.inputs.scans, seed, CPU)
        readout = VoxelReadout(self.voxels, lambda scan: encoder, encoder.features, seed, CPU)
        began = time.process_time()
        seen = np.stack([readout.see(scan).features() for scan in training.inputs.scans])
        asked = np.stack([readout.see(scan).features() for scan in test.inputs.scans])
        each = (time.process_time() - began) / (len(seen) + len(asked))
        config = self.recipe.encoder
        model = CpicModel.fitted(config, encoder, readout, seen, training, TASK, {}, seed)
        return {"random_voxels": (_answers(model, asked, test), _facts(model, each, self.voxels.count))}

    def _by_fibres(self, trained: Trained, training: Cohort, test: Cohort, seed: int) -> Told:
        encoder = calibrated(trained.encoder, training.inputs.scans, seed, CPU)
        tt = FibreReadoutConfig(FibreConfig(layout="tt", rank=10), counts=(10,), poolings=(2,))
        told: Told = {}
        for name, config in (("cpic", self.recipe.readout), ("cpic TT", tt)):
            if name not in self.trains:
                continue
            began = time.process_time()
            readout, seen = FibreReadout.of(
                training.inputs.scans,
                training.patients,
                lambda scan: encoder,
                config,
                seed=seed,
                device=CPU,
                report=Watch().report,
            )
            looks = [readout.see(scan) for scan in test.inputs.scans]
            asked = np.stack([look.features() for look in looks])
            each = (time.process_time() - began) / (len(seen) + len(asked))
            voxels = float(np.mean([len(look.voxels) for look in looks]))
            model = CpicModel.fitted(self.recipe.encoder, encoder, readout, seen, training, TASK, {}, seed)
            told[name] = _answers(model, asked, test), _facts(model, each, voxels)
            blocks = ["moments 2"] if name == "cpic TT" else ["principal 10", "moments 2"]
            for block in blocks:
                only = _only(model, block, seen, training, seed)
                told[f"{name} {block}"] = _answers(only, asked, test), _facts(only, each, voxels)
            if name == "cpic" and self.recipe.steps and not self.recipe.projected_steps:
                where = readout.blocks["moments 2"]
                told["cpic own head"] = _own(trained, training, test, seen[:, where], asked[:, where]), {}
        return told


def _answers(model: CpicModel, features: Float64[Array, "s p"], test: Cohort) -> Float64[Array, "m o"]:
    inputs = test.inputs
    return model.head.predict(features[inputs.scan_of, model.readout.blocks[model.block]], inputs.covariates)


def _only(
    model: CpicModel, block: str, seen: Float64[Array, "s p"], training: Cohort, seed: int
) -> CpicModel:
    """The model with the head of one block."""
    where = model.readout.blocks[block]
    head = type(model.head).fit(
        seen[training.inputs.scan_of, where],
        training.targets,
        training.row_patients,
        TASK,
        free=training.inputs.covariates,
        seed=seed,
    )
    return replace(model, head=head, block=block)


def _own(
    trained: Trained,
    training: Cohort,
    test: Cohort,
    seen: Float64[Array, "s p"],
    asked: Float64[Array, "m p"],
) -> Float64[Array, "m o"]:
    """By the head that descended."""
    pairs = [(seen, training), (asked, test)]
    features, wanted = (
        np.hstack([rows[cohort.inputs.scan_of], cohort.inputs.covariates]) for rows, cohort in pairs
    )
    answers = Answers.of(TASK, training.targets)
    return recalibrated(trained.network.head, features, wanted, answers, CPU)


def _facts(model: CpicModel, read_s: float, voxels: float) -> Facts:
    weights = sum(p.numel() for p in model.encoder.network.parameters())
    return {"predict_s": read_s, "voxels": float(voxels), "parameters": weights + model.head.parameters}


@dataclass(frozen=True)
class Auto:
    """The simplest candidate that none beats in folds of the training alone, fitted to all of that."""

    candidates: Mapping[str, Mapping[str, Any]]
    folds: int = 3

    def __call__(self, training: Cohort, test: Cohort, seed: int) -> Told:
        """Choose, fit and predict."""
        began = time.process_time()
        folds = patient_folds(training.row_patients, self.folds, seed=seed)
        losses = {
            name: cross_validate(
                REGRESSORS[name].from_settings(settings),
                training,
                TASK,
                folds,
                seed=seed,
                device=CPU,
                watch=Watch(),
            ).losses
            for name, settings in self.candidates.items()
        }
        chosen = auto(losses, training.row_patients, seed=seed).chosen
        (told,) = Simple(chosen, self.candidates[chosen])(training, test, seed).values()
        facts = {"fit_s": time.process_time() - began, "place": float(list(losses).index(chosen))}
        return {"auto": (told[0], facts)}


@dataclass(frozen=True)
class Case:
    """A cohort, how it is divided, and what is tried on it."""

    make: Callable[[], tuple[Cohort, list[tuple[Int64, Int64]] | None]]
    subjects: tuple[tuple[Subject, tuple[int, ...]], ...]
    targets: tuple[Target, ...] = ()


def _made(make: Callable[..., MadeCohort], size: int, *, folds: bool = False) -> Any:
    """The cohort, and its protocol: (training scans, test scans)."""

    def made() -> tuple[Cohort, list[tuple[Int64, Int64]] | None]:
        whole = make(size).dense()
        return whole.cohort(), None if folds else [(whole.split.train, whole.split.test)]

    return made


def _real(name: str, config: PreparationConfig, **labels: str) -> Any:
    """A real cohort, or the part of it with these labels."""

    def made() -> tuple[Cohort, None]:
        real: RealCohort = REAL[name]()
        wanted = [entry for entry in real.entries if labels.items() <= entry.labels.items()]
        real = replace(real, entries=tuple(wanted))
        raws = [entry.scan.raw() for entry in real.entries]
        preparation = Preparation.fit(config, raws)
        return real.cohort([KeptScan(preparation.apply(raw, 0)) for raw in raws]), None

    return made


SEEDS, FEW, ONE = (0, 1, 2), (0, 1), (0,)
SIMPLE = tuple((Simple(name), ONE) for name in ("constant", "voxel_ridge", "tt_ridge"))
FROZEN = Family(Cpic(starts=1, steps=0), mark="frozen ")
QUANTISED = Family(trains=("cpic",))
GUIDED = Family(
    replace(Cpic(), steps=400, voxels=512, uniform=0.3),
    VoxelReadoutConfig(count=8000, uniform=0.3),
    mark="guided ",
    trains=(),
)
"""Voxels where scans are rough, and four times as many: for what is sparse."""
LESIONS = Family(
    Cpic(steps=100, uniform=0.2), VoxelReadoutConfig(count=2000, uniform=0.2, poolings=(1, 2)), trains=()
)
"""For masks, which are empty nearly everywhere."""
GUIDED_VOXELS = {
    "random_voxels": {"steps": 100, "uniform": 0.2, "readout": settings_of(LESIONS.voxels)},
}
RESNET = {"training": {"epochs": 12, "batch": 8, "rate": 2e-3, "weight_decay": 1e-3}}
PAPER = Simple("cpic", {"mode": "paper", "projected_steps": 60}, "cpic, paper's form")
MASKS = PreparationConfig(grid="pad", intensity="fixed", centre=0.0, scale=1.0)
HEADS = PreparationConfig(grid="pad", intensity="standard")
CROPS = PreparationConfig(grid="pad", intensity="robust")

CANDIDATES: dict[str, Mapping[str, Any]] = {
    "constant": {},
    "voxel_ridge": {},
    "tt_ridge": {},
    "cpic": {"steps": 100},
}
"""Of `auto`, from simple to complex."""
WITH_TABLE = {"constant": {}, "tabular": {}, **CANDIDATES}
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

CASES: dict[str, Case] = {
    "spread-32": Case(
        _made(spread, 32),
        (*SIMPLE, (Family(), (0, 1, 2, 3, 4)), (FROZEN, FEW), (Simple("tt_mlp"), FEW)),
        (
            Target("cpic TT moments 2 r2", 0.85, at_least=True),
            Target("random_voxels r2", 0.85, at_least=True),
            Target("cpic r2", 0.90, at_least=True),
            Target("cpic principal 10 r2", 0.90, at_least=True),
            Target("own_head_behind", 0.03),
            Target("voxel_ridge r2", 0.05),
        ),
    ),
    "spread-32-folds": Case(_made(spread, 32, folds=True), (*SIMPLE[:2], (QUANTISED, SEEDS))),
    "spread-32-baselines": Case(_made(spread, 32), ((Simple("resnet3d", RESNET), ONE), (PAPER, ONE))),
    "spread-32-variants": Case(
        _made(spread, 32),
        tuple((Family(recipe, mark=mark, trains=("cpic",)), FEW) for mark, recipe in VARIANTS.items()),
    ),
    "spread-64": Case(_made(spread, 64), (*SIMPLE, (Family(), SEEDS))),
    "spread-128": Case(_made(spread, 128), (*SIMPLE[:2], (Family(), SEEDS))),
    "spots-64": Case(_made(spots, 64), (*SIMPLE, (Family(), FEW), (GUIDED, FEW))),
    "ixi_age": Case(
        _real("ixi_age", HEADS),
        (*SIMPLE, (Simple("tabular"), ONE), (QUANTISED, SEEDS), (Auto(WITH_TABLE), ONE)),
    ),
    "ixi_age-late": Case(
        _real("ixi_age", HEADS, intensity_scale_group="late"),
        (*SIMPLE, (Simple("tabular"), ONE), (QUANTISED, SEEDS)),
    ),
    "hippocampus": Case(
        _real("hippocampus", CROPS),
        (
            *SIMPLE,
            (QUANTISED, SEEDS),
            (Auto(CANDIDATES), ONE),
        ),
    ),
    "soop": Case(
        _real("soop", MASKS),
        (
            (Simple("constant"), ONE),
            (Simple("tabular"), ONE),
            (Simple("voxel_ridge", {"grid": 2}), ONE),
            (LESIONS, SEEDS),
            (Auto({"constant": {}, "tabular": {}, "voxel_ridge": {"grid": 2}, **GUIDED_VOXELS}), ONE),
        ),
    ),
}


def run(only: Sequence[str] = ()) -> dict[str, Any]:
    """All cases, or those named."""
    if unknown := set(only) - set(CASES):
        raise SystemExit(f"no case {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    found = {name: _tried(name, case) for name, case in CASES.items() if not only or name in only}
    return {"cases": found, "peak_rss_mib": peak_rss_mib()}


def _tried(name: str, case: Case) -> dict[str, Any]:
    """All cells of a case."""
    cohort, splits = case.make()
    if splits is None:
        folds = patient_folds(cohort.row_patients, FOLDS, seed=0)
        of_scan = np.zeros(len(cohort.inputs.scans), np.int64)
        of_scan[cohort.inputs.scan_of] = folds
        splits = [(np.flatnonzero(of_scan != fold), np.flatnonzero(of_scan == fold)) for fold in range(FOLDS)]
    cells = [
        (subject, seed, split)
        for subject, seeds in case.subjects
        for seed in seeds
        for split in range(len(splits))
    ]
    if any(isinstance(subject, Family) and subject.recipe.uniform < 1 for subject, _ in case.subjects):
        for scan in cohort.inputs.scans:
            guide_of(scan)  # once, for all processes
    global _SHARED  # noqa: PLW0603 - forked processes find the cohort there
    _SHARED = cohort, splits
    with multiprocessing.get_context("fork").Pool(PROCESSES, torch.set_num_threads, (1,)) as pool:
        told = pool.starmap(_cell, cells, chunksize=1)
    rows = np.concatenate([cohort.inputs.rows_of(np.sort(test)) for _, test in splits])
    by_name: dict[str, dict[int, dict[int, tuple[Array, Facts]]]] = {}
    for (_, seed, split), answers in zip(cells, told, strict=True):
        for shown, each in answers.items():
            by_name.setdefault(shown, {}).setdefault(seed, {})[split] = each
    results = {shown: _scored(shown, seeds, cohort, rows, len(splits)) for shown, seeds in by_name.items()}
    keys = {f"{shown} r2": result["r2"]["value"] for shown, result in results.items()}
    if "cpic own head" in results:
        keys["own_head_behind"] = keys["cpic moments 2 r2"] - keys["cpic own head r2"]
    return {
        "rows": len(rows),
        "patients": len(set(cohort.patients)),
        "splits": len(splits),
        "target_sd": float(cohort.targets.std()),
        "regressors": results,
        "targets": judged(keys, case.targets),
    }


_SHARED: tuple[Cohort, list[tuple[Int64, Int64]]] | None = None


def _cell(subject: Subject, seed: int, split: int) -> Told:
    """One subject, one seed, one split."""
    assert _SHARED is not None
    cohort, splits = _SHARED
    training, test = splits[split]
    return subject(cohort.only(np.sort(training)), cohort.only(np.sort(test)), seed)


def _scored(
    shown: str,
    seeds: Mapping[int, Mapping[int, tuple[Array, Facts]]],
    cohort: Cohort,
    rows: Int64,
    splits: int,
) -> dict[str, Any]:
    """Metrics over all rows that were tested: the mean over seeds, their spread, and the mean interval."""
    patients = [cohort.row_patients[row] for row in rows]
    of_seed = [np.concatenate([each[split][0] for split in range(splits)]) for each in seeds.values()]
    facts = [each[split][1] for each in seeds.values() for split in range(splits)]
    scores = {
        metric.name.lower(): _over_seeds(metric, of_seed, cohort.targets[rows], patients)
        for metric in metrics_of(TASK)
    }
    histories = {"histories": facts[0].pop("histories")} if "histories" in facts[0] else {}
    means = {key: float(np.mean([fact[key] for fact in facts])) for key in facts[0]}
    outputs = [[round(float(value), 6) for value in answers[:, 0]] for answers in of_seed]
    return {**scores, "seeds": len(of_seed), **means, **histories, "answers": outputs}


def _over_seeds(
    metric: Metric, of_seed: Sequence[Array], targets: Float64[Array, " n"], patients: Sequence[str]
) -> dict[str, float | None]:
    found = [interval(metric, outputs, targets, patients, seed=0) for outputs in of_seed]
    values, lows, highs = ([getattr(each, name) for each in found] for name in ("value", "low", "high"))
    return {
        "value": float(np.mean(values)),
        "sd_of_seeds": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        "low": float(np.mean(lows)),
        "high": float(np.mean(highs)),
    }


def show(result: dict[str, Any]) -> None:
    """One table for each case."""
    for name, case in result["cases"].items():
        print(
            f"\n{name}: {case['rows']} rows tested, {case['patients']} people, {case['splits']} splits, "
            f"target sd {case['target_sd']:.4g}"
        )
        print(f"{'':<26}{'R2':>7}  {'95 %':<16}{'RMSE':>9}{'seeds':>7}{'CPU s':>9}{'read s':>8}{'voxels':>8}")
        for shown, told in case["regressors"].items():
            r2, rmse = told["r2"], told["rmse"]
            print(
                f"{shown:<26}{r2['value']:>7.3f}  [{r2['low']:.3f}, {r2['high']:.3f}]  "
                f"{rmse['value']:>9.4g}{told['seeds']:>7}{told.get('train_s', told.get('fit_s', 0)):>9.1f}"
                f"{told.get('predict_s', 0):>8.3f}{told.get('voxels', 0):>8.0f}"
            )
        show_targets(case["targets"])
