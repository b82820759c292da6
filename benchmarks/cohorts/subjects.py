"""What is tried on cohorts: regressors as the product has them, one encoder read in several ways, and readers
of other measures.

A subject learns from one cohort and answers another's rows. Times are of the processor; what is read of a
scan, and for how long, is of the scans that were asked about, which nobody had read before: the guide of
voxels that are drawn by it reads the whole scan, within the clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float64

from benchmarks.cohorts.controls import halves, intensities
from benchmarks.cohorts.kept import KeptScan
from benchmarks.cohorts.scores import TASK
from models.cpic.encoder import Encoder, LearnedCpic
from models.cpic.fibres import FibreConfig
from models.cpic.projection import Basis
from models.learning.cohort import Cohort
from models.learning.folds import patient_folds
from models.learning.linear import LinearHead
from models.learning.metrics import metrics_of
from models.learning.saved import part
from models.learning.selection import auto
from models.regressors import REGRESSORS
from models.regressors.base import Regressor
from models.regressors.cpic import Cpic
from models.regressors.cpic_model import CpicModel
from models.regressors.dense import whole
from models.regressors.encoder_training import Trained, train_encoder
from models.regressors.encoders import calibrated, recalibrated
from models.regressors.neural import Answers
from models.regressors.readouts import (
    PRINCIPAL,
    FibreReadout,
    FibreReadoutConfig,
    Readout,
    VoxelReadout,
    VoxelReadoutConfig,
)
from models.regressors.settings import settings_of
from models.training import Watch
from models.tt.train import TensorTrain
from models.types import Array, CubeSource
from workers.jobs.train import ENCODER_PATIENTS, TrainParameters, automatic
from workers.trials import Terms, tried

CPU = torch.device("cpu")
AUTO_FOLDS: int = TrainParameters.model_fields["folds"].default

Facts = dict[str, Any]
"""Numbers, words, and `histories` of training."""
Told = dict[str, tuple[Float64[Array, "m o"], Facts]]
"""By the name of what told it: answers to the test's rows, and what that took."""


class Subject(Protocol):
    """Something that is tried."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """All of them, as plain JSON: the same settings and seeds give the same answers."""

    def __call__(self, training: Cohort, test: Cohort, seed: int) -> Told:
        """What is told of the test by what has learned from the training."""


class Clock:
    """Seconds of the processor per step of the last stage of a training, from what it reports."""

    def __init__(self) -> None:
        self.began = self.ended = 0.0
        self.steps = 0

    def __call__(self, phase: str, done: int, total: int | None) -> None:
        """A `Report`."""
        if phase == "training":
            self.began = time.process_time() if done == 0 else self.began
            self.ended, self.steps = time.process_time(), done

    def facts(self, scans: int, batch: int) -> Facts:
        """The time of an epoch of so many scans, if anything was trained."""
        return (
            {"epoch_s": (self.ended - self.began) / self.steps * max(1, scans // batch)} if self.steps else {}
        )


@dataclass(frozen=True)
class Simple:
    """A regressor by name, as it is registered."""

    name: str
    given: Mapping[str, Any] = field(default_factory=dict)
    shown: str | None = None

    @property
    def settings(self) -> Mapping[str, Any]:
        """See `Subject`."""
        return {"regressor": self.name, **settings_of(self._recipe())}

    def __call__(self, training: Cohort, test: Cohort, seed: int) -> Told:
        """Fit and predict."""
        recipe, clock = self._recipe(), Clock()
        began = time.process_time()
        model = recipe.fit(training, TASK, seed=seed, device=CPU, watch=Watch(clock))
        fitted = time.process_time()
        answers = model.predict(test.inputs)
        told = model.manifest()
        facts = {
            "fit_s": fitted - began,
            "predict_s": (time.process_time() - fitted) / len(test.inputs.scans),
            "parameters": float(told.get("parameters", 0)),
            **clock.facts(len(training.inputs.scans), _batch(recipe)),
        }
        if histories := told.get("histories"):
            facts["histories"] = histories
        return {self.shown or self.name: (answers, facts)}

    def _recipe(self) -> Regressor:
        return REGRESSORS[self.name].from_settings(self.given)


@dataclass(frozen=True)
class Measured:
    """A linear head in closed form on numbers that `measure` makes of a scan, beside covariates."""

    shown: str
    measure: Callable[[CubeSource], Float64[Array, " k"]]

    @property
    def settings(self) -> Mapping[str, Any]:
        """See `Subject`."""
        return {"measure": self.measure.__name__}

    def __call__(self, training: Cohort, test: Cohort, seed: int) -> Told:
        """Fit and predict."""
        began = time.process_time()
        seen = np.stack([self.measure(scan) for scan in training.inputs.scans])
        head = _head(seen, training, seed)
        fitted = time.process_time()
        asked = np.stack([self.measure(scan) for scan in test.inputs.scans])
        answers = head.predict(asked[test.inputs.scan_of], test.inputs.covariates)
        facts = {
            "fit_s": fitted - began,
            "predict_s": (time.process_time() - fitted) / len(asked),
            "parameters": float(head.parameters),
        }
        return {self.shown: (answers, facts)}


def given(scan: CubeSource) -> Float64[Array, " k"]:
    """What others measured of the scan."""
    assert isinstance(scan, KeptScan)
    return scan.given


def half_intensities(scan: CubeSource) -> Float64[Array, " k"]:
    """Moments and percentiles of the intensities, left and right."""
    return np.concatenate([intensities(half) for half in halves(whole(scan)[0])])


GIVEN = Measured("given measures", given)
"""Of another origin than the scan: regions of a segmentation, the sides of a crop, a mask's volume."""
INTENSITIES = Measured("intensities", half_intensities)


