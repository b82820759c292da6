"""Folds and splits by patient."""

from __future__ import annotations

import numpy as np
import pytest

from models.errors import InvalidConfig, InvalidShape
from models.learning.folds import given_folds, patient_folds, patient_numbers, patient_split


def visits(counts: list[int]) -> list[str]:
    return [f"p{patient}" for patient, count in enumerate(counts) for _ in range(count)]


def rows_per_fold(folds: np.ndarray) -> list[int]:
    return np.bincount(folds).tolist()


def folds_of_patients(patients: list[str], folds: np.ndarray) -> dict[str, set[int]]:
    return {
        name: {int(f) for p, f in zip(patients, folds, strict=True) if p == name} for name in set(patients)
    }


@pytest.mark.parametrize("stratified", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_all_rows_of_a_patient_are_in_one_fold_and_folds_are_alike(stratified: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    patients = visits(rng.integers(1, 12, 60).tolist())
    targets = rng.normal(size=len(patients))
    folds = patient_folds(patients, 5, seed=seed, targets=targets if stratified else None)
    assert all(len(inside) == 1 for inside in folds_of_patients(patients, folds).values())
    rows = rows_per_fold(folds)
    assert len(rows) == 5
    assert max(rows) - min(rows) <= (10 if stratified else 1)


def test_folds_are_drawn_from_the_seed_and_the_names_alone() -> None:
    patients = visits([3, 1, 2, 2, 4, 1, 1, 5])
    folds = patient_folds(patients, 3, seed=1)
    assert np.array_equal(folds, patient_folds(patients, 3, seed=1))
    backwards = patient_folds(patients[::-1], 3, seed=1)
    assert np.array_equal(folds, backwards[::-1])
    assert any(not np.array_equal(folds, patient_folds(patients, 3, seed=seed)) for seed in range(2, 6))


def test_folds_are_stratified_by_classes_and_by_quantiles() -> None:
    patients = visits([1] * 100)
    classes = np.repeat([0.0, 1.0], [80, 20])
    folds = patient_folds(patients, 5, seed=0, targets=classes)
    assert [int(classes[folds == k].sum()) for k in range(5)] == [4] * 5
    assert rows_per_fold(folds) == [20] * 5
    ages = np.random.default_rng(0).gamma(2, 10, 100)
    means = [ages[patient_folds(patients, 5, seed=s, targets=ages) == 0].mean() for s in range(30)]
    unstratified = [ages[patient_folds(patients, 5, seed=s) == 0].mean() for s in range(30)]
    assert np.std(means) < 0.5 * np.std(unstratified)


def test_as_many_folds_as_patients_leave_each_out_once() -> None:
    patients = visits([4, 1, 3, 1])
    folds = patient_folds(patients, 4, seed=0, targets=np.arange(9.0))
    assert sorted(np.unique(folds).tolist()) == [0, 1, 2, 3]
    assert len({min(inside) for inside in folds_of_patients(patients, folds).values()}) == 4


@pytest.mark.parametrize("folds", [1, 4])
def test_more_folds_than_patients_are_refused(folds: int) -> None:
    with pytest.raises(InvalidConfig, match=f"folds = {folds}: must be from 2 to 3, the number of patients"):
        patient_folds(visits([5, 2, 2]), folds, seed=0)


def test_a_patient_in_two_folds_is_named() -> None:
    patients = ["anna", "ben", "anna", "carl"]
    assert given_folds(patients, ["b", "a", "b", "c"]).tolist() == [1, 0, 1, 2]
    with pytest.raises(InvalidShape, match="patient 'anna' is in fold 'b' and in fold 'c'"):
        given_folds(patients, ["b", "a", "c", "c"])
    with pytest.raises(InvalidShape, match="names 1: it must name two"):
        given_folds(patients, ["a"] * 4)
    with pytest.raises(InvalidShape, match="3 folds for 4 rows"):
        given_folds(patients, ["a"] * 3)


def test_a_split_has_the_shares_of_patients_and_no_patient_twice() -> None:
    patients = visits([2, 3] * 20)
    split = patient_split(patients, (0.5, 0.3, 0.2), seed=3)
    parts = [split.train, split.calibration, split.test]
    numbers = patient_numbers(patients)
    assert [len(np.unique(numbers[part])) for part in parts] == [20, 12, 8]
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(patients)))
    assert not set(numbers[split.train]) & set(numbers[split.calibration])
    assert not np.array_equal(split.train, patient_split(patients, (0.5, 0.3, 0.2), seed=4).train)


def test_a_small_split_has_a_patient_in_each_part_that_has_a_share() -> None:
    sizes = [
        (len(split.train), len(split.calibration), len(split.test))
        for split in (
            patient_split(["a", "b", "c"], shares, seed=0)
            for shares in ((0.98, 0.01, 0.01), (0.5, 0.0, 0.5), (0.0, 0.0, 1.0))
        )
    ]
    assert sizes == [(1, 1, 1), (2, 0, 1), (0, 0, 3)]
    with pytest.raises(InvalidConfig, match="at most 2 parts"):
        patient_split(["a", "b"], (0.4, 0.3, 0.3), seed=0)
    with pytest.raises(InvalidConfig, match="add up to 1"):
        patient_split(["a", "b"], (0.4, 0.3, 0.2), seed=0)
