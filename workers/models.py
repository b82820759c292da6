"""A trained model as an artifact: tensors, and a manifest with all that using and judging it takes.

The manifest holds no time and no name of a job: the same cohort, seed and versions make the same bytes. Of
patients it holds salted digests alone, so that an evaluation can say whom a model has seen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float64

from models.errors import ModelError
from models.learning.conformal import Conformal
from models.learning.preparation import Preparation
from models.learning.task import Task
from models.regressors import REGRESSORS
from models.regressors.base import Model
from models.types import Array
from storage.artifacts import ArtifactWriter
from storage.errors import InvalidParameters, UnusableModel
from storage.jobs import Artifact, Job, JobState
from storage.tensors import unpacked
from workers.cohorts import Table
from workers.context import JobContext
from workers.packages import versions
from workers.schemas import pointer

MODEL = "model.safetensors"
SCHEMA = 1
TRAIN = "train"
NOTICE = "For research. Not a medical device."


@dataclass(frozen=True)
class Covariate:
    """What a model wants beside a scan, and the range that it learnt from."""

    name: str
    least: float
    most: float


@dataclass(frozen=True)
class Training:
    """What a model was made of: digests of the scans' voxels, of the table and of the patients' names."""

    volumes: tuple[str, ...]
    table: str
    patients: tuple[str, ...]
    rows: int
    seed: int
    packages: dict[str, str]

    @classmethod
    def of(cls, table: Table, seed: int) -> Self:
        """What is known of a training by its table."""
        patients = tuple(sorted({_salted(name, table.sha256) for name in table.patients}))
        return cls(tuple(table.digests), table.sha256, patients, len(table), seed, versions())

    def knows(self, patient: str) -> bool:
        """Whether a patient of this name was learnt from."""
        return _salted(patient, self.table) in self.patients


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """A model with what belongs to it. `scores` are those out of fold, as `Score.to_json` has them."""

    regressor: str
    settings: dict[str, Any]
    task: Task
    model: Model
    preparation: Preparation
    conformal: Conformal
    covariates: tuple[Covariate, ...]
    target_name: str
    target_unit: str
    training: Training
    scores: tuple[dict[str, Any], ...]

    def save(self, artifacts: ArtifactWriter) -> Artifact:
        """Write it."""
        record = {
            "schema": SCHEMA,
            "notice": NOTICE,
            "regressor": self.regressor,
            "settings": self.settings,
            "task": asdict(self.task),
            "model": self.model.manifest(),
            "preparation": self.preparation.manifest(),
            "conformal": self.conformal.to_json(),
            "covariates": [asdict(covariate) for covariate in self.covariates],
            "target": {"name": self.target_name, "unit": self.target_unit},
            "training": asdict(self.training),
            "scores": list(self.scores),
        }
        return artifacts.write_tensors(MODEL, self.model.tensors(), record)

    @classmethod
    def load(cls, job_id: str, content: bytes, device: torch.device) -> Self:
        """What `save` wrote. Raises UnusableModel for what this version cannot use, with the cure."""
        try:
            tensors, record = unpacked(content)
        except ValueError as error:
            raise UnusableModel(job_id, f"its file cannot be read: {error}") from error
        if record.get("schema") != SCHEMA:
            made = record.get("training", {}).get("packages", {}).get("tomotrain", "another")
            raise UnusableModel(
                job_id,
                f"it has schema {record.get('schema')}, this version reads schema {SCHEMA}: train it again, "
                f"or use the version of Tomotrain that made it ({made})",
            )
        if (name := record["regressor"]) not in REGRESSORS:
            known = ", ".join(REGRESSORS)
            raise UnusableModel(job_id, f"its regressor {name!r} is not known here; known are {known}")
        task = Task(record["task"]["kind"], tuple(record["task"]["classes"]))
        try:
            recipe = REGRESSORS[name].from_settings(record["settings"])
            model = recipe.load(tensors, record["model"], task, device)
        except ModelError as error:
            raise UnusableModel(job_id, f"{error}; train it again") from error
        return cls(
            name,
            record["settings"],
            task,
            model,
            Preparation.from_manifest(record["preparation"]),
            Conformal.from_json(record["conformal"]),
            tuple(Covariate(**covariate) for covariate in record["covariates"]),
            record["target"]["name"],
            record["target"]["unit"],
            _training(record["training"]),
            tuple(record["scores"]),
        )

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


def trained_model(context: JobContext, job_id: str) -> tuple[TrainedModel, str]:
    """The model that a job made, and its sha-256, which was compared with the bytes.

    Raises MissingJob, UnusableModel, MissingArtifact or CorruptArtifact.
    """
    job = context.find_job(job_id)
    _refuse_no_model(job)
    content = context.artifact(job, MODEL)
    model = TrainedModel.load(job_id, content, torch.device(context.device))
    return model, hashlib.sha256(content).hexdigest()


def _refuse_no_model(job: Job) -> None:
    if job.kind != TRAIN:
        raise UnusableModel(job.id, f"it is a job of the kind {job.kind}; name one of the kind {TRAIN}")
    if job.state is not JobState.SUCCEEDED:
        cure = "name one that succeeded" if job.state.terminal else "wait until it has succeeded"
        raise UnusableModel(job.id, f"its training is {job.state}; {cure}")


def _training(record: dict[str, Any]) -> Training:
    volumes, patients = tuple(record["volumes"]), tuple(record["patients"])
    return Training(**{**record, "volumes": volumes, "patients": patients})


def _salted(patient: str, salt: str) -> str:
    return hashlib.sha256(f"{salt}\0{patient}".encode()).hexdigest()
