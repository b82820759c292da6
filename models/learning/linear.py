"""Linear heads in closed form: ridge and logistic regression on features, beside covariates not penalised.

The penalty is chosen by inner cross-validation by patient. Features are standardised inside, constant ones
are left out. What is fitted, in whatever coordinates, ends as weights in the features' own units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from models.errors import InvalidConfig, InvalidShape, refuse_non_finite
from models.learning import logistic, ridge
from models.learning.folds import patient_folds, patient_numbers
from models.learning.principal import (
    PrincipalAxes,
    Standard,
    distinct_rows,
    left_out_distances,
    principal_axes,
)
from models.learning.saved import digest, refuse_mixed
from models.learning.task import QUANTILE_LEVELS, Task
from models.threads import one_thread
from models.types import Array, Int64

SCHEMA = 1
INNER_FOLDS = 10
"""Or as many as there are patients."""
PENALTIES = 10.0 ** np.arange(6, -4.25, -0.5)
"""Of ridge weights, for features whose rows have a mean square norm of 1: from all but nothing of them to
all but least squares.
"""
CLASS_PENALTIES = PENALTIES[::2]


@dataclass(frozen=True)
class PenaltyChoice:
    """Which of `penalties`, descending, had the least error out of inner folds.

    `errors` are root mean squares in the target's unit, or mean log-losses for classes. `edge` says when the
    least is at an end: `upper`, where features tell next to nothing, or `lower`, where next to no penalty is
    needed. None too where there are no features that vary.
    """

    penalties: tuple[float, ...]
    errors: tuple[float, ...]
    at: int
    edge: str | None

    @classmethod
    def least(cls, penalties: Float64[Array, " g"], errors: Float64[Array, " g"], *, matters: bool) -> Self:
        """The choice; of equals the largest penalty."""
        at = int(np.argmin(errors))
        edge = {0: "upper", len(errors) - 1: "lower"}.get(at) if matters else None
        return cls(tuple(penalties.tolist()), tuple(errors.tolist()), at, edge)

    @property
    def penalty(self) -> float:
        """The penalty."""
        return self.penalties[self.at]

    @property
    def error(self) -> float:
        """Its error out of inner folds."""
        return self.errors[self.at]


@dataclass(frozen=True, eq=False)
class LinearHead:
    """Scores a + (x - centre) w + (c - free_centre) v, (m, k), and what a task makes of them.

    `mean`: k = 1, the score. `quantiles`: k = 1, the score and `offsets`, the quantiles at `QUANTILE_LEVELS`
    of its errors out of inner folds, so that they are in order; their distance is the same for all rows.
    `classes`: k classes, the softmax of the scores.
    """

    task: Task
    standard: Standard
    weights: Float64[Array, "p k"]
    free_centre: Float64[Array, " t"]
    free_weights: Float64[Array, "t k"]
    intercept: Float64[Array, " k"]
    offsets: Float64[Array, " o"]
    principal: PrincipalAxes
    training_distances: Float64[Array, " d"]
    choice: PenaltyChoice
    rows: int
    patients: int

    @classmethod
    @one_thread()
    def fit(
        cls,
        features: Float64[Array, "n p"],
        targets: Float64[Array, " n"],
        groups: Sequence[str],
        task: Task,
        *,
        free: Float64[Array, "n t"] | None = None,
        proportional: bool = False,
        seed: int = 0,
    ) -> Self:
        """The head of some rows, of the patients `groups` (n,); p and t may be 0.

        `proportional` features are of one unit, and keep their proportions: the penalty falls on all alike.
        `free` covariates have no penalty but a tiny one, against dependence and too few rows. The seed draws
        the inner folds. Raises InvalidShape for other numbers of rows, fewer than two patients, and targets
        that are not the numbers of two classes or more; NonFinite.
        """
        free = np.zeros((len(targets), 0)) if free is None else free
        _refuse_unfit(features, targets, groups, free)
        numbers = patient_numbers(groups)
        patients = int(numbers.max()) + 1
        standard = Standard.of(features, proportional=proportional)
        covariates = Standard.of(free)
        axes, rows = principal_axes(standard(features))
        folds = patient_folds(groups, min(INNER_FOLDS, patients), seed=seed, targets=targets)
        solve = _solved_classes if task.kind == "classes" else _solved_means
        solved = solve(_Rows(rows, covariates(free), targets, folds), task)
        distances = left_out_distances(rows, axes.energies, numbers, solved.choice.penalty)
        return cls(
            task=task,
            standard=standard,
            weights=standard.inverse_scale[:, None] * (axes.axes @ solved.weights),
            free_centre=covariates.centre,
            free_weights=covariates.inverse_scale[:, None] * solved.free_weights,
            intercept=solved.intercept,
            offsets=solved.offsets,
            principal=axes,
            training_distances=np.sort(distances[distinct_rows(features)[0]]),
            choice=solved.choice,
            rows=len(targets),
            patients=patients,
        )

    def predict(
        self, features: Float64[Array, "m p"], free: Float64[Array, "m t"] | None = None
    ) -> Float64[Array, "m outputs"]:
        """The answers to rows; see `Task`. Raises InvalidShape for other widths, NonFinite."""
        scores = self._scores(features, free)
        if self.task.kind == "classes":
            return np.exp(logistic.log_softmax(scores))
        return scores + self.offsets if self.task.kind == "quantiles" else scores

    def gradient(
        self, features: Float64[Array, " p"], free: Float64[Array, " t"] | None = None
    ) -> Float64[Array, " p"]:
        """How the answer to one row changes with its features, in the features' units.

        The mean's weights; the median's, which are the same; of classes the log-odds of the most probable.
        Raises as `predict`.
        """
        scores = self._scores(features[None], None if free is None else free[None])[0]
        if self.task.kind != "classes":
            return self.weights[:, 0].copy()
        best = int(scores.argmax())
        others = np.delete(np.arange(len(scores)), best)
        shares = np.exp(logistic.log_softmax(scores[None, others]))[0]
        return np.asarray(self.weights[:, best] - self.weights[:, others] @ shares)

    def distances(self, features: Float64[Array, "m p"]) -> Float64[Array, " m"]:
        """How far rows are from those of the training, in the metric of the chosen penalty (`principal`).

        Constant features of the training are not looked at. Raises InvalidShape, NonFinite.
        """
        self._refuse_misfit("features", features, len(self.weights))
        return self.principal.distances(self.standard(features), self.choice.penalty)

    def percentiles(self, distances: Float64[Array, " m"]) -> Float64[Array, " m"]:
        """Where distances stand among those of the training's distinct rows, each without its patient: 0 to
        100, equal ones counted half.
        """
        sides = [np.searchsorted(self.training_distances, distances, side=s) for s in ("left", "right")]
        return 50.0 * (sides[0] + sides[1]) / len(self.training_distances)

    @property
    def parameters(self) -> int:
        """Trained numbers."""
        return sum(array.size for array in (self.weights, self.free_weights, self.intercept, self.offsets))

    def tensors(self) -> dict[str, Array]:
        """Everything that is an array, by name."""
        return {
            "centre": self.standard.centre,
            "inverse_scale": self.standard.inverse_scale,
            "weights": self.weights,
            "free_centre": self.free_centre,
            "free_weights": self.free_weights,
            "intercept": self.intercept,
            "offsets": self.offsets,
            "axes": self.principal.axes,
            "energies": self.principal.energies,
            "training_distances": self.training_distances,
        }

    def manifest(self) -> dict[str, Any]:
        """Everything else, as JSON."""
        choice = self.choice
        return {
            "schema": SCHEMA,
            "task": self.task.to_json(),
            "features": len(self.weights),
            "covariates": len(self.free_centre),
            "rows": self.rows,
            "patients": self.patients,
            "parameters": self.parameters,
            "penalty": choice.penalty,
            "inner_error": choice.error,
            "choice": {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(choice).items()},
            "digest": digest(self.tensors()),
        }

    @classmethod
    def from_saved(cls, tensors: Mapping[str, Array], manifest: Mapping[str, Any]) -> Self:
        """What `tensors` and `manifest` gave. Raises InvalidShape where they do not belong together."""
        if manifest.get("schema") != SCHEMA:
            raise InvalidShape(f"a linear head of schema {manifest.get('schema')}, not {SCHEMA}")
        refuse_mixed(tensors, manifest, "the linear head")
        choice = manifest["choice"]
        return cls(
            task=Task(manifest["task"]["kind"], tuple(manifest["task"]["classes"])),
            standard=Standard(tensors["centre"], tensors["inverse_scale"]),
            principal=PrincipalAxes(tensors["axes"], tensors["energies"]),
            choice=PenaltyChoice(
                tuple(choice["penalties"]), tuple(choice["errors"]), choice["at"], choice["edge"]
            ),
            rows=manifest["rows"],
            patients=manifest["patients"],
            **{name: tensors[name] for name in ("weights", "free_centre", "free_weights", "intercept")},
            **{name: tensors[name] for name in ("offsets", "training_distances")},
        )

    @one_thread()
    def _scores(
        self, features: Float64[Array, "m p"], free: Float64[Array, "m t"] | None
    ) -> Float64[Array, "m k"]:
        free = np.zeros((len(features), 0)) if free is None else free
        self._refuse_misfit("features", features, len(self.weights))
        self._refuse_misfit("covariates", free, len(self.free_centre))
        if len(free) != len(features):
            raise InvalidShape(f"{len(features)} rows of features, but {len(free)} of covariates")
        by_features = (features - self.standard.centre) @ self.weights
        by_free = (free - self.free_centre) @ self.free_weights
        return np.asarray(self.intercept + by_features + by_free)

    def _refuse_misfit(self, name: str, values: Array, width: int) -> None:
        if values.ndim != 2 or values.shape[1] != width:
            raise InvalidShape(f"{name} must be (rows, {width}), as in the training, not {values.shape}")
        refuse_non_finite(torch.from_numpy(values), name)


@dataclass(frozen=True, eq=False)
class _Rows:
    """What a head is solved from: rows along principal axes, standardised covariates, inner folds."""

    rows: Float64[Array, "n r"]
    free: Float64[Array, "n t"]
    targets: Float64[Array, " n"]
    folds: Int64

    @property
    def vary(self) -> bool:
        """Whether there is anything to penalise."""
        return self.rows.size > 0


@dataclass(frozen=True, eq=False)
class _Solved:
    """A head in the coordinates it was solved in."""

    weights: Float64[Array, "r k"]
    free_weights: Float64[Array, "t k"]
    intercept: Float64[Array, " k"]
    offsets: Float64[Array, " o"]
    choice: PenaltyChoice


def _solved_means(given: _Rows, task: Task) -> _Solved:
    """Ridge regression; for quantiles with those of its errors out of inner folds."""
    told = ridge.out_of_fold(given.rows, given.free, given.targets, given.folds, PENALTIES)
    errors = given.targets[:, None] - told
    rms = np.sqrt(np.square(errors).mean(axis=0))
    choice = PenaltyChoice.least(PENALTIES, rms, matters=given.vary)
    path, penalty = ridge.RidgePath.of(given.rows, given.free, given.targets), np.array([choice.penalty])
    levels = QUANTILE_LEVELS if task.kind == "quantiles" else ()
    return _Solved(
        weights=path.weights(penalty),
        free_weights=path.free_weights(penalty),
        intercept=np.array([path.target_mean]),
        offsets=np.quantile(errors[:, choice.at], levels),
        choice=choice,
    )


def _solved_classes(given: _Rows, task: Task) -> _Solved:
    """Multinomial logistic regression."""
    count = len(task.classes)
    classes = _class_numbers(given.targets, task)
    losses = np.empty((len(classes), len(CLASS_PENALTIES)))
    for fold in np.unique(given.folds):
        inside, others = given.folds == fold, given.folds != fold
        path = logistic.LogisticPath.of(given.rows[others], given.free[others], classes[others], count)
        for g, theta in enumerate(path.along(CLASS_PENALTIES)):
            told = logistic.log_softmax(path.design(given.rows[inside], given.free[inside]) @ theta)
            losses[inside, g] = -told[np.arange(len(told)), classes[inside]]
    choice = PenaltyChoice.least(CLASS_PENALTIES, losses.mean(axis=0), matters=given.vary)
    path = logistic.LogisticPath.of(given.rows, given.free, classes, count)
    *_, theta = path.along(CLASS_PENALTIES[: choice.at + 1])
    r = given.rows.shape[1]
    return _Solved(
        weights=theta[:r],
        free_weights=theta[r:-1],
        intercept=theta[-1],
        offsets=np.zeros(0),
        choice=choice,
    )


def _class_numbers(targets: Float64[Array, " n"], task: Task) -> Int64:
    """Targets as whole numbers. Raises InvalidShape for others than of classes, and for a single class."""
    numbers = targets.astype(np.int64)
    wrong = (numbers != targets) | (numbers < 0) | (numbers >= len(task.classes))
    if wrong.any():
        row = int(wrong.argmax())
        raise InvalidShape(
            f"the target of row {row} is {targets[row]}, not the number of one of {len(task.classes)} classes"
        )
    if len(present := np.unique(numbers)) < 2:
        raise InvalidShape(
            f"all {len(numbers)} rows are of the class {task.classes[present[0]]!r}: add rows of another"
        )
    return numbers


def _refuse_unfit(features: Array, targets: Array, groups: Sequence[str], free: Array) -> None:
    """Raise InvalidShape or NonFinite for what no head can be fitted to."""
    if features.ndim != 2 or free.ndim != 2 or targets.ndim != 1:
        raise InvalidShape(
            f"features {features.shape}, covariates {free.shape} and targets {targets.shape} must be (n, p), "
            "(n, t) and (n,)"
        )
    rows = {"features": len(features), "targets": len(targets), "groups": len(groups), "free": len(free)}
    if len(set(rows.values())) > 1:
        raise InvalidShape(f"numbers of rows differ: {rows}")
    if (patients := len(set(groups))) < 2:
        raise InvalidShape(f"{patients} patients: a linear head needs 2 to choose its penalty between")
    for name, values in (("features", features), ("targets", targets), ("free", free)):
        refuse_non_finite(torch.from_numpy(values), name)


def leave_one_out(
    features: Float[Tensor, "b p"], targets: Float[Tensor, " b"], penalty: float
) -> Float64[Tensor, " b"]:
    """What ridge regression with an intercept misses each row by when fitted to all others.

    Differentiable in both. The fit minimises sum_i (y_i - a - x_i w)^2 + penalty ||w||^2. Its hat matrix H
    gives the residuals without row i as (y - H y)_i / (1 - H_ii) (Allen, 1974; Golub, Heath & Wahba, 1979).
    With centred features X and any c > 0, I - H = penalty G where

        G = (X X^T + penalty I + c 11^T / b)^{-1} - 11^T / (b (penalty + c)),

    so that they are (G y)_i / G_ii: a quotient of numbers of one size, also where H_ii nears 1. In float64;
    the relative error is about 1e-16 ||X||^2 / penalty. `penalty` has the unit of the features' squares:
    standardise them. Raises InvalidShape for fewer than two rows or shapes that differ, InvalidConfig for a
    penalty that is not above 0, and NonFinite.
    """
    b = len(features)
    if features.ndim != 2 or targets.shape != (b,) or b < 2:
        raise InvalidShape(
            f"features {tuple(features.shape)} and targets {tuple(targets.shape)} must be (b, p) and (b,), "
            "of at least 2 rows"
        )
    if not 0 < penalty < float("inf"):
        raise InvalidConfig("penalty", penalty, "finite and above 0")
    refuse_non_finite(features, "features")
    refuse_non_finite(targets, "targets")
    X, y = features.double(), targets.double()
    X, y = X - X.mean(dim=0), y - y.mean()
    K = X @ X.T
    c = float(K.detach().diagonal().mean()) + penalty
    eye = torch.eye(b, dtype=K.dtype, device=K.device)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(K + penalty * eye + c / b))
    G = inverse - 1 / (b * (penalty + c))
    return G @ y / G.diagonal()
