"""A trained model as an artifact: tensors, and a manifest with all that using and judging it takes.

The manifest holds no time and no name of a job: the same cohort, seed and versions make the same bytes. Of
patients it holds salted digests alone, so that an evaluation can say whom a model has seen. A model that was
made of another one has its lineage: the digests of the files that it came from, and how each was made.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar

import numpy as np
import torch
from jaxtyping import Float64
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from models.errors import InvalidConfig, InvalidShape, ModelError
from models.learning.cohort import Inputs
from models.learning.conformal import Conformal
from models.learning.preparation import Preparation
from models.learning.quantile_shift import QuantileShift
from models.learning.task import Task
from models.regressors import REGRESSORS
from models.regressors.base import Extent, Model, Regressor
from models.regressors.settings import settings_of
from models.types import Array
from storage.artifacts import ArtifactWriter
from storage.errors import InvalidParameters, MissingArtifact, UnusableModel
from storage.jobs import Artifact, Job, JobState
from storage.tensors import unpacked
from workers.context import JobContext
from workers.lineage import Compression, Training
from workers.memory import BASE_BYTES
from workers.schemas import pointer

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

MODEL = "model.safetensors"
SCHEMA = 2
TRAIN, COMPRESS_MODEL = "train", "compress-model"
MAKERS = (TRAIN, COMPRESS_MODEL)
"""Kinds of jobs whose artifact `MODEL` is a model."""
MODEL_ID = f"the id of the job that made it, of the kind {' or '.join(MAKERS)}"
"""What a parameter that names a model says of itself."""
NOTICE = "For research. Not a medical device."
CURE = "train it again, or use the version of Tomotrain that made it"
UNREADABLE = (ModelError, ValueError, LookupError, TypeError, AttributeError)
"""What reading a file raises that was damaged, or that another version made."""
LOADING_COPIES, LOADED_COPIES = 5, 2
"""Of a model's file: while it is loaded, as bytes, arrays, a network and what is in between; and then."""

Made = TypeVar("Made", bound="DataclassInstance")


@dataclass(frozen=True)
class Covariate:
    """What a model wants beside a scan, and the range that it learnt from."""

    name: str
    least: float
    most: float


class Named(BaseModel):
    """What is learnt, and its unit."""

    name: str
    unit: str


class Record(BaseModel):
    """A model's manifest, but for its schema: what `TrainedModel.load` takes, by types."""

    model_config = ConfigDict(strict=True)

    notice: str
    regressor: str
    settings: dict[str, Any]
    task: dict[str, Any]
    model: dict[str, Any]
    preparation: dict[str, Any]
    quantile_shift: dict[str, Any] | None
    conformal: dict[str, Any]
    covariates: tuple[Covariate, ...]
    target: Named
    training: Training
    scores: tuple[dict[str, Any], ...]
    lineage: tuple[Compression, ...] = ()


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """A model with what belongs to it. `scores` are those out of fold, as `Score.to_json` has them; there are
    none of a model that was made of another one, by the steps of its `lineage`, the first first.
    """

    recipe: Regressor
    task: Task
    model: Model
    preparation: Preparation
    shift: QuantileShift | None
    conformal: Conformal
    covariates: tuple[Covariate, ...]
    target_name: str
    target_unit: str
    training: Training
    scores: tuple[dict[str, Any], ...]
    lineage: tuple[Compression, ...] = ()

    def save(self, artifacts: ArtifactWriter) -> Artifact:
        """Write it."""
        record = {
            "schema": SCHEMA,
            "notice": NOTICE,
            "regressor": self.recipe.name,
            "settings": settings_of(self.recipe),
            "task": asdict(self.task),
            "model": self.model.manifest(),
            "preparation": self.preparation.manifest(),
            "quantile_shift": None if self.shift is None else self.shift.to_json(),
            "conformal": self.conformal.to_json(),
            "covariates": [asdict(covariate) for covariate in self.covariates],
            "target": {"name": self.target_name, "unit": self.target_unit},
            "training": asdict(self.training),
            "scores": list(self.scores),
            **({"lineage": [asdict(step) for step in self.lineage]} if self.lineage else {}),
        }
        return artifacts.write_tensors(MODEL, self.model.tensors(), record)

    @classmethod
    def load(cls, job_id: str, content: bytes, device: torch.device) -> Self:
        """What `save` wrote. Raises UnusableModel for what this version cannot use, with the cure."""
        try:
            tensors, record = unpacked(content)
            _refuse_other_schema(record)
            return cls._of(tensors, Record.model_validate_json(json.dumps(record)), device)
        except UNREADABLE as error:
            raise UnusableModel(job_id, f"{_reason(error)}; {CURE}") from error

    @classmethod
    def _of(cls, tensors: Mapping[str, Array], record: Record, device: torch.device) -> Self:
        if record.regressor not in REGRESSORS:
            known = f"one of those known here, {', '.join(REGRESSORS)}"
            raise InvalidConfig("regressor", record.regressor, known)
        recipe = REGRESSORS[record.regressor].from_settings(record.settings)
        task = typed(Task(record.task["kind"], tuple(record.task["classes"])))
        return cls(
            recipe,
            task,
            recipe.load(tensors, record.model, task, device),
            typed(Preparation.from_manifest(record.preparation)),
            None if record.quantile_shift is None else typed(QuantileShift.from_json(record.quantile_shift)),
            typed(Conformal.from_json(record.conformal)),
            record.covariates,
            record.target.name,
            record.target.unit,
            record.training,
            record.scores,
            record.lineage,
        )

    def answers(self, inputs: Inputs) -> Float64[Array, "n o"]:
        """The answers to rows: the model's, its quantiles moved by what was missed."""
        told = self.model.predict(inputs)
        return told if self.shift is None else self.shift(told)

    @property
    def learnt_from(self) -> tuple[Training, ...]:
        """What the model knows the targets of: the training, and what it was made smaller by."""
        return (self.training, *(step.made_on for step in self.lineage if step.labels))

    @property
    def names(self) -> tuple[str, ...]:
        """Of the covariates, in their order."""
        return tuple(covariate.name for covariate in self.covariates)

    def row(self, given: Mapping[str, float]) -> Float64[Array, " t"]:
        """Covariates in their order. Raises InvalidParameters, naming all that are missing or unknown."""
        problems = [
            (
                pointer("covariates", each.name),
                f"missing; the model learnt from {each.least:g} to {each.most:g}",
            )
            for each in self.covariates
            if each.name not in given
        ]
        takes = f"the model takes {', '.join(self.names) or 'none'}"
        unknown = sorted(given.keys() - set(self.names))
        problems += [
            (pointer("covariates", name), f"not a covariate of the model; {takes}") for name in unknown
        ]
        if problems:
            raise InvalidParameters(problems)
        return np.array([given[name] for name in self.names], np.float64)

    def outside(self, row: Float64[Array, " t"]) -> list[str]:
        """Which covariates lie outside of what was learnt from, in words."""
        return [
            f"{each.name} = {value:g}: the training's is from {each.least:g} to {each.most:g}"
            for each, value in zip(self.covariates, row.tolist(), strict=True)
            if not each.least <= value <= each.most
        ]


