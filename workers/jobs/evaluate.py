"""`evaluate`: what a model is worth on scans whose answers are known, and that it should not have seen."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import ClassVar, Self

import numpy as np
import torch
from jaxtyping import Float64
from pydantic import Field

from models.errors import refuse_non_finite
from models.learning.cohort import Inputs
from models.learning.conformal import Conformal
from models.learning.metrics import Interval, metrics_of, row_losses
from models.learning.preparation import Caveat
from models.types import Array
from storage.jobs import Artifact, Progress, Queue
from workers.answers import CSV, answers_csv
from workers.cohorts import MOST_ROWS, Row, Table, truth_table
from workers.context import JobContext
from workers.jobs.base import CohortKind, Outcome, Parameters, Result, Warned
from workers.judgement import calibration, coverage, figure
from workers.memory import peak_bytes
from workers.models import MODEL_ID, NOTICE, TrainedModel, trained_model
from workers.packages import versions
from workers.preparing import prepared
from workers.scans import Readers

ERRORS = "errors.csv"


class EvaluateParameters(Parameters):
    """Which model, and what is true."""

    model: str = Field(min_length=1, max_length=100, description=MODEL_ID)
    rows: list[Row] = Field(min_length=1, max_length=MOST_ROWS, description="scans and their true targets")
    seed: int = Field(0, ge=0, lt=1 << 63, description="of the intervals' draws of patients")


class Bounded(Result):
    """A value and its interval at 95 %, by patients; without one where there are fewer than two."""

    value: float | None
    low: float | None
    high: float | None

    @classmethod
    def of(cls, interval: Interval) -> Self:
        """As part of a result."""
        return cls(value=interval.value, low=interval.low, high=interval.high)


class Covered(Result):
    """How often the model's interval of a level held the truth."""

    level: float
    observed: float
    low: float | None
    high: float | None


class Alike(Result):
    """Rows whose answers are alike: how many, what was told of them, and what was true."""

    of: str
    rows: int
    told: float
    true: float


class EvaluateResult(Result):
    """What the model is worth on these rows."""

    notice: str
    model: str
    model_digest: str
    regressor: str
    target_name: str
    target_unit: str
    rows: int
    scans: int
    patients: int
    metrics: dict[str, Bounded]
    coverage: list[Covered] = Field(description="shares of truths in the model's intervals or sets")
    guarantee: str = Field(description="what the intervals promise")
    calibration: list[Alike]
    warnings: list[Warned]
    seconds: float
    peak_memory_bytes: int
    table_digest: str
    packages: dict[str, str]
    seed: int
    device: str


class Evaluate(CohortKind[EvaluateParameters]):
    """Asks a model about rows whose targets are known."""

    name = "evaluate"
    version = "1"
    title = "Evaluate"
    description = (
        "Asks a trained model about a table of scans with known targets: metrics with intervals, how often "
        "the model's own intervals hold the truth, and a warning where it has seen a patient before."
    )
    queue = Queue.BATCH
    parameters = EvaluateParameters
    result: ClassVar[type[Result]] = EvaluateResult

    def run(self, context: JobContext, parameters: EvaluateParameters) -> Outcome:
        """Evaluate. Raises UnusableModel, CorruptArtifact, InvalidCohort and CohortNotReady before any scan
        is opened, OverBudget before one is read; CorruptVolume, ModelError.
        """
        began = time.perf_counter()
        found = trained_model(context, parameters.model)
        trained = found.trained
        table = truth_table(parameters.rows, trained.task, trained.names, context.find_volume)
        settings = context.settings
        with Readers(settings.cache_bytes, settings.dask_scheduler) as readers:
            scans = prepared(
                context, table, found.takes, lambda raw: trained.preparation, trained.training.seed, readers
            )
            inputs = table.cohort(scans.scans).inputs
            outputs = _answers(context, trained, inputs)
        warnings = [
            *seen_before(trained, table.patients, table.digests),
            *outside(trained, table),
            *scans.warnings(),
        ]
        result = EvaluateResult(
            notice=NOTICE,
            model=parameters.model,
            model_digest=found.sha256,
            regressor=trained.recipe.name,
            target_name=trained.target_name,
            target_unit=trained.target_unit,
            rows=len(table),
            scans=len(table.records),
            patients=len(set(table.patients)),
            metrics=_metrics(table, outputs, parameters.seed),
            coverage=covered(trained.conformal, outputs, table.targets, table.row_patients, parameters.seed),
            guarantee=trained.conformal.guarantee,
            calibration=[Alike(**asdict(each)) for each in calibration(outputs, table.targets, table.task)],
            warnings=Warned.all(warnings),
            seconds=time.perf_counter() - began,
            peak_memory_bytes=peak_bytes(),
            table_digest=table.sha256,
            packages=versions(),
            seed=parameters.seed,
            device=context.device,
        )
        return Outcome(result, (_errors(context, parameters, trained, table, outputs),))


def _answers(context: JobContext, trained: TrainedModel, inputs: Inputs) -> Float64[Array, "n o"]:
    """The model's word on all rows, scan by scan."""
    outputs = np.empty((len(inputs), trained.task.outputs))
    for done in range(len(inputs.scans)):
        context.report(Progress("asking", done, len(inputs.scans), "scans"))
        scan = np.array([done])
        outputs[inputs.rows_of(scan)] = trained.answers(inputs.only(scan))
    refuse_non_finite(torch.from_numpy(outputs), "the answers")
    return outputs


def seen_before(trained: TrainedModel, patients: Iterable[str], digests: Iterable[str]) -> list[Caveat]:
    """Which patients and scans a model has learnt from: what it says of them proves nothing."""
    told, learnt = [], trained.learnt_from
    if known := sorted({name for name in patients if any(each.knows(name) for each in learnt)}):
        text = f"{len(known)} patients were learnt from, as {known[0]}: figures of them are too good"
        told.append(Caveat("patient-seen", text))
    if count := len(set(digests) & {digest for each in learnt for digest in each.volumes}):
        text = f"{count} scans were learnt from: figures of them are too good"
        told.append(Caveat("scan-seen", text))
    return told


def outside(trained: TrainedModel, table: Table) -> list[Caveat]:
    """Rows with covariates outside of what was learnt from."""
    found = [trained.outside(row) for row in table.covariates]
    rows = [texts[0] for texts in found if texts]
    return [Caveat("covariate-outside", f"{len(rows)} of {len(table)} rows; {rows[0]}")] if rows else []


def _metrics(table: Table, outputs: Float64[Array, "n o"], seed: int) -> dict[str, Bounded]:
    return {
        metric.name: Bounded.of(figure(metric, outputs, table.targets, table.row_patients, seed))
        for metric in metrics_of(table.task)
    }


def covered(
    conformal: Conformal,
    outputs: Float64[Array, "n o"],
    targets: Float64[Array, " n"],
    patients: Sequence[str],
    seed: int,
) -> list[Covered]:
    """How often a model's intervals hold the truth, for each level."""
    return [
        Covered(level=level, observed=share.value, low=share.low, high=share.high)
        for level, share in coverage(conformal, outputs, targets, patients, seed)
        if share.value is not None
    ]


def _errors(
    context: JobContext,
    parameters: EvaluateParameters,
    trained: TrainedModel,
    table: Table,
    outputs: Float64[Array, "n o"],
) -> Artifact:
    """Every row's answer and loss."""
    losses = row_losses(outputs, table.targets, table.task).tolist()
    content = answers_csv(parameters.rows, table.task, outputs, trained.conformal, {"loss": losses})
    return context.artifacts.write_bytes(ERRORS, content, CSV)