@dataclass(frozen=True)
class Family:
    """One encoder, read in several ways. `mark` is put before their names.

    `random_voxels`; `cpic` (QTT of rank 10; principal features or moments, whichever inner cross-validation
    prefers), its blocks alone, `cpic TT` likewise, either with the scan's block means beside the train (`cpic
    + overview`), and the head that descended with the encoder (`cpic own head`, on the moments of the QTT,
    statistics made anew).
    """

    recipe: Cpic = field(default_factory=Cpic)
    voxels: VoxelReadoutConfig = field(default_factory=VoxelReadoutConfig)
    mark: str = ""
    trains: tuple[str, ...] = ("cpic", "cpic TT")

    @property
    def settings(self) -> Mapping[str, Any]:
        """See `Subject`."""
        return {"recipe": settings_of(self.recipe), "voxels": settings_of(self.voxels), "trains": self.trains}

    @property
    def tells(self) -> tuple[str, ...]:
        """The names of its ways to read, without those of blocks alone."""
        return tuple(f"{self.mark}{name}" for name in ("random_voxels", *self.trains))

    def __call__(self, training: Cohort, test: Cohort, seed: int) -> Told:
        """Train once, fit a head for each way."""
        began, clock = time.process_time(), Clock()
        trained = train_encoder(self.recipe, training, TASK, seed=seed, device=CPU, watch=Watch(clock))
        learned: Facts = {"train_s": time.process_time() - began}
        learned |= clock.facts(len(training.inputs.scans), self.recipe.batch)
        if trained.histories:
            learned["histories"] = {stage: told.to_json() for stage, told in trained.histories.items()}
        told = self._by_voxels(trained, training, test, seed)
        for name in self.trains:
            told |= self._by_fibres(name, trained, training, test, seed)
        return {f"{self.mark}{name}": (answers, learned | facts) for name, (answers, facts) in told.items()}

    def _by_voxels(self, trained: Trained, training: Cohort, test: Cohort, seed: int) -> Told:
        encoder = calibrated(trained.encoder, training.inputs.scans, seed, CPU)
        readout = VoxelReadout(self.voxels, lambda scan: encoder, encoder.features, seed, CPU)
        seen = np.stack([readout.see(scan).features() for scan in training.inputs.scans])
        model = CpicModel.fitted(self.recipe.encoder, encoder, readout, seen, training, TASK, {}, seed)
        asked, facts = _asked(readout, test)
        if self.voxels.uniform < 1:
            facts["voxels"] += float(np.prod(test.inputs.scans[0].shape))
        return {"random_voxels": (_answers(model, asked, test), facts | _parameters(model))}

    def _by_fibres(self, name: str, trained: Trained, training: Cohort, test: Cohort, seed: int) -> Told:
        encoder = calibrated(trained.encoder, training.inputs.scans, seed, CPU)
        bare = name.removesuffix(BESIDE)
        config = TT if bare == "cpic TT" else self.recipe.readout
        if name != bare:
            config = replace(config, overview=OVERVIEW)
        readout, seen = _fibre_readout(config, encoder, training, seed)
        model = CpicModel.fitted(self.recipe.encoder, encoder, readout, seen, training, TASK, {}, seed)
        asked, facts = _asked(readout, test)
        if config.overview:
            facts["voxels"] += float(np.prod(test.inputs.scans[0].shape))
        told = {name: (_answers(model, asked, test), facts | _parameters(model))}
        for block in filter(readout.blocks.__contains__, ALONE.get(name, ())):
            only = _only(model, block, seen, training, seed)
            told[f"{name} {block}"] = _answers(only, asked, test), facts | _parameters(only)
        if name == "cpic" and self.recipe.steps and not self.recipe.projected_steps:
            where = readout.blocks[f"moments {self.recipe.pooling}"]
            told["cpic own head"] = _own(trained, training, test, seen[:, where], asked[:, where]), facts
        return told


