"""C-PIC, by the recipe that learns; `random_voxels` is the same without cross-approximation.

1. *Encoder*: the best of a few random starts (`first_encoder`), then by pooled moments of random voxels and a
   linear head (`PooledLearner`), for `steps` steps.
2. *Through trains*, for `projected_steps` (none by default): by principal features of tensor trains
   (`ProjectedLearner`), with the paper's perceptron or a linear head.
3. *Head*: the encoder is frozen, its features are calibrated, trains, anchors and statistics are made anew,
and a linear
   head is fitted in closed form to the block of features that inner cross-validation by patient prefers.

The paper's own form (`Cpic.paper()`) is step 2 alone, scalar, with a sigmoid. It did not learn from scratch
on the cohorts that we know; docs/results.md reports it beside the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from jaxtyping import Float64

from models.cpic.encoder import CpicEncoder, LearnedCpic
from models.cpic.fibres import FibreConfig
from models.cpic.head import HIDDEN, Head
from models.cpic.moments import Pooling
from models.cpic.strategies import Randomly, Strategy
from models.errors import InvalidConfig, InvalidShape
from models.learning.cohort import Cohort, Inputs
from models.learning.folds import patient_folds
from models.learning.linear import LinearHead
from models.learning.saved import digest, part, under
from models.learning.task import Task
from models.regressors.base import Look
from models.regressors.encoders import (
    EncoderConfig,
    EncoderWithHead,
    PooledLearner,
    ProjectedLearner,
    ProjectionConfig,
    calibrated,
    linear_outputs,
    seeds_of,
)
from models.regressors.guides import Guided
from models.regressors.linear_model import head_of_task, refuse_other, with_distance
from models.regressors.neural import Answers, Scaling, load_weights, refuse_covariates, weights_of
from models.regressors.readouts import (
    FibreReadout,
    FibreReadoutConfig,
    Readout,
    Seen,
    VoxelReadout,
    VoxelReadoutConfig,
)
from models.regressors.settings import merged, recipe_of, settings_of
from models.training import HeldOut, History, Learner, TrainingConfig, Watch, train
from models.types import Array, CubeSource, Int64

SCHEMA = 1
START_VOXELS, START_STRATA = 256, 4
"""Of each scan, that starts are compared at."""
HELD_OUT_FOLDS = 6
"""One of them is held out where there is patience."""


@dataclass(frozen=True)
class Cpic:
    """See the module's text. `steps` = 0 leaves the encoder as it was drawn: the random frozen one. Of
    `starts` draws that one is taken whose features a linear head does best with.

    `voxels` are drawn per scan and step, with `uniform` < 1 where scans are rough
    (`models.regressors.guides`). `batch` scans make a step, 3 at least: what is standardised among two is
    1 and -1, whatever it is. With `patience`, one patient in six is held out of step 1, which ends so many
    epochs after the best, and keeps that. Raises InvalidConfig, naming the setting.
    """

    name: ClassVar[str] = "cpic"

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    starts: int = 4
    steps: int = 200
    batch: int = 6
    voxels: int = 128
    uniform: float = 1.0
    pooling: int = 2
    rate: float = 5e-3
    weight_decay: float = 0.0
    patience: int | None = None
    projected_steps: int = 0
    projected_rate: float = 1e-3
    projection: ProjectionConfig = field(default_factory=ProjectionConfig)
    perceptron: bool = False
    readout: FibreReadoutConfig = field(default_factory=FibreReadoutConfig)

    def __post_init__(self) -> None:
        for setting in ("steps", "projected_steps"):
            if getattr(self, setting) < 0:
                raise InvalidConfig(setting, getattr(self, setting), "at least 0")
        for setting, least in (("starts", 1), ("batch", 3), ("voxels", 1), ("pooling", 1)):
            if getattr(self, setting) < least:
                raise InvalidConfig(setting, getattr(self, setting), f"at least {least}")
        for setting in ("rate", "projected_rate"):
            if not 0 < getattr(self, setting) < float("inf"):
                raise InvalidConfig(setting, getattr(self, setting), "finite and above 0")
        if not 0 <= self.weight_decay < 1:
            raise InvalidConfig("weight_decay", self.weight_decay, "from 0 to below 1")
        if not 0 < self.uniform <= 1:
            raise InvalidConfig("uniform", self.uniform, "above 0, at most 1")
        if self.patience is not None and not (isinstance(self.patience, int) and self.patience >= 1):
            raise InvalidConfig("patience", self.patience, "a whole number of at least 1, or none")

    @classmethod
    def paper(cls) -> Self:
        """As published: a scalar QTT of rank 10, anchors, perceptron, no start by pooled moments."""
        fibres = FibreConfig(layout="qtt", sampling="scalar", rank=10, oversampling=1.0, sweeps=2)
        return cls(
            encoder=EncoderConfig(hidden=(5, 15, 25), features=16, sigmoid=True, intensity=False),
            starts=1,
            steps=0,
            projected_steps=200,
            projection=ProjectionConfig(fibres=fibres),
            perceptron=True,
            readout=FibreReadoutConfig(fibres=fibres, counts=(10,), poolings=()),
        )

    def fit(self, cohort: Cohort, task: Task, *, seed: int, device: torch.device, watch: Watch) -> CpicModel:
        """See `Regressor`."""
        trained = train_encoder(self, cohort, task, seed=seed, device=device, watch=watch)
        encoder = calibrated(trained.encoder, cohort.inputs.scans, seed, device)
        readout, features = FibreReadout.of(
            cohort.inputs.scans,
            cohort.patients,
            lambda scan: encoder,
            self.readout,
            seed=seed,
            device=device,
            report=watch.report,
        )
        return CpicModel.fitted(self, encoder, readout, features, cohort, task, trained.histories, seed)

    def load(
        self, tensors: Mapping[str, Array], manifest: Mapping[str, Any], task: Task, device: torch.device
    ) -> CpicModel:
        """See `Regressor`."""
        encoder = _loaded_encoder(tensors, manifest, device)
        readout = FibreReadout.from_saved(
            part("readout", tensors), manifest["readout"], lambda scan: encoder, device
        )
        return CpicModel.from_saved(self, encoder, readout, tensors, manifest, task)

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """See `Regressor`; `{"mode": "paper"}` gives the paper's form, whose settings others change."""
        if settings.get("mode") == "paper":
            rest = {name: value for name, value in settings.items() if name != "mode"}
            return recipe_of(cls, merged(settings_of(cls.paper()), rest))
        return recipe_of(cls, settings)