def covariates_of(names: Sequence[str], values: Float64[Array, "n t"]) -> tuple[Covariate, ...]:
    """The covariates of a cohort with their ranges."""
    return tuple(
        Covariate(name, float(column.min()), float(column.max()))
        for name, column in zip(names, values.T, strict=True)
    )


class Found(NamedTuple):
    """A model that a job made, its file's sha-256, which was compared with the bytes, and the job with those
    before it, the first training first. `size` is the largest number of bytes that any of these files has:
    a compressed network is loaded into a dense one.
    """

    trained: TrainedModel
    sha256: str
    size: int
    jobs: tuple[Job, ...]

    def takes(self, extent: Extent) -> dict[str, int]:
        """The memory that asking about so much takes, by the recipe's name: the model's own is in it."""
        recipe = self.trained.recipe
        return {recipe.name: LOADED_COPIES * self.size + recipe.answering_bytes(extent)}


def trained_model(context: JobContext, job_id: str) -> Found:
    """The model that a job made.

    Raises MissingJob, UnusableModel, MissingArtifact, CorruptArtifact, or OverBudget before it is read.
    """
    job = context.find_job(job_id)
    _refuse_no_model(job)
    jobs = (*_ancestors(context, job), job)
    size = max(model_artifact(each).size for each in jobs)
    cure = f"the model has {size:,} bytes; take a smaller one"
    context.require_memory(BASE_BYTES + LOADING_COPIES * size, cure)
    content = context.artifact(job, MODEL)
    trained = TrainedModel.load(job_id, content, torch.device(context.device))
    return Found(trained, hashlib.sha256(content).hexdigest(), size, jobs)


def model_artifact(job: Job) -> Artifact:
    """The model's file among what a job wrote. Raises MissingArtifact."""
    found = next((artifact for artifact in job.artifacts if artifact.name == MODEL), None)
    if found is None:
        raise MissingArtifact(job.id, MODEL)
    return found


def _ancestors(context: JobContext, job: Job) -> list[Job]:
    """The jobs whose models a job's model was made of, the first training first."""
    found: list[Job] = []
    while job.kind == COMPRESS_MODEL:
        job = context.find_job(job.parameters["model"])
        found.insert(0, job)
    return found


def _refuse_no_model(job: Job) -> None:
    if job.kind not in MAKERS:
        kinds = " or ".join(MAKERS)
        raise UnusableModel(job.id, f"it is a job of the kind {job.kind}; name one of the kind {kinds}")
    if job.state is not JobState.SUCCEEDED:
        cure = "name one that succeeded" if job.state.terminal else "wait until it has succeeded"
        raise UnusableModel(job.id, f"its job is {job.state}; {cure}")


def _refuse_other_schema(record: dict[str, Any]) -> None:
    if record["schema"] != SCHEMA:
        made = record["training"]["packages"]["tomotrain"]
        told = f"it has schema {record['schema']} (made by Tomotrain {made})"
        raise InvalidShape(f"{told}, this version reads schema {SCHEMA}")


def typed(made: Made) -> Made:
    """A dataclass whose fields are of the types that it states. Raises ValueError for others, naming them."""
    TypeAdapter(type(made)).validate_json(json.dumps(asdict(made)), strict=True)
    return made


def _reason(error: Exception) -> str:
    """What is wrong with a file, in words."""
    if isinstance(error, ValidationError):
        wrong = error.errors()[0]
        return f"its record is damaged: {'.'.join(map(str, wrong['loc']))}: {wrong['msg']}"
    if isinstance(error, KeyError):
        return f"its record lacks {error}"
    return str(error) if isinstance(error, ModelError) else f"it cannot be read: {error}"
