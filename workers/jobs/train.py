"""`train`: a cohort's table becomes a model, with honest figures of what it is worth."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from pydantic import Field

from models.errors import InvalidConfig
from models.learning.folds import given_folds, patient_folds
from models.learning.metrics import MLLL, Metric, metrics_of
from models.learning.preparation import Caveat, Preparation, PreparationConfig
from models.learning.preparation.config import GRIDS, INTENSITIES, ORIENTATIONS
from models.learning.selection import AUTO
from models.learning.task import TASK_KINDS, Task
from models.regressors import REGRESSORS
from models.regressors.base import Extent, Regressor
from models.regressors.settings import settings_of
from models.types import Int64
from storage.artifacts import ArtifactWriter
from storage.errors import InvalidParameters
from storage.jobs import Artifact, Queue
from workers.answers import CSV, answers_csv
from workers.cohorts import MOST_ROWS, Row, Table, training_table
from workers.context import JobContext
from workers.jobs.base import CohortKind, Outcome, Parameters, Result, Warned
from workers.learning import BASELINES, Learning, learn
from workers.lineage import Training
from workers.memory import peak_bytes
from workers.models import MODEL, NOTICE, TRAIN, TrainedModel, covariates_of
from workers.packages import versions
from workers.preparing import Prepared, mixed, prepared
from workers.scans import Readers
from workers.schemas import choices, pointer
from workers.trials import Terms, Trial, learning_of

METRICS, PREDICTIONS = "metrics.json", "predictions.csv"
SLOW = ("tt_mlp", "cpic_ensemble", "resnet3d", "resnet3d-svdp", "resnet3d-sttp")
"""What takes far longer than the others on a CPU: `auto` tries it where it is named."""
ENCODERS, ENCODER_PATIENTS = ("random_voxels", "cpic"), 50
"""Recipes that train an encoder, and the fewest patients with whom `auto` tries them unasked."""
DEFAULTS: dict[str, Any] = {name: settings_of(kind.from_settings({})) for name, kind in REGRESSORS.items()}
"""Every regressor's settings."""


class TrainParameters(Parameters):
    """What to learn from what, and how."""

    rows: list[Row] = Field(min_length=1, max_length=MOST_ROWS, description="the cohort's table")
    task: str = Field(
        "mean",
        json_schema_extra=choices(TASK_KINDS),
        description="what is asked: a mean, quantiles or classes",
    )
    classes: list[Annotated[str, Field(min_length=1, max_length=100)]] = Field(
        [], max_length=100, description="names of the classes in their order; by default as found"
    )
    regressor: str = Field(
        AUTO,
        json_schema_extra=choices([AUTO, *REGRESSORS]),
        description="recipe; auto: the simplest that none of the candidates beats",
    )
    candidates: list[str] | None = Field(
        None,
        json_schema_extra={"items": {"type": "string", **choices(REGRESSORS)}},
        description=f"what auto chooses among; null: all but {', '.join(SLOW)}, and with fewer than "
        f"{ENCODER_PATIENTS} patients none that trains an encoder",
    )
    settings: dict[str, Any] = Field(
        {},
        json_schema_extra={"examples": [DEFAULTS]},
        description="of the regressor, by name; for auto a table of them by the regressor's name, as in the "
        "example, which has all there are with their defaults. cpic takes mode = paper too",
    )
    preparation: dict[str, Any] = Field(
        {},
        json_schema_extra={"examples": [PreparationConfig().to_json()]},
        description="how scans are brought to one grid and one scale of intensities; the example has all "
        f"settings with their defaults. grid is one of {', '.join(GRIDS)}; intensity of "
        f"{', '.join(INTENSITIES)}; orientation of {', '.join(ORIENTATIONS)}",
    )
    folds: int = Field(5, ge=2, le=20, description="parts, by patient; folds of the rows themselves win")
    seed: int = Field(0, ge=0, lt=1 << 63, description="of every random choice: same seed, same model")
    target_name: str = Field("target", min_length=1, max_length=100)
    target_unit: str = Field("", max_length=40)