@dataclass(frozen=True)
class RandomVoxelsRegressor:
    """Encoder and head as in `cpic`, read at `readout.count` random voxels: the baseline that C-PIC must
    face.
    """

    name: ClassVar[str] = "random_voxels"

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    starts: int = 4
    steps: int = 200
    batch: int = 6
    voxels: int = 128
    uniform: float = 1.0
    pooling: int = 2
    rate: float = 5e-3
    weight_decay: float = 0.0
    readout: VoxelReadoutConfig = field(default_factory=VoxelReadoutConfig)

    def __post_init__(self) -> None:
        self.training()

    def fit(self, cohort: Cohort, task: Task, *, seed: int, device: torch.device, watch: Watch) -> CpicModel:
        """See `Regressor`."""
        trained = train_encoder(self.training(), cohort, task, seed=seed, device=device, watch=watch)
        encoder = calibrated(trained.encoder, cohort.inputs.scans, seed, device)
        readout = VoxelReadout(self.readout, lambda scan: encoder, encoder.features, seed, device)
        features = []
        for done, scan in enumerate(cohort.inputs.scans):
            watch.report("voxels", done, len(cohort.inputs.scans))
            features.append(readout.see(scan).features())
        return CpicModel.fitted(
            self, encoder, readout, np.stack(features), cohort, task, trained.histories, seed
        )

    def load(
        self, tensors: Mapping[str, Array], manifest: Mapping[str, Any], task: Task, device: torch.device
    ) -> CpicModel:
        """See `Regressor`."""
        encoder = _loaded_encoder(tensors, manifest, device)
        readout = VoxelReadout.from_saved(manifest["readout"], lambda scan: encoder, device)
        return CpicModel.from_saved(self, encoder, readout, tensors, manifest, task)

    def training(self) -> Cpic:
        """How the encoder is trained."""
        shared = (
            "encoder",
            "starts",
            "steps",
            "batch",
            "voxels",
            "uniform",
            "pooling",
            "rate",
            "weight_decay",
        )
        return Cpic(**{name: getattr(self, name) for name in shared})

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """See `Regressor`."""
        return recipe_of(cls, settings)


@dataclass(frozen=True, eq=False)
class Trained:
    """An encoder, the head that descended with it, and how."""

    encoder: CpicEncoder
    network: EncoderWithHead
    histories: dict[str, History]


