"""What recipes are worth on a cohort: cross-validated side by side, and never a fold twice.

The answers of a fold are a checkpoint of their own: an attempt that goes on from a lost one asks for them
there. Within a fold the recipe's own checkpoints lie.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float64

from models.errors import InvalidConfig, InvalidShape, NonFinite
from models.learning.cohort import Cohort, Inputs
from models.learning.evaluation import CrossValidation, cross_validate
from models.learning.metrics import Metric
from models.learning.task import Task
from models.regressors.base import Model, Regressor
from models.training import Checkpoints, Watch
from models.types import Array, Int64, Report


@dataclass(frozen=True, eq=False)
class Trial:
    """A recipe and its answers out of fold; `folds` say how many parameters and seconds each took, and how
    the training went.
    """

    name: str
    recipe: Regressor
    validation: CrossValidation
    folds: tuple[dict[str, Any], ...]

    def to_json(self) -> dict[str, Any]:
        """As plain JSON, without rows."""
        scores = [score.to_json() for score in self.validation.scores]
        return {"regressor": self.name, "scores": scores, "folds": list(self.folds)}


@dataclass(frozen=True, eq=False)
class Trials:
    """Trials in the order of their names' table, and why others could not be made."""

    made: dict[str, Trial]
    failed: dict[str, str]


@dataclass(frozen=True, eq=False)
class Terms:
    """On what recipes are compared; `folds` (n,) are each row's."""

    task: Task
    folds: Int64
    metrics: Sequence[Metric]
    seed: int
    device: torch.device


def tried(
    recipes: Mapping[str, Regressor], cohort: Cohort, terms: Terms, watch: Watch, *, needed: str | None = None
) -> Trials:
    """Each recipe cross-validated on the same folds.

    A recipe that cannot take this cohort is passed over, unless it is the one that is `needed`. Raises what
    that one raises, and whatever is not the recipe's fault.
    """
    trials = Trials({}, {})
    for name, recipe in recipes.items():
        remembered = _Remembered(recipe, name, len(set(terms.folds.tolist())))
        try:
            validation = cross_validate(
                remembered,
                cohort,
                terms.task,
                terms.folds,
                seed=terms.seed,
                device=terms.device,
                watch=watch.part(name),
                metrics=terms.metrics,
            )
        except (InvalidConfig, InvalidShape, NonFinite) as error:
            if name == needed:
                raise
            trials.failed[name] = str(error)
        else:
            trials.made[name] = Trial(name, recipe, validation, tuple(remembered.facts))
    return trials


def told_apart(report: Report, words: str) -> Report:
    """A report that says beside the phase what it is a phase of."""
    return lambda phase, done, total: report(f"{words}: {phase}", done, total)


@dataclass
class _Remembered:
    """A recipe that makes each fold once; `facts` of those that were made or found. See `cross_validate`."""

    recipe: Regressor
    name: str
    folds: int
    facts: list[dict[str, Any]] = field(default_factory=list)

    def fit(
        self, cohort: Cohort, task: Task, *, seed: int, device: torch.device, watch: Watch
    ) -> _Known | _Fresh:
        """What answers the next fold's rows."""
        kept = None if watch.checkpoints is None else watch.checkpoints.part("answers")
        if kept is not None and (found := kept.load()) is not None:
            self.facts.append(found[1])
            return _Known(found[0]["outputs"])
        began = time.perf_counter()
        words = f"{self.name}, fold {len(self.facts) + 1} of {self.folds}"
        told = Watch(told_apart(watch.report, words), watch.checkpoints)
        model = self.recipe.fit(cohort, task, seed=seed, device=device, watch=told)
        return _Fresh(model, kept, began, self.facts)


@dataclass(frozen=True, eq=False)
class _Known:
    """Answers that an earlier attempt came to."""

    outputs: Float64[Array, "n o"]

    def predict(self, inputs: Inputs) -> Float64[Array, "n o"]:
        """The answers to the fold's rows."""
        return self.outputs


@dataclass(frozen=True, eq=False)
class _Fresh:
    """A model whose answers are kept."""

    model: Model
    kept: Checkpoints | None
    began: float
    facts: list[dict[str, Any]]

    def predict(self, inputs: Inputs) -> Float64[Array, "n o"]:
        """The answers to the fold's rows."""
        outputs = self.model.predict(inputs)
        fact = {"seconds": time.perf_counter() - self.began, **learning_of(self.model)}
        if self.kept is not None:
            self.kept.save({"outputs": outputs}, fact)
        self.facts.append(fact)
        return outputs


def learning_of(model: Model) -> dict[str, Any]:
    """How many parameters a model has, and its learning curves, where it descended."""
    record = model.manifest()
    return {"parameters": record["parameters"], "histories": record.get("histories", {})}
