"""`predict`: what a model says of a scan, how sure it is, and what of the scan it says it by."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float64
from pydantic import Field

from models.errors import refuse_non_finite
from models.learning.cohort import Inputs
from models.learning.conformal import COVERAGES
from models.learning.preparation import Caveat, PreparedScan
from models.learning.task import QUANTILE_LEVELS
from models.regressors.base import Look, Saliency
from models.types import Array
from storage.jobs import Artifact, Progress, Queue
from storage.volume import Volume
from workers.context import JobContext
from workers.jobs.base import Kind, Outcome, Parameters, Result, Warned
from workers.jobs.reading import ReadResult, cache_bytes, reading_of, recorded
from workers.memory import BASE_BYTES, peak_bytes
from workers.models import MODEL_ID, NOTICE, Found, TrainedModel, trained_model
from workers.packages import versions
from workers.pictures import Cubes, saliency_png
from workers.preparing import extent_of, refuse_greedy
from workers.scans import RecordedCubes, raw_scan

SALIENCY, PICTURE = "saliency.json", "saliency.png"
UNUSUAL = 95.0
"""A percentile of distances among the training's scans from which a scan is called unusual."""
UNJUDGED = {"covariate-outside", "modality-other", "spacing-far"}
"""Caveats of what a model has not learnt from, and its distance does not measure."""


class PredictParameters(Parameters):
    """Which model, and what it wants to know beside the scan."""

    model: str = Field(min_length=1, max_length=100, description=MODEL_ID)
    covariates: dict[str, float] = Field({}, description="numbers beside the scan, by name")


class Between(Result):
    """An interval. Without ends where the model learnt from too few patients for its level."""

    level: float
    low: float | None
    high: float | None


class Quantile(Result):
    """What the truth is below with this probability."""

    level: float
    value: float


class Probability(Result):
    """Of a class; `sets` are the levels whose set of classes it is in."""

    name: str
    value: float
    sets: list[float]


class PredictResult(ReadResult):
    """The answer, and how far to trust it."""

    notice: str
    target_name: str
    target_unit: str
    value: float | None = Field(description="the indicator: a mean or a median; null for classes")
    class_name: str | None = Field(description="the most probable class; null for numbers")
    intervals: list[Between]
    quantiles: list[Quantile]
    probabilities: list[Probability]
    guarantee: str = Field(description="what the intervals promise")
    distance: float | None = Field(description="how far the scan is from the training's, in the model's unit")
    distance_percentile: float | None = Field(description="where that stands among the training's scans")
    verdict: str = Field(description="the same in plain words")
    certificate: dict[str, Any] | None = Field(description="error of the approximation that was read")
    warnings: list[Warned]
    voxels: int = Field(description="distinct voxels whose features were used")
    seconds: float
    peak_memory_bytes: int
    model: str = Field(description=MODEL_ID)
    model_digest: str
    regressor: str
    volume_digest: str
    covariates: dict[str, float]
    packages: dict[str, str]
    device: str


class Predict(Kind[PredictParameters]):
    """Prepares the scan as the training's were, asks the model, and says what stands behind the answer."""

    name = "predict"
    version = "1"
    title = "Predict"
    description = (
        "Asks a trained model about a scan: the health indicator with calibrated intervals, how unlike the "
        "training's scans this one is, and which sampled cubes moved the answer. " + NOTICE
    )
    queue = Queue.INTERACTIVE
    parameters = PredictParameters
    result: ClassVar[type[Result]] = PredictResult

    def memory_bytes(self, context: JobContext, parameters: PredictParameters) -> int:
        """What any prediction takes, and the cache of decoded chunks; `run` asks again, with the model."""
        return BASE_BYTES + cache_bytes(context)

    def run(self, context: JobContext, parameters: PredictParameters) -> Outcome:
        """Predict. Raises UnusableModel, CorruptArtifact and InvalidParameters before the scan is opened,
        OverBudget before it is read; CorruptVolume, ModelError.
        """
        began = time.perf_counter()
        found = trained_model(context, parameters.model)
        trained = found.trained
        covariates = trained.row(parameters.covariates)
        volume = context.volume()
        with recorded(context, volume) as read:
            raw = raw_scan(read, volume.stored)
            extent = extent_of(trained.preparation, [raw], rows=1, covariates=len(covariates))
            refuse_greedy(context, self.memory_bytes(context, parameters), extent, found.takes(extent))
            context.report(Progress("preparing"))
            scan = trained.preparation.apply(raw, trained.training.seed)
            context.report(Progress("reading"))
            asked = _ask(trained, scan, covariates)
        context.report(Progress("drawing"))
        artifacts = _write(context, volume, scan, asked)
        result = _result(context, parameters, found, volume, read, asked, began)
        return Outcome(result, artifacts)


@dataclass(frozen=True, eq=False)
class _Asked:
    """An answer (outputs,), what stands behind it, and what is unusual."""

    answer: Float64[Array, " o"]
    look: Look
    caveats: tuple[Caveat, ...]

    @property
    def verdict(self) -> str:
        """How far to trust the answer, in plain words."""
        return verdict(self.look.distance_percentile, self.caveats)


