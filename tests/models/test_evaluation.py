"""Cross-validation: every row answered once, by a model that did not see its patient."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from model_fields import ArraySource
from small_cohorts import Memory

from models.errors import InvalidConfig, InvalidShape, NonFinite
from models.learning.cohort import Cohort, Inputs
from models.learning.evaluation import cross_validate
from models.learning.folds import patient_folds
from models.learning.metrics import MAE, R2, RMSE
from models.learning.task import Task
from models.training import Watch
from models.types import Array

CPU, MEAN = torch.device("cpu"), Task("mean")


def cohort(patients: int = 12, targets: Array | None = None) -> Cohort:
    """Patients with two scans each, the first with two rows and the second with one; rows not in order."""
    scans = [ArraySource(np.full((2, 2, 2), k, np.float32)) for k in range(2 * patients)]
    scan_of = np.random.default_rng(0).permutation(np.r_[np.arange(2 * patients), 2 * np.arange(patients)])
    covariates = np.arange(3.0 * patients)[:, None]
    values = np.random.default_rng(1).normal(size=3 * patients) if targets is None else targets
    return Cohort(
        Inputs(tuple(scans), scan_of, covariates), tuple(f"p{k // 2}" for k in range(2 * patients)), values
    )


@dataclass(frozen=True)
class Seen:
    """Says of every row its covariate, plus noise from the seed; refuses patients that it was made from."""

    noise: float = 0.0
    value: float = 0.0

    def fit(self, cohort: Cohort, task: Task, *, seed: int, device: torch.device, watch: Watch) -> SeenModel:
        watch.report("fitting", 0, 1)
        if watch.checkpoints is not None:
            watch.checkpoints.save({"seed": np.array(seed)}, {})
        known = {id(scan) for scan in cohort.inputs.scans}
        return SeenModel(known, self.noise * np.random.default_rng(seed).normal() + self.value)


@dataclass(frozen=True)
class SeenModel:
    known: set[int]
    shift: float

    def predict(self, inputs: Inputs) -> Array:
        assert not {id(scan) for scan in inputs.scans} & self.known
        return inputs.covariates + self.shift


def test_each_row_is_answered_in_its_place_by_a_model_without_its_patient() -> None:
    made = cohort()
    folds = patient_folds(made.row_patients, 4, seed=0)
    found = cross_validate(Seen(), made, MEAN, folds, seed=0, device=CPU, watch=Watch())
    assert np.array_equal(found.outputs[:, 0], made.inputs.covariates[:, 0])
    assert np.array_equal(found.losses, np.square(found.outputs[:, 0] - made.targets))
    assert len(found.seconds) == 4
    assert min(found.seconds) > 0


def test_scores_are_pooled_and_by_fold_with_their_spread() -> None:
    made = cohort()
    folds = patient_folds(made.row_patients, 3, seed=0)
    found = cross_validate(Seen(), made, MEAN, folds, seed=0, device=CPU, watch=Watch())
    rmse = found.scores[0]
    expected = [RMSE(found.outputs[folds == k], made.targets[folds == k]) for k in range(3)]
    assert rmse.folds == tuple(expected)
    assert rmse.spread == pytest.approx(np.std(np.array(expected, float), ddof=1))
    assert rmse.pooled.value == RMSE(found.outputs, made.targets)
    assert [score.name for score in found.scores] == ["rmse", "mae", "r2"]
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["scores"][0]["folds"] == expected


def test_folds_without_a_value_are_told_as_such() -> None:
    made = cohort(4)
    folds = patient_folds(made.row_patients, 2, seed=0)
    level = Cohort(made.inputs, made.patients, np.where(folds == 0, 1.0, made.targets))
    found = cross_validate(Seen(), level, MEAN, folds, seed=0, device=CPU, watch=Watch(), metrics=[R2, MAE])
    assert found.scores[0].folds[0] is None
    assert found.scores[0].spread is None
    assert found.scores[1].spread is not None


def test_folds_are_watched_one_by_one_with_seeds_of_their_own() -> None:
    made, kept, told = cohort(), Memory(), []
    folds = patient_folds(made.row_patients, 3, seed=0)

    def answers(seed: int) -> Array:
        watch = Watch(lambda *what: told.append(what), kept)
        return cross_validate(Seen(1.0), made, MEAN, folds, seed=seed, device=CPU, watch=watch).outputs

    first, again, other = answers(0), answers(0), answers(1)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert sorted(kept.parts) == ["fold-0", "fold-1", "fold-2"]
    seeds = {int(part.saved[0]["seed"]) for part in kept.parts.values() if part.saved}
    assert len(seeds) == 3
    assert told[:3] == [("fitting", 0, 1)] * 3


def test_what_cannot_be_validated_is_refused() -> None:
    made = cohort()
    folds = patient_folds(made.row_patients, 3, seed=0)
    divided = folds.copy()
    divided[0] = (divided[0] + 1) % 3
    name = made.row_patients[0]

    def run(recipe: Seen, folds: Array) -> None:
        cross_validate(recipe, made, MEAN, folds, seed=0, device=CPU, watch=Watch())

    with pytest.raises(InvalidShape, match=f"patient '{name}' is in fold"):
        run(Seen(), divided)
    with pytest.raises(InvalidShape, match="1 folds: cross-validation needs 2"):
        run(Seen(), np.zeros_like(folds))
    with pytest.raises(InvalidShape, match="35 folds for 36 rows"):
        run(Seen(), folds[1:])
    with pytest.raises(NonFinite, match="answers of fold 0"):
        run(Seen(value=np.nan), folds)
    with pytest.raises(InvalidShape, match=r"answers of fold 0 are \(12, 1\), not \(12, 3\)"):
        cross_validate(Seen(), made, Task("quantiles"), folds, seed=0, device=CPU, watch=Watch())
    with pytest.raises(InvalidConfig, match="folds = 13"):
        patient_folds(made.row_patients, 13, seed=0)
