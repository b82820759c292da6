"""`compress-model`: a trained network becomes a smaller one, with what that changes of its answers."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

from models.compression.reports import report
from models.errors import InvalidConfig
from models.learning.cohort import Cohort
from models.regressors.base import Extent
from models.regressors.compressed import example_of
from models.training import Watch
from storage.errors import InvalidParameters
from storage.jobs import Progress, Queue
from workers.cohorts import truth_table
from workers.comparing import compared
from workers.compressing import (
    Network,
    Parts,
    Smaller,
    Wanted,
    made_smaller,
    network_of,
    purpose,
    read_again,
    training_of,
)
from workers.context import JobContext
from workers.jobs.base import CohortKind, Outcome, Result
from workers.jobs.compress_model_result import Made
from workers.jobs.compress_model_schema import FINER, CompressModelParameters, CompressModelResult
from workers.models import COMPRESS_MODEL, LOADED_COPIES, NOTICE, Found, TrainedModel, trained_model
from workers.preparing import prepared
from workers.scans import Readers
from workers.schemas import pointer

PLANNING_COPIES, PLANNING_BYTES = 20, 32 << 20
"""Of a model's file, and beside: what a search holds of layers in float64, their unfoldings and spectra. Of
residual networks of 0.9, 7.7 and 31 MiB it took 39, 139 and 303 MiB.
"""
OTHER_COPIES = 4
"""Of a model's file: the compressed one, as it descends and as it is read again, and the file."""
LOOKS = 2
"""Of a scan at once, while normalisations are recalibrated: what a layer gives, before and after its own."""
SETTINGS = {"rho": "share"}
"""Settings of the mathematics that have another name here."""


class CompressModel(CohortKind[CompressModelParameters]):
    """Plans, compresses, recalibrates and, where asked, trains on; then asks both models."""

    name = COMPRESS_MODEL
    version = "1"
    title = "Compress a model"
    description = (
        "Makes a trained network smaller by tensor rings or spectral weights: for an error of its kernels, a "
        "number of parameters, multiplications or bytes, or the largest loss of its metric. The new model "
        "answers as its parent does; the result says what it saves and what it changes. " + NOTICE
    )
    queue = Queue.TRAIN
    parameters = CompressModelParameters
    result: ClassVar[type[Result]] = CompressModelResult

    def parse(self, parameters: Mapping[str, Any]) -> CompressModelParameters:
        """See `Kind`: targets are checked together too."""
        parsed = super().parse(parameters)
        if problems := parsed.problems():
            raise InvalidParameters(problems)
        return parsed

    def run(self, context: JobContext, parameters: CompressModelParameters) -> Outcome:
        """Compress. Raises UnusableModel, CorruptArtifact, InvalidParameters, InvalidCohort, CohortNotReady
        before any scan is opened, OverBudget before one is read; InvalidParameters for a target that cannot
        be met, with what can; CorruptVolume, ModelError.
        """
        began = time.perf_counter()
        found = trained_model(context, parameters.model)
        trained, network = found.trained, network_of(parameters.model, found.trained)
        table = truth_table(parameters.rows, trained.task, trained.names, context.find_volume)
        parts = Parts.of(table, parameters.judging_share, parameters.seed)
        wanted = _wanted(parameters, trained)
        takes, settings = partial(_taken, found, wanted), context.settings
        with Readers(settings.cache_bytes, settings.dask_scheduler) as readers:
            scans = prepared(
                context, table, takes, lambda raw: trained.preparation, trained.training.seed, readers
            )
            cohort = table.cohort(scans.scans)
            watch = _watch(context, found)
            smaller = _smaller(found, network, cohort.only(parts.making), wanted, watch)
            again = read_again(trained, smaller.model)
            pairs = compared(trained, replace(trained, model=again), cohort, parts.judging, watch.report)
            watch.report("timing", 0, None)
            measured = report(network.network, again.network, example_of(network, cohort.inputs))
        made = Made(parameters, found, table, parts, smaller, again, pairs, measured, scans)
        artifacts = made.write(context.artifacts)
        return Outcome(made.result(context.device, artifacts[0], time.perf_counter() - began), artifacts)


def _watch(context: JobContext, found: Found) -> Watch:
    """Progress as the job's, and checkpoints for this program, these parameters and this model."""

    def tell(phase: str, done: int, total: int | None) -> None:
        context.report(Progress(phase, done, total))

    return Watch(tell, context.checkpoints.meant_for(purpose(context.job.parameters, found.sha256)))


def _wanted(parameters: CompressModelParameters, trained: TrainedModel) -> Wanted:
    """What was asked for, as the mathematics takes it. Raises InvalidParameters."""
    training = training_of(trained.recipe)
    rate = parameters.rate or training.rate / FINER
    tuning = (
        replace(training, epochs=parameters.epochs, rate=rate, patience=None) if parameters.epochs else None
    )
    with _pointing():
        return Wanted(
            parameters.config,
            parameters.max_drop,
            None if parameters.execution == "auto" else parameters.execution,
            parameters.by_answers,
            training.batch,
            tuning,
            parameters.seed,
        )


def _smaller(found: Found, network: Network, cohort: Cohort, wanted: Wanted, watch: Watch) -> Smaller:
    """The model as wanted. Raises InvalidParameters for a target that it cannot come to."""
    with _pointing():
        return made_smaller(found.trained, network, cohort, wanted, watch)


@contextmanager
def _pointing() -> Iterator[None]:
    """A setting that cannot be is a parameter that cannot be."""
    try:
        yield
    except InvalidConfig as error:
        name = SETTINGS.get(error.setting, error.setting)
        if name not in CompressModelParameters.model_fields:
            raise
        raise InvalidParameters([(pointer(name), str(error))]) from error


def _taken(found: Found, wanted: Wanted, extent: Extent) -> dict[str, int]:
    """The memory that making and asking about so much takes, by the recipe's name."""
    recipe = found.trained.recipe
    together = -(-extent.scans // max(1, extent.scans // wanted.batch))
    looking = LOOKS * together * recipe.answering_bytes(extent)
    descends = wanted.by_answers or wanted.tuning is not None
    training = recipe.training_bytes(extent) if descends else 0
    models = (LOADED_COPIES + OTHER_COPIES) * found.size
    planning = PLANNING_COPIES * found.size + PLANNING_BYTES
    return {recipe.name: models + max(planning, looking, training)}
