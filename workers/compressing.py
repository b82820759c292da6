"""A trained network becomes a smaller one: planned, compressed, recalibrated, descended further where asked.

The plan is a checkpoint, and so is the state of the descent: an attempt that goes on from a lost one finds
both, and comes to the same bits on a CPU with as many threads.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self, cast

import numpy as np
from torch import nn

from models.compression.curvature import Curvature, curvature
from models.compression.planning import Config, plan
from models.compression.plans import CompressionPlan
from models.compression.tolerance import plan_within_drop
from models.learning.cohort import Cohort, Inputs
from models.learning.folds import patient_split
from models.learning.metrics import metrics_of
from models.regressors.base import Regressor
from models.regressors.compressed import Batch, batches_of, compressed_model, example_of, tuned
from models.regressors.network_model import NetworkModel
from models.regressors.neural import RowNetwork
from models.rsdtr.candidates import RingConfig
from models.training import TrainingConfig, Watch
from models.types import Int64, Report
from storage.errors import InvalidParameters, UnusableModel
from workers.cohorts import Table
from workers.models import TrainedModel
from workers.packages import program
from workers.trials import told_apart

PLANNING = "planning"
Network = NetworkModel[Any]


@dataclass(frozen=True)
class Wanted:
    """What a network is to become: as a `config` says, or as small as a `max_drop` of the task's first metric
    lets it. With `by_answers` errors are measured by what they do to answers, not to kernels. `batch` scans
    recalibrate at once; `tuning` is a descent afterwards, or None.
    """

    config: Config | None
    max_drop: float | None
    execution: str | None
    by_answers: bool
    batch: int
    tuning: TrainingConfig | None
    seed: int


@dataclass(frozen=True, eq=False)
class Smaller:
    """A plan, and the model that it was carried out on."""

    plan: CompressionPlan
    model: Network

    @property
    def plan_digest(self) -> str:
        """SHA-256 of the plan's JSON."""
        return hashlib.sha256(self.plan.to_json().encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class Parts:
    """The scans that make the model, and those that judge it; `apart`: no patient is in both."""

    making: Int64
    judging: Int64
    apart: bool

    @classmethod
    def of(cls, table: Table, share: float | None, seed: int) -> Self:
        """All for both, or this share of the patients, drawn, to judge.

        Raises InvalidParameters for too few patients, and for fewer than two scans to make the model of.
        """
        if share is not None and len(set(table.patients)) < 2:
            told = "one patient: some have to judge, and others to make the model; give rows of two or more"
            raise InvalidParameters([("/rows", told)])
        if share is None:
            making = judging = np.arange(len(table.records))
        else:
            split = patient_split(table.row_patients, (1 - share, 0, share), seed=seed)
            making, judging = (np.unique(table.scan_of[rows]) for rows in (split.train, split.test))
        if len(making) < 2:
            told = "normalisations cannot be recalibrated on one scan; give rows of two scans or more"
            raise InvalidParameters([("/rows", f"{told}, beside those that judge" if share else told)])
        return cls(making, judging, apart=share is not None)


def network_of(job_id: str, trained: TrainedModel) -> Network:
    """The model, if it is one of a network. Raises UnusableModel with the reason and the cure."""
    if not isinstance(trained.model, NetworkModel):
        told = (
            f"the answers of {trained.recipe.name} are fitted in closed form: there is no network of them to "
            "compress; train a regressor that is one, as resnet3d"
        )
        raise UnusableModel(job_id, told)
    return trained.model


def made_smaller(
    trained: TrainedModel, model: Network, cohort: Cohort, wanted: Wanted, watch: Watch
) -> Smaller:
    """The model as wanted; the cohort's targets are looked at for a `max_drop` and for a descent alone.

    Raises InvalidConfig, with what can be met, for a budget or a drop that cannot be; InvalidShape, NonFinite
    and what the watch raises.
    """
    inputs, batches = cohort.inputs, _Batches(model, cohort.inputs, wanted.batch, watch.report)
    by = curvature(model.network, batches, seed=wanted.seed) if wanted.by_answers else None
    found = _kept_plan(watch, lambda: _plan(trained, model, cohort, wanted, watch, by))
    made = compressed_model(model, found, inputs, watch, batch=wanted.batch, curvature=by)
    if wanted.tuning is not None:
        part = watch.part("tuning")
        made = tuned(made, cohort, wanted.tuning, seed=wanted.seed, watch=part)
    return Smaller(found, made)


def read_again(trained: TrainedModel, model: Network) -> Network:
    """The model as a later job will load it."""
    manifest = json.loads(json.dumps(model.manifest()))
    loaded = trained.recipe.load(model.tensors(), manifest, trained.task, model.sight.device)
    assert isinstance(loaded, NetworkModel)
    return loaded


def training_of(recipe: Regressor) -> TrainingConfig:
    """How the network of a recipe was trained."""
    training = vars(recipe)["training"]
    assert isinstance(training, TrainingConfig)
    return training


def purpose(parameters: Mapping[str, Any], model_digest: str) -> str:
    """All that checkpoints depend on, as a digest: the program, the job's parameters and the model's file."""
    said = {"program": program(), "parameters": parameters, "model": model_digest}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _kept_plan(watch: Watch, make: Callable[[], CompressionPlan]) -> CompressionPlan:
    """The plan that an earlier attempt came to, or the one that is made now."""
    kept = None if watch.checkpoints is None else watch.checkpoints.part("plan")
    if kept is not None and (found := kept.load()) is not None:
        return CompressionPlan.from_json(found[1]["plan"])
    made = make()
    if kept is not None:
        kept.save({}, {"plan": made.to_json()})
    return made


def _plan(
    trained: TrainedModel,
    model: Network,
    cohort: Cohort,
    wanted: Wanted,
    watch: Watch,
    by: Curvature | None,
) -> CompressionPlan:
    network, example = model.network, example_of(model, cohort.inputs)
    report = told_apart(watch.report, PLANNING)
    if wanted.config is not None:
        how = wanted.execution
        return plan(network, example, wanted.config, execution=how, curvature=by, report=report)
    assert wanted.max_drop is not None
    batches = _Batches(model, cohort.inputs, wanted.batch, watch.report)
    score = _Score(trained, model, cohort, watch)
    return plan_within_drop(
        network,
        example,
        score,
        wanted.max_drop,
        batches=batches,
        config=RingConfig(canonical=by is not None),
        curvature=by,
        report=report,
    )


@dataclass(frozen=True, eq=False)
class _Score:
    """The task's first metric of a network's answers to a cohort; larger is better."""

    trained: TrainedModel
    model: Network
    cohort: Cohort
    watch: Watch

    def __call__(self, network: nn.Module) -> float:
        """Of a network in the place of the model's."""
        self.watch.report(f"{PLANNING}: scoring", 0, None)
        candidate = replace(self.model, network=cast(RowNetwork, network))
        outputs = replace(self.trained, model=candidate).answers(self.cohort.inputs)
        metric = metrics_of(self.trained.task)[0]
        value = metric(outputs, self.cohort.targets)
        assert value is not None, "a task's first metric has a value for any rows"
        return value if metric.higher_is_better else -value


@dataclass(frozen=True, eq=False)
class _Batches:
    """A cohort's scans in batches, read anew each time that they are gone through."""

    model: Network
    inputs: Inputs
    size: int
    report: Report

    def __iter__(self) -> Iterator[Batch]:
        for number, batch in enumerate(batches_of(self.model, self.inputs, self.size)):
            self.report(f"{PLANNING}: looking at scans", number, None)
            yield batch