def train_encoder(
    recipe: Cpic, cohort: Cohort, task: Task, *, seed: int, device: torch.device, watch: Watch
) -> Trained:
    """Steps 1 and 2 of the recipe."""
    encoder = first_encoder(recipe, cohort, task, seed=seed, device=device)
    answers, covariates = Answers.of(task, cohort.targets), Scaling.of(cohort.inputs.covariates)
    beside = covariates(cohort.inputs.covariates)
    scans = len(np.unique(cohort.inputs.scan_of))
    histories: dict[str, History] = {}
    pooling = Pooling("hat", recipe.pooling)
    width = pooling.moments * encoder.features + beside.shape[1]
    network = EncoderWithHead(encoder, linear_outputs(width, task.outputs, device))
    if recipe.steps:
        learner = _pooled_learner(recipe, network, cohort, answers, beside, seed, device)
        config = _training(
            recipe.steps, learner.items, recipe.batch, recipe.rate, recipe.weight_decay, recipe.patience
        )
        histories["pooled"] = train(learner, config, seed=seed, watch=watch.part("pooled"))
    if recipe.projected_steps:
        network = EncoderWithHead(encoder, _projected_head(recipe, task, beside.shape[1], seed, device))
        seen_as = (
            calibrated(encoder, cohort.inputs.scans, seed, device) if recipe.steps else LearnedCpic(encoder)
        )
        projected = ProjectedLearner(network, cohort, answers, beside, seen_as, recipe.projection, device)
        config = _training(
            recipe.projected_steps, scans, recipe.batch, recipe.projected_rate, recipe.weight_decay
        )
        histories["projected"] = train(projected, config, seed=seed, watch=watch.part("projected"))
    encoder.eval().requires_grad_(False)
    return Trained(encoder, network, histories)


def first_encoder(
    recipe: Cpic, cohort: Cohort, task: Task, *, seed: int, device: torch.device
) -> CpicEncoder:
    """The best of `starts` random encoders, by the inner error of a linear head on their pooled moments.

    Some starts see nothing of what is asked (narrow layers of rectified units may be dead to it), and no
    descent finds it from there in the steps that there are.
    """
    channels = cohort.inputs.scans[0].channels
    networks = [recipe.encoder.network(channels, own, device) for own in seeds_of(seed, recipe.starts)]
    if len(networks) == 1:
        return networks[0]
    errors = [_start_error(network, recipe, cohort, task, seed, device) for network in networks]
    return networks[int(np.argmin(errors))]


def _start_error(
    network: CpicEncoder, recipe: Cpic, cohort: Cohort, task: Task, seed: int, device: torch.device
) -> float:
    """How well a linear head does with what an encoder is before it has learned."""
    encoder = LearnedCpic(network)
    config = VoxelReadoutConfig(START_VOXELS, START_STRATA, recipe.uniform, (recipe.pooling,))
    readout = VoxelReadout(config, lambda scan: encoder, encoder.features, seed, device)
    features = np.stack([readout.see(scan).features() for scan in cohort.inputs.scans])
    inputs = cohort.inputs
    head = LinearHead.fit(
        features[inputs.scan_of],
        cohort.targets,
        cohort.row_patients,
        task,
        free=inputs.covariates,
        seed=seed,
    )
    return head.choice.error


def _pooled_learner(
    recipe: Cpic,
    network: EncoderWithHead,
    cohort: Cohort,
    answers: Answers,
    covariates: Float64[Array, "n t"],
    seed: int,
    device: torch.device,
) -> Learner:
    """Of all scans; with patience, of those of five patients in six, judged by the others."""
    pooling = Pooling("hat", recipe.pooling)
    uniform = recipe.uniform == 1
    strategy: Strategy = (
        Randomly(recipe.voxels, pooling) if uniform else Guided(recipe.voxels, pooling, recipe.uniform)
    )

    def learner(scans: Int64) -> PooledLearner:
        rows = cohort.inputs.rows_of(scans)
        return PooledLearner(network, cohort.only(scans), answers, covariates[rows], strategy, device)

    everyone = np.arange(len(cohort.inputs.scans))
    if recipe.patience is None:
        return learner(everyone)
    folds = patient_folds(cohort.patients, HELD_OUT_FOLDS, seed=seed)
    return HeldOut(learner(everyone[folds > 0]), learner(everyone[folds == 0]), seed)