def _ask(trained: TrainedModel, scan: PreparedScan, covariates: Float64[Array, " t"]) -> _Asked:
    """The model's word on one scan."""
    answers = trained.answers(Inputs.of([scan], covariates[None]))
    refuse_non_finite(torch.from_numpy(answers), "the answer")
    look = trained.model.look(scan, covariates)
    outside = (Caveat("covariate-outside", text) for text in trained.outside(covariates))
    return _Asked(answers[0], look, (*scan.warnings, *outside, *_of_distance(look)))


def _of_distance(look: Look) -> list[Caveat]:
    if look.distance_percentile is None or look.distance_percentile < UNUSUAL:
        return []
    return [Caveat("unlike-training", verdict(look.distance_percentile))]


def verdict(percentile: float | None, caveats: Sequence[Caveat] = ()) -> str:
    """How unlike the training's scans a scan is, in plain words; no "yes" beside an `UNJUDGED` caveat."""
    if percentile is None:
        return "not known: this model measures no distance"
    if percentile >= 100:
        return "no: farther from the training's scans than any of them; do not rely on the answer"
    if percentile >= UNUSUAL:
        return f"hardly: farther from the training's scans than {percentile:.0f} % of them"
    if not UNJUDGED.isdisjoint(caveat.code for caveat in caveats):
        return "not judged: see the warnings"
    return f"yes: closer to the training's scans than {100 - percentile:.0f} % of them"


def _write(context: JobContext, volume: Volume, scan: PreparedScan, asked: _Asked) -> tuple[Artifact, ...]:
    """Where the answer comes from: as numbers, and as a picture. Nothing where the model does not say."""
    saliency = asked.look.saliency
    if saliency is None or not len(saliency.weights):
        return ()
    cubes = Cubes(
        scan.places.stored(saliency.voxels),
        saliency.weights,
        scan.places.sides(saliency.sides),
    )
    return (
        context.artifacts.write_json(SALIENCY, _document(volume, saliency, cubes), indent=None),
        context.artifacts.write_bytes(PICTURE, saliency_png(volume, cubes, NOTICE), "image/png"),
    )


def _document(volume: Volume, saliency: Saliency, cubes: Cubes) -> dict[str, Any]:
    """Cubes by their weight: centres in the scan's own voxels (z, y, x), with fractions."""
    order = np.argsort(-np.abs(saliency.weights), kind="stable")
    return {
        "notice": NOTICE,
        "volume_digest": volume.stored.digest,
        "axes": ["z", "y", "x"],
        "cube_sides": cubes.sides.round(3).tolist(),
        "centres": cubes.centres[order].round(3).tolist(),
        "weights": [float(f"{weight:.6g}") for weight in saliency.weights[order].tolist()],
    }


def _result(
    context: JobContext,
    parameters: PredictParameters,
    found: Found,
    volume: Volume,
    read: RecordedCubes,
    asked: _Asked,
    began: float,
) -> PredictResult:
    trained, look = found.trained, asked.look
    return PredictResult(
        notice=NOTICE,
        target_name=trained.target_name,
        target_unit=trained.target_unit,
        **_answer(trained, asked.answer),
        guarantee=trained.conformal.guarantee,
        distance=look.distance,
        distance_percentile=look.distance_percentile,
        verdict=asked.verdict,
        certificate=look.certificate,
        warnings=Warned.all(asked.caveats),
        voxels=look.voxels,
        **reading_of(context, volume, read),
        seconds=time.perf_counter() - began,
        peak_memory_bytes=peak_bytes(),
        model=parameters.model,
        model_digest=found.sha256,
        regressor=trained.recipe.name,
        volume_digest=volume.stored.digest,
        covariates=dict(parameters.covariates),
        packages=versions(),
        device=context.device,
    )


def _answer(trained: TrainedModel, answer: Float64[Array, " o"]) -> dict[str, Any]:
    """An answer as parts of a result."""
    task, conformal = trained.task, trained.conformal
    told: dict[str, Any] = {
        "value": None,
        "class_name": None,
        "intervals": [],
        "quantiles": [],
        "probabilities": [],
    }
    if task.kind == "classes":
        sets = {level: conformal.sets(answer[None], level)[0] for level in COVERAGES}
        told["class_name"] = task.classes[int(answer.argmax())]
        told["probabilities"] = [
            Probability(
                name=name,
                value=float(answer[number]),
                sets=[level for level, members in sets.items() if members[number]],
            )
            for number, name in enumerate(task.classes)
        ]
        return told
    told["value"] = float(answer[len(answer) // 2])
    told["intervals"] = [_between(level, conformal.intervals(answer[None], level)[0]) for level in COVERAGES]
    if task.kind == "quantiles":
        told["quantiles"] = [
            Quantile(level=level, value=value)
            for level, value in zip(QUANTILE_LEVELS, answer.tolist(), strict=True)
        ]
    return told


def _between(level: float, ends: Float64[Array, " 2"]) -> Between:
    low, high = ends.tolist()
    finite = math.isfinite(low) and math.isfinite(high)
    return Between(level=level, low=low if finite else None, high=high if finite else None)