class Figure(Result):
    """A metric over all rows out of fold, its interval at 95 %, and its standard deviation over folds."""

    value: float | None
    low: float | None
    high: float | None
    spread: float | None


class Compared(Result):
    """What a recipe is worth, on the same folds as all others."""

    regressor: str
    metrics: dict[str, Figure]
    reason: str = Field(description="why it was taken or not")


class Widening(Result):
    """What answers are widened by for a level. Null where patients are too few: `needed` would do."""

    level: float
    threshold: float | None
    needed: int


class TrainResult(Result):
    """The model, and what it is worth."""

    notice: str
    regressor: str
    settings: dict[str, Any]
    task: str
    classes: list[str]
    target_name: str
    target_unit: str
    rows: int
    scans: int
    patients: int
    covariates: list[str]
    folds: int
    metrics: dict[str, Figure] = Field(
        description="of the model's recipe, on rows that it did not learn from"
    )
    compared: list[Compared] = Field(description="all that was tried, the model's recipe first")
    reasons: list[str]
    intervals: list[Widening]
    guarantee: str = Field(description="what the intervals promise")
    warnings: list[Warned]
    model_parameters: int = Field(description="trained numbers")
    grid: list[int] = Field(description="voxels of prepared scans, (z, y, x)")
    seconds: float
    peak_memory_bytes: int = Field(description="most resident memory of the job's process")
    model_digest: str = Field(description=f"sha-256 of the artifact {MODEL}")
    table_digest: str
    packages: dict[str, str]
    seed: int
    device: str


class Train(CohortKind[TrainParameters]):
    """Cross-validates, chooses, fits on everything, and calibrates."""

    name = TRAIN
    version = "1"
    title = "Train"
    description = (
        "Learns from a table of scans with patients and targets: cross-validates recipes by patient, beside "
        "honest baselines, and keeps the chosen one, fitted to all rows, with calibrated intervals."
    )
    queue = Queue.TRAIN
    parameters = TrainParameters
    result: ClassVar[type[Result]] = TrainResult

    def run(self, context: JobContext, parameters: TrainParameters) -> Outcome:
        """Train. Raises InvalidParameters, InvalidCohort and CohortNotReady before any scan is opened,
        OverBudget before one is read; CorruptVolume, ModelError.
        """
        began = time.perf_counter()
        recipes, config = recipes_of(parameters), _preparation(parameters)
        table = training_table(parameters.rows, parameters.task, parameters.classes, context.find_volume)
        terms = _terms(table, parameters, context.device)
        decide = partial(Preparation.fit, config)
        settings = context.settings
        with Readers(settings.cache_bytes, settings.dask_scheduler) as readers:
            scans = prepared(context, table, partial(_taken, recipes), decide, parameters.seed, readers)
            named = None if parameters.regressor == AUTO else parameters.regressor
            learning = learn(context, table.cohort(scans.scans), recipes, terms, named)
        made = _Made(parameters, table, terms, scans, learning)
        artifacts = made.write(context.artifacts)
        return Outcome(made.result(context.device, artifacts[0], time.perf_counter() - began), artifacts)


def automatic(patients: int) -> list[str]:
    """What `auto` chooses among unless it is told."""
    few = patients < ENCODER_PATIENTS
    return [name for name in REGRESSORS if name not in SLOW and not (few and name in ENCODERS)]