@dataclass(frozen=True, eq=False)
class CpicModel:
    """An encoder, a readout and a head. `block` is what the head takes, `inner_errors` why."""

    recipe: Cpic | RandomVoxelsRegressor
    encoder: LearnedCpic
    readout: Readout
    head: LinearHead
    block: str
    inner_errors: Mapping[str, float]
    histories: Mapping[str, Mapping[str, Any]]

    @classmethod
    def fitted(
        cls,
        recipe: Cpic | RandomVoxelsRegressor,
        encoder: LearnedCpic,
        readout: Readout,
        features: Float64[Array, "s p"],
        cohort: Cohort,
        task: Task,
        histories: Mapping[str, History],
        seed: int,
    ) -> Self:
        """With the head of the block whose inner error is least."""
        inputs = cohort.inputs
        heads = {
            name: LinearHead.fit(
                features[inputs.scan_of, where],
                cohort.targets,
                cohort.row_patients,
                task,
                free=inputs.covariates,
                seed=seed,
            )
            for name, where in readout.blocks.items()
        }
        errors = {name: head.choice.error for name, head in heads.items()}
        block = min(errors, key=lambda name: errors[name])
        told = {name: history.to_json() for name, history in histories.items()}
        return cls(recipe, encoder, readout, heads[block], block, errors, told)

    def predict(self, inputs: Inputs) -> Float64[Array, "n outputs"]:
        """See `Model`."""
        refuse_covariates(inputs, len(self.head.free_centre))
        answers = np.empty((len(inputs), self.head.task.outputs))
        for scan in np.unique(inputs.scan_of).tolist():
            rows = np.flatnonzero(inputs.scan_of == scan)
            features = self._features(inputs.scans[scan])
            answers[rows] = self.head.predict(
                np.repeat(features[None], len(rows), 0), inputs.covariates[rows]
            )
        return answers

    def look(self, scan: CubeSource, covariates: Float64[Array, " t"]) -> Look:
        """See `Model`."""
        seen = self._seen(scan)
        features, where = seen.features(), self.readout.blocks[self.block]
        gradient = np.zeros_like(features)
        gradient[where] = self.head.gradient(features[where], covariates)
        return with_distance(self.readout.told(seen, gradient), self.head, features[where])

    def tensors(self) -> dict[str, Array]:
        """See `Model`."""
        assert self.encoder.shift is not None
        assert self.encoder.scale is not None
        return {
            **under("encoder", weights_of(self.encoder.network)),
            "shift": self.encoder.shift.cpu().numpy(),
            "scale": self.encoder.scale.cpu().numpy(),
            **under("readout", self.readout.tensors()),
            **under("head", self.head.tensors()),
        }

    def manifest(self) -> dict[str, Any]:
        """See `Model`."""
        weights = sum(p.numel() for p in self.encoder.network.parameters())
        return {
            "schema": SCHEMA,
            "parameters": weights + self.head.parameters,
            "encoder": settings_of(self.recipe.encoder),
            "channels": self.encoder.network.widths[0],
            "limit": self.encoder.limit,
            "readout": self.readout.manifest(),
            "head": self.head.manifest(),
            "block": self.block,
            "inner_errors": dict(self.inner_errors),
            "histories": {name: dict(history) for name, history in self.histories.items()},
            "digest": digest(self.tensors()),
        }

    @classmethod
    def from_saved(
        cls,
        recipe: Cpic | RandomVoxelsRegressor,
        encoder: LearnedCpic,
        readout: Readout,
        tensors: Mapping[str, Array],
        manifest: Mapping[str, Any],
        task: Task,
    ) -> Self:
        """What `tensors` and `manifest` gave, with its encoder and readout.

        Raises InvalidShape for a head of another task.
        """
        made = replace(recipe, encoder=recipe_of(EncoderConfig, manifest["encoder"]))
        return cls(
            made,
            encoder,
            readout,
            head_of_task(part("head", tensors), manifest["head"], task),
            manifest["block"],
            manifest["inner_errors"],
            manifest["histories"],
        )

    def _features(self, scan: CubeSource) -> Float64[Array, " p"]:
        return self._seen(scan).features()[self.readout.blocks[self.block]]

    def _seen(self, scan: CubeSource) -> Seen:
        """A look at a scan. Raises InvalidShape for another number of channels than the training's."""
        if scan.channels != (trained := self.encoder.network.widths[0]):
            raise InvalidShape(f"the scan has {scan.channels} channels, the training's had {trained}")
        return self.readout.see(scan)


def _training(
    steps: int, scans: int, batch: int, rate: float, weight_decay: float, patience: int | None = None
) -> TrainingConfig:
    """So many steps, in whole epochs."""
    epochs = max(1, round(steps / max(1, scans // batch)))
    return TrainingConfig(epochs=epochs, batch=batch, rate=rate, weight_decay=weight_decay, patience=patience)


def _projected_head(
    recipe: Cpic, task: Task, covariates: int, seed: int, device: torch.device
) -> torch.nn.Module:
    """The paper's perceptron, or a linear head."""
    width = recipe.projection.count + covariates
    if not recipe.perceptron:
        return linear_outputs(width, task.outputs, device)
    return Head(width, seed, outputs=task.outputs, hidden=HIDDEN, dtype=torch.float64).to(device)


def _loaded_encoder(
    tensors: Mapping[str, Array], manifest: Mapping[str, Any], device: torch.device
) -> LearnedCpic:
    """The encoder that a model was saved with. Raises InvalidShape for a model that is not whole."""
    refuse_other(tensors, manifest, SCHEMA)
    network = recipe_of(EncoderConfig, manifest["encoder"]).network(int(manifest["channels"]), 0, device)
    load_weights(network, part("encoder", tensors))
    network.eval().requires_grad_(False)
    shift, scale = (torch.from_numpy(np.array(tensors[name])).to(device) for name in ("shift", "scale"))
    return LearnedCpic(network, shift, scale, float(manifest["limit"]))
