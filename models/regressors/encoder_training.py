"""Training an encoder, by the recipe that learns: from a random start to weights that stand still.

1. The best of a few random starts (`first_encoder`).
2. By the pooled moments of random voxels and a linear head (`PooledLearner`), for `steps` steps.
3. Through tensor trains (`ProjectedLearner`), for `projected_steps` (none by default): by their principal
   features, with the paper's perceptron or a linear head.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float64

from models.cpic.encoder import CpicEncoder, LearnedCpic
from models.cpic.head import HIDDEN, Head
from models.cpic.moments import Pooling
from models.cpic.strategies import Randomly, Strategy
from models.errors import InvalidConfig
from models.learning.cohort import Cohort
from models.learning.folds import patient_folds
from models.learning.linear import LinearHead
from models.learning.task import Task
from models.limits import refuse_outside
from models.regressors.encoder_bound import bound_, freeze_
from models.regressors.encoder_memory import EncoderMemory
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
from models.regressors.neural import Answers, Scaling
from models.regressors.readouts import (
    VoxelReadout,
    VoxelReadoutConfig,
)
from models.threads import one_thread
from models.training import HeldOut, History, Learner, TrainingConfig, Watch, ignore, train
from models.types import Array, Int64, Report

START_VOXELS, START_STRATA = 256, 4
"""Of each scan, that starts are compared at."""
HELD_OUT_FOLDS = 6
"""One of them is held out where there is patience."""
LEAST_BATCH = 3
"""Scans: what is standardised among two is 1 and -1, whatever it is."""


@dataclass(frozen=True)
class EncoderTraining(EncoderMemory):
    """How an encoder is trained. `steps` = 0 leaves it as it was drawn: the random frozen one. Of `starts`
    draws that one is taken whose features a linear head does best with.

    `voxels` are drawn per scan and step, with `uniform` < 1 where scans are rough
    (`models.regressors.guides`). `batch` scans make a step, `LEAST_BATCH` or more. With `patience`, one
    patient in six is held out of step 2, which ends so many epochs after the best, and keeps that. Raises
    InvalidConfig, naming the setting.
    """

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

    def __post_init__(self) -> None:
        refuse_outside(
            self,
            steps=(0, 10**6),
            projected_steps=(0, 10**6),
            starts=(1, 64),
            batch=(LEAST_BATCH, 4096),
            voxels=(1, 10**7),
            pooling=(1, 16),
        )
        for setting in ("rate", "projected_rate"):
            if not 0 < getattr(self, setting) <= 1:
                raise InvalidConfig(setting, getattr(self, setting), "above 0, at most 1")
        if not 0 <= self.weight_decay < 1:
            raise InvalidConfig("weight_decay", self.weight_decay, "from 0 to below 1")
        if not 0 < self.uniform <= 1:
            raise InvalidConfig("uniform", self.uniform, "above 0, at most 1")
        if self.patience is not None and not (isinstance(self.patience, int) and self.patience >= 1):
            raise InvalidConfig("patience", self.patience, "a whole number of at least 1, or none")


@dataclass(frozen=True, eq=False)
class Trained:
    """An encoder, the head that descended with it, and how."""

    encoder: CpicEncoder
    network: EncoderWithHead
    histories: dict[str, History]


@one_thread()
def train_encoder(
    recipe: EncoderTraining, cohort: Cohort, task: Task, *, seed: int, device: torch.device, watch: Watch
) -> Trained:
    """All steps; the encoder then stands still. With one thread: the same bits on however many cores."""
    encoder = first_encoder(recipe, cohort, task, seed=seed, device=device, report=watch.report)
    lesson = _Lesson(recipe, cohort, Answers.of(task, cohort.targets), seed, device)
    network, histories = lesson.pooled_network(encoder), {}
    if recipe.steps:
        learner, config = lesson.pooled(network)
        histories["pooled"] = train(learner, config, seed=seed, watch=watch.part("pooled"))
    if recipe.projected_steps:
        network = lesson.projected_network(encoder)
        learner, config = lesson.projected(network)
        histories["projected"] = train(learner, config, seed=seed, watch=watch.part("projected"))
    freeze_(encoder)
    return Trained(encoder, network, histories)


@dataclass(frozen=True, eq=False)
class _Lesson:
    """What the steps of a training have in common, and what each descends with."""

    recipe: EncoderTraining
    cohort: Cohort
    answers: Answers
    seed: int
    device: torch.device

    @cached_property
    def covariates(self) -> Float64[Array, "n t"]:
        """Scaled."""
        own = self.cohort.inputs.covariates
        return Scaling.of(own)(own)

    @property
    def pooling(self) -> Pooling:
        """Of the first step."""
        return Pooling("hat", self.recipe.pooling)

    def pooled_network(self, encoder: CpicEncoder) -> EncoderWithHead:
        """With a linear head on pooled moments."""
        width = self.pooling.moments * encoder.features + self.covariates.shape[1]
        return EncoderWithHead(encoder, linear_outputs(width, self.answers.task.outputs, self.device))

    def pooled(self, network: EncoderWithHead) -> tuple[Learner, TrainingConfig]:
        """By all scans; with patience, by those of five patients in six, judged by the others."""
        recipe, scans = self.recipe, np.arange(len(self.cohort.inputs.scans))
        learner: Learner
        if recipe.patience is None:
            learner = self._pooled(network, scans)
        else:
            held_out = self._held_out(recipe.patience)
            learning, judging = (
                self._pooled(network, scans[~held_out]),
                self._pooled(network, scans[held_out]),
            )
            learner = HeldOut(learning, judging, self.seed)
        return learner, _training(recipe, recipe.steps, learner.items, recipe.rate, recipe.patience)

    def projected_network(self, encoder: CpicEncoder) -> EncoderWithHead:
        """With the paper's perceptron on principal features, or a linear head."""
        width, outputs = self.recipe.projection.count + self.covariates.shape[1], self.answers.task.outputs
        head: torch.nn.Module = linear_outputs(width, outputs, self.device)
        if self.recipe.perceptron:
            head = Head(width, self.seed, outputs=outputs, hidden=HIDDEN, dtype=torch.float64).to(self.device)
            if self.recipe.encoder.spectral_bound is not None:
                bound_(head, self.recipe.encoder.spectral_bound)
        return EncoderWithHead(encoder, head)

    def projected(self, network: EncoderWithHead) -> tuple[Learner, TrainingConfig]:
        """By all scans, seen by the encoder as the first step left it."""
        recipe, cohort = self.recipe, self.cohort
        seen_by = LearnedCpic(network.encoder)
        if recipe.steps:
            seen_by = calibrated(network.encoder, cohort.inputs.scans, self.seed, self.device)
        learner = ProjectedLearner(
            network, cohort, self.answers, self.covariates, seen_by, recipe.projection, self.device
        )
        return learner, _training(recipe, recipe.projected_steps, learner.items, recipe.projected_rate)

    def _pooled(self, network: EncoderWithHead, scans: Int64) -> PooledLearner:
        """By some scans."""
        recipe, rows = self.recipe, self.cohort.inputs.rows_of(scans)
        strategy: Strategy = Randomly(recipe.voxels, self.pooling)
        if recipe.uniform < 1:
            strategy = Guided(recipe.voxels, self.pooling, recipe.uniform)
        return PooledLearner(
            network, self.cohort.only(scans), self.answers, self.covariates[rows], strategy, self.device
        )

    def _held_out(self, patience: int) -> Bool[Array, " s"]:
        """Which scans are of the sixth of the patients that judges."""
        patients = self.cohort.patients
        held_out = patient_folds(patients, min(HELD_OUT_FOLDS, len(set(patients))), seed=self.seed) == 0
        if (few := int(held_out.sum())) < LEAST_BATCH:
            allowed = f"none where fewer than {LEAST_BATCH} scans are held out, here {few}"
            raise InvalidConfig("patience", patience, allowed)
        return np.asarray(held_out)