def recipes_of(parameters: TrainParameters) -> dict[str, Regressor]:
    """What is tried, from simple to complex. Raises InvalidParameters, naming each name and setting."""
    chooses = parameters.regressor == AUTO
    wanted = _candidates(parameters) if chooses else [parameters.regressor]
    settings = _tables(parameters.settings) if chooses else {parameters.regressor: parameters.settings}
    problems = _unknown("candidates" if chooses else "regressor", wanted)
    problems += _no_tables(parameters.settings) if chooses else []
    covariates = any(row.covariates for row in parameters.rows)
    if parameters.regressor == "tabular" and not covariates:
        problems.append(("/regressor", "tabular learns from covariates, and no row has any; take constant"))
    made: dict[str, Regressor] = {}
    for name, regressor in REGRESSORS.items():
        if name in wanted or name in BASELINES:
            try:
                made[name] = regressor.from_settings(settings.get(name, {}))
            except InvalidConfig as error:
                own = error.setting.split(".")
                steps = (name, *own) if chooses else own
                problems.append((pointer("settings", *steps), str(error)))
    if problems:
        raise InvalidParameters(problems)
    return {name: recipe for name, recipe in made.items() if covariates or name != "tabular"}


def _candidates(parameters: TrainParameters) -> list[str]:
    """What `auto` was told to choose among, or chooses among."""
    if parameters.candidates is not None:
        return parameters.candidates
    return automatic(len({row.patient for row in parameters.rows}))