TT = FibreReadoutConfig(FibreConfig(layout="tt", rank=10), counts=(10,), poolings=(2,))
BESIDE, OVERVIEW = " + overview", 12
"""What is put behind a name where block means stand beside the train, and how many there are per axis."""
ALONE = {"cpic": ("principal 10", "moments 2"), "cpic TT": ("moments 2",)}
"""Blocks of features that are reported by themselves."""


@dataclass(frozen=True)
class PaperForm:
    """C-PIC as published, with its own steps: read by our head in closed form, and by its own perceptron.

    The perceptron goes on with the anchors of the last epoch; its statistics are made anew.
    """

    recipe: Cpic = field(default_factory=Cpic.paper)

    @property
    def settings(self) -> Mapping[str, Any]:
        """See `Subject`."""
        return {"recipe": settings_of(self.recipe)}

    def __call__(self, training: Cohort, test: Cohort, seed: int) -> Told:
        """Train once, read twice."""
        began, clock, last = time.process_time(), Clock(), Last()
        watch = Watch(clock, last)
        trained = train_encoder(self.recipe, training, TASK, seed=seed, device=CPU, watch=watch)
        learned: Facts = {
            "train_s": time.process_time() - began,
            **clock.facts(len(training.inputs.scans), self.recipe.batch),
            "histories": {stage: told.to_json() for stage, told in trained.histories.items()},
        }
        told = {
            "the paper's encoder and QTT, our closed-form head": self._refitted(
                trained, training, test, seed
            ),
            "cpic, paper's form, own head": self._own(trained, last.basis(), training, test, seed),
        }
        return {name: (answers, learned | facts) for name, (answers, facts) in told.items()}

    def _refitted(
        self, trained: Trained, training: Cohort, test: Cohort, seed: int
    ) -> tuple[Float64[Array, "m o"], Facts]:
        encoder = calibrated(trained.encoder, training.inputs.scans, seed, CPU)
        readout, seen = _fibre_readout(self.recipe.readout, encoder, training, seed)
        model = CpicModel.fitted(self.recipe.encoder, encoder, readout, seen, training, TASK, {}, seed)
        asked, facts = _asked(readout, test)
        return _answers(model, asked, test), facts | _parameters(model)

    def _own(
        self, trained: Trained, basis: Basis, training: Cohort, test: Cohort, seed: int
    ) -> tuple[Float64[Array, "m o"], Facts]:
        encoder, config = LearnedCpic(trained.encoder), self.recipe.projection
        read = FibreReadoutConfig(config.fibres, counts=(config.count,), block=PRINCIPAL, poolings=())
        readout = FibreReadout(read, lambda scan: encoder, encoder.features, seed, basis, np.empty(0), CPU)
        seen, _ = _asked(readout, training)
        asked, facts = _asked(readout, test)
        weights = sum(p.numel() for p in trained.network.parameters())
        return _own(trained, training, test, seen, asked), facts | {"parameters": float(weights)}


class Last:
    """Keeps a training's last state, and nothing to go on from."""

    def __init__(self) -> None:
        self.tensors: Mapping[str, Array] = {}

    def save(self, tensors: Mapping[str, Array], manifest: Mapping[str, Any]) -> None:
        """See `Checkpoints`."""
        self.tensors = tensors

    def load(self) -> None:
        """Nothing."""

    def part(self, name: str) -> Last:
        """The same: the last stage's state is the last."""
        return self

    def basis(self) -> Basis:
        """The principal axes of the last epoch of a training through trains."""
        learner = part("learner", self.tensors)
        arrays = {name: torch.from_numpy(np.array(a)) for name, a in part("basis", learner).items()}
        anchors = [arrays.pop(name) for name in _cores(arrays)]
        return Basis(
            anchors=TensorTrain(tuple(anchors)), total_energy=float(learner["total_energy"]), **arrays
        )