def _training(
    recipe: EncoderTraining, steps: int, scans: int, rate: float, patience: int | None = None
) -> TrainingConfig:
    """So many steps, in whole epochs."""
    epochs = max(1, round(steps / max(1, scans // recipe.batch)))
    return TrainingConfig(
        epochs=epochs, batch=recipe.batch, rate=rate, weight_decay=recipe.weight_decay, patience=patience
    )


def first_encoder(
    recipe: EncoderTraining,
    cohort: Cohort,
    task: Task,
    *,
    seed: int,
    device: torch.device,
    report: Report = ignore,
) -> CpicEncoder:
    """The best of `starts` random encoders, by the inner error of a linear head on their pooled moments.

    Some starts see more of what is asked than others, and learn in fewer steps. `report` is called with the
    phase "starts".
    """
    channels = cohort.inputs.scans[0].channels
    networks = [recipe.encoder.network(channels, own, device) for own in seeds_of(seed, recipe.starts)]
    if len(networks) == 1:
        return networks[0]
    errors, scans = [], len(cohort.inputs.scans)
    for number, network in enumerate(networks):
        features = []
        readout = _start_readout(network, recipe, seed, device)
        for at, scan in enumerate(cohort.inputs.scans):
            report("starts", number * scans + at, len(networks) * scans)
            features.append(readout.see(scan).features())
        errors.append(_inner_error(np.stack(features), cohort, task, seed))
    return networks[int(np.argmin(errors))]


def _start_readout(
    network: CpicEncoder, recipe: EncoderTraining, seed: int, device: torch.device
) -> VoxelReadout:
    """How an encoder that has not learned is read."""
    encoder = LearnedCpic(network)
    config = VoxelReadoutConfig(START_VOXELS, START_STRATA, recipe.uniform, (recipe.pooling,))
    return VoxelReadout(config, lambda scan: encoder, encoder.features, seed, device)


def _inner_error(features: Float64[Array, "s p"], cohort: Cohort, task: Task, seed: int) -> float:
    """How well a linear head does with features of scans."""
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