def _tables(settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Settings by the regressor's name, as far as they are that."""
    return {name: table for name, table in settings.items() if isinstance(table, dict)}


def _no_tables(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A problem for each that is no regressor's table of settings."""
    cure = 'for auto, settings are tables by the regressor\'s name, as {"voxel_ridge": {"grid": 8}}'
    others = [(where, f"{what}: {cure}") for where, what in _unknown("settings", settings)]
    flat = [name for name in REGRESSORS if not isinstance(settings.get(name, {}), dict)]
    return others + [(pointer("settings", name), f"{settings[name]!r} is no table: {cure}") for name in flat]


def _taken(recipes: Mapping[str, Regressor], extent: Extent) -> dict[str, int]:
    """The memory that each recipe takes, by name."""
    return {name: recipe.training_bytes(extent) for name, recipe in recipes.items()}


def _unknown(where: str, names: Iterable[str]) -> list[tuple[str, str]]:
    """A problem for each name that is no regressor's."""
    known = ", ".join(REGRESSORS)
    return [(pointer(where), f"{name!r} is none of {known}") for name in names if name not in REGRESSORS]


def _preparation(parameters: TrainParameters) -> PreparationConfig:
    """How scans are prepared. Raises InvalidParameters."""
    try:
        return PreparationConfig.from_json(parameters.preparation)
    except InvalidConfig as error:
        raise InvalidParameters([(pointer("preparation", error.setting), str(error))]) from error


def _terms(table: Table, parameters: TrainParameters, device: str) -> Terms:
    """On what terms recipes are compared. Raises InvalidParameters for more folds than patients."""
    folds = _folds(table, parameters)
    metrics = _metrics(table.task, parameters.target_unit)
    return Terms(table.task, folds, metrics, parameters.seed, torch.device(device))


def _folds(table: Table, parameters: TrainParameters) -> Int64:
    """Each row's fold: the table's own, or drawn by patient."""
    if table.folds is not None:
        return given_folds(table.row_patients, table.folds)
    if parameters.folds > (count := len(set(table.patients))):
        told = f"{parameters.folds} folds of {count} patients; ask for {count} at most, or add patients"
        raise InvalidParameters([("/folds", told)])
    return patient_folds(table.row_patients, parameters.folds, seed=parameters.seed, targets=table.targets)


def _metrics(task: Task, unit: str) -> tuple[Metric, ...]:
    """What is reported; the lung cohort's likelihood for quantiles of millilitres."""
    more = (MLLL,) if task.kind == "quantiles" and unit.lower() == "ml" else ()
    return (*metrics_of(task), *more)


@dataclass(frozen=True, eq=False)
class _Made:
    """All that a training came to."""

    parameters: TrainParameters
    table: Table
    terms: Terms
    scans: Prepared
    learning: Learning

    def write(self, artifacts: ArtifactWriter) -> tuple[Artifact, ...]:
        """The model, its figures, and its answers out of fold."""
        learning, table = self.learning, self.table
        figures = {
            "notice": NOTICE,
            "trials": [trial.to_json() for trial in learning.trials.made.values()],
            "not_tried": learning.trials.failed,
            "selection": learning.selection.to_json(),
            "chosen": {"regressor": learning.chosen.name, **learning_of(learning.model)},
            "intervals": learning.conformal.to_json(),
        }
        outputs = learning.chosen.validation.outputs
        answers = answers_csv(
            self.parameters.rows, table.task, outputs, learning.conformal, {"fold": self.terms.folds.tolist()}
        )
        return (
            self._trained().save(artifacts),
            artifacts.write_json(METRICS, figures),
            artifacts.write_bytes(PREDICTIONS, answers, CSV),
        )

    def result(self, device: str, model: Artifact, seconds: float) -> TrainResult:
        """What is told of it."""
        parameters, table, learning = self.parameters, self.table, self.learning
        reasons, intervals = learning.reasons, learning.conformal.to_json()
        tried = sorted(learning.trials.made.values(), key=lambda trial: trial is not learning.chosen)
        return TrainResult(
            notice=NOTICE,
            regressor=learning.chosen.name,
            settings=settings_of(learning.chosen.recipe),
            task=table.task.kind,
            classes=list(table.task.classes),
            target_name=parameters.target_name,
            target_unit=parameters.target_unit,
            rows=len(table),
            scans=len(table.records),
            patients=len(set(table.patients)),
            covariates=list(table.names),
            folds=len(np.unique(self.terms.folds)),
            metrics=_figures(learning.chosen),
            compared=[
                Compared(regressor=each.name, metrics=_figures(each), reason=reasons[each.name])
                for each in tried
            ],
            reasons=[reasons[learning.chosen.name]],
            intervals=[Widening(**level) for level in intervals["levels"]],
            guarantee=intervals["guarantee"],
            warnings=Warned.all(self._warnings()),
            model_parameters=learning.parameters,
            grid=list(self.scans.preparation.shape),
            seconds=seconds,
            peak_memory_bytes=peak_bytes(),
            model_digest=model.sha256,
            table_digest=table.sha256,
            packages=versions(),
            seed=parameters.seed,
            device=device,
        )

    def _trained(self) -> TrainedModel:
        parameters, table, chosen = self.parameters, self.table, self.learning.chosen
        return TrainedModel(
            recipe=chosen.recipe,
            task=table.task,
            model=self.learning.model,
            preparation=self.scans.preparation,
            shift=self.learning.shift,
            conformal=self.learning.conformal,
            covariates=covariates_of(table.names, table.covariates),
            target_name=parameters.target_name,
            target_unit=parameters.target_unit,
            training=Training.of(table, parameters.seed),
            scores=tuple(score.to_json() for score in chosen.validation.scores),
        )

    def _warnings(self) -> Sequence[Caveat]:
        own = self.learning.warnings(len(self.table.records))
        return [*mixed(self.scans.preparation), *self.scans.warnings(), *self._left_out(), *own]

    def _left_out(self) -> list[Caveat]:
        """That encoders were not tried, where they would have been with more patients."""
        unasked = self.parameters.regressor == AUTO and self.parameters.candidates is None
        if not unasked or (patients := len(set(self.table.patients))) >= ENCODER_PATIENTS:
            return []
        text = (
            f"with {patients} patients none that trains an encoder was tried ({', '.join(ENCODERS)}): from "
            f"{ENCODER_PATIENTS} on they are, or where candidates name them"
        )
        return [Caveat("not-tried", text)]


def _figures(trial: Trial) -> dict[str, Figure]:
    """A trial's scores."""
    return {
        score.name: Figure(
            value=score.pooled.value, low=score.pooled.low, high=score.pooled.high, spread=score.spread
        )
        for score in trial.validation.scores
    }