def _cores(arrays: Mapping[str, Any]) -> list[str]:
    """The names of a train's cores, in order."""
    return [f"anchor.{k}" for k in range(sum(name.startswith("anchor.") for name in arrays))]


@dataclass(frozen=True)
class Auto:
    """What the job `train` does where it is asked for `auto`: its candidates, folds and choice.

    `given` are settings of some candidates; the others have their own.
    """

    given: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    folds: int = AUTO_FOLDS

    @property
    def settings(self) -> Mapping[str, Any]:
        """See `Subject`."""
        whole = self.recipes(ENCODER_PATIENTS, covariates=True)
        recipes = {name: settings_of(recipe) for name, recipe in whole.items()}
        return {"folds": self.folds, "candidates": recipes}

    def recipes(self, patients: int, *, covariates: bool) -> dict[str, Regressor]:
        """From simple to complex; `tabular` where there are covariates, encoders where patients are many."""
        names = [name for name in automatic(patients) if covariates or name != "tabular"]
        return {name: REGRESSORS[name].from_settings(self.given.get(name, {})) for name in names}

    def __call__(self, training: Cohort, test: Cohort, seed: int) -> Told:
        """Choose in folds of the training alone, fit to all of it, and predict."""
        began, patients = time.process_time(), training.row_patients
        recipes = self.recipes(len(set(patients)), covariates=training.inputs.covariates.shape[1] > 0)
        folds = patient_folds(patients, self.folds, seed=seed, targets=training.targets)
        trials = tried(recipes, training, Terms(TASK, folds, metrics_of(TASK), seed, CPU), Watch())
        losses = {name: trial.validation.losses for name, trial in trials.made.items()}
        chosen = auto(losses, patients, seed=seed).chosen
        model = recipes[chosen].fit(training, TASK, seed=seed, device=CPU, watch=Watch())
        facts: Facts = {"fit_s": time.process_time() - began, "chosen": chosen}
        began = time.process_time()
        answers = model.predict(test.inputs)
        facts["predict_s"] = (time.process_time() - began) / len(test.inputs.scans)
        return {"auto": (answers, facts)}


def _batch(recipe: Regressor) -> int:
    """Scans of a training's step; 1 for what takes no steps."""
    return int(getattr(getattr(recipe, "training", recipe), "batch", 1))


def _fibre_readout(
    config: FibreReadoutConfig, encoder: Encoder, training: Cohort, seed: int
) -> tuple[FibreReadout, Float64[Array, "s p"]]:
    scans, patients, report = training.inputs.scans, training.patients, Watch().report
    return FibreReadout.of(
        scans, patients, lambda scan: encoder, config, seed=seed, device=CPU, report=report
    )


def _asked(readout: Readout, cohort: Cohort) -> tuple[Float64[Array, "s p"], Facts]:
    """The features of a cohort's scans, and what reading one of them took."""
    began = time.process_time()
    looks = [readout.see(scan) for scan in cohort.inputs.scans]
    features = np.stack([look.features() for look in looks])
    read_s = (time.process_time() - began) / len(looks)
    return features, {"predict_s": read_s, "voxels": float(np.mean([len(look.voxels) for look in looks]))}


def _head(
    rows: Float64[Array, "s p"], training: Cohort, seed: int, *, proportional: bool = False
) -> LinearHead:
    """Of features of scans."""
    inputs = training.inputs
    return LinearHead.fit(
        rows[inputs.scan_of],
        training.targets,
        training.row_patients,
        TASK,
        free=inputs.covariates,
        proportional=proportional,
        seed=seed,
    )


def _only(
    model: CpicModel, block: str, seen: Float64[Array, "s p"], training: Cohort, seed: int
) -> CpicModel:
    """The model with the head of one block."""
    readout = model.readout
    rows, proportional = seen[:, readout.blocks[block]], block in readout.proportional
    return replace(model, head=_head(rows, training, seed, proportional=proportional), block=block)


def _answers(model: CpicModel, features: Float64[Array, "s p"], test: Cohort) -> Float64[Array, "m o"]:
    inputs = test.inputs
    return model.head.predict(features[inputs.scan_of, model.readout.blocks[model.block]], inputs.covariates)


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


def _parameters(model: CpicModel) -> Facts:
    weights = sum(p.numel() for p in model.encoder.network.parameters())
    return {"parameters": float(weights + model.head.parameters)}
