"""Cohorts: rows that ask about scans, and what is no cohort."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from model_fields import Array, ArraySource

from models.errors import InvalidShape
from models.learning.cohort import Cohort, Inputs

SCANS = tuple(ArraySource(np.full((2, 3, 4), float(number))) for number in range(4))
SCAN_OF = np.array([2, 0, 2, 3, 0])
COVARIATES = np.arange(10.0).reshape(5, 2)
INPUTS = Inputs(SCANS, SCAN_OF, COVARIATES)
COHORT = Cohort(INPUTS, ("ann", "bob", "ann", "cleo"), np.array([20.0, 1, 22, 30, 2]))


def told(inputs: Inputs) -> list[tuple[float, list[float]]]:
    """What each row is about: its scan, by its value, and its covariates."""
    values = [float(scan.cubes(np.zeros((1, 3), np.int64), 1).item()) for scan in inputs.scans]
    return [(values[s], c) for s, c in zip(inputs.scan_of.tolist(), inputs.covariates.tolist(), strict=True)]


def test_a_row_is_about_a_scan_of_a_patient() -> None:
    assert len(INPUTS) == len(COHORT) == 5
    assert COHORT.row_patients == ("ann", "ann", "ann", "cleo", "ann")
    assert INPUTS.rows_of(np.array([3, 0])).tolist() == [1, 3, 4]
    assert INPUTS.rows_of(np.array([1])).tolist() == []


def test_one_row_for_each_scan() -> None:
    inputs = Inputs.of(SCANS)
    assert inputs.scan_of.tolist() == [0, 1, 2, 3]
    assert inputs.covariates.shape == (4, 0)
    assert Inputs.of(SCANS, COVARIATES[:4]).covariates.tolist() == COVARIATES[:4].tolist()


@pytest.mark.parametrize("chosen", [[0, 2], [2, 0], [3, 1, 2], [0, 1, 2, 3]])
def test_a_part_has_the_rows_of_its_scans_as_they_were(chosen: list[int]) -> None:
    part, rows = COHORT.only(np.array(chosen)), [row for row in range(5) if SCAN_OF[row] in chosen]
    assert part.inputs.scans == tuple(SCANS[scan] for scan in chosen)
    assert part.patients == tuple(COHORT.patients[scan] for scan in chosen)
    assert told(part.inputs) == [told(INPUTS)[row] for row in rows]
    assert part.targets.tolist() == COHORT.targets[rows].tolist()
    assert part.row_patients == tuple(COHORT.row_patients[row] for row in rows)
    assert told(INPUTS.only(np.array(chosen))) == told(part.inputs)


def test_parts_of_parts_are_parts() -> None:
    part = COHORT.only(np.array([3, 0, 2])).only(np.array([2, 1]))
    assert told(part.inputs) == told(COHORT.only(np.array([2, 0])).inputs)
    assert part.targets.tolist() == [20, 1, 22, 2]


def inputs(scans: Any = SCANS, scan_of: Any = SCAN_OF, covariates: Array = COVARIATES) -> Inputs:
    return Inputs(scans, scan_of, covariates)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"scans": ()}, "no scans"),
        ({"scans": (*SCANS[:3], ArraySource(np.zeros((2, 3, 5))))}, r"scan 3 is \(2, 3, 5\) with 1 channels"),
        ({"scans": (*SCANS[:3], ArraySource(np.zeros((2, 2, 3, 4))))}, "scan 3 is .* with 2 channels"),
        ({"covariates": COVARIATES[:4]}, r"covariates \(4, 2\) of 5 rows"),
        ({"covariates": np.arange(5.0)}, r"covariates \(5,\) of 5 rows"),
        ({"scan_of": np.array([0, 1, 2, 3, 4])}, "row 4 names scan 4, not one of the 4"),
        ({"scan_of": np.array([0, -1, 2, 3, 0])}, "row 1 names scan -1, not one of the 4"),
        ({"scan_of": SCAN_OF.astype(float)}, "whole numbers"),
        ({"scan_of": SCAN_OF[:, None]}, "whole numbers"),
        (
            {"covariates": np.where(np.arange(10).reshape(5, 2) == 7, np.nan, COVARIATES)},
            "covariate 1 of row 3 is nan",
        ),
        ({"covariates": np.where(COVARIATES == 0, np.inf, COVARIATES)}, "covariate 0 of row 0 is inf"),
    ],
)
def test_what_is_no_input_is_refused_and_named(given: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidShape, match=named):
        inputs(**given)


@pytest.mark.parametrize(
    ("patients", "targets", "named"),
    [
        (("ann", "bob"), COHORT.targets, "2 patients for 4 scans"),
        (COHORT.patients, np.zeros(4), r"targets \(4,\) for 5 rows"),
        (COHORT.patients, np.zeros((5, 1)), r"targets \(5, 1\) for 5 rows"),
        (COHORT.patients, np.array([1, 2, np.nan, 4, np.nan]), "the target of row 2 is nan"),
        (COHORT.patients, np.array([1, 2, 3, 4, -np.inf]), "the target of row 4 is -inf"),
    ],
)
def test_what_is_no_cohort_is_refused_and_named(
    patients: tuple[str, ...], targets: Array, named: str
) -> None:
    with pytest.raises(InvalidShape, match=named):
        Cohort(INPUTS, patients, targets)


def test_a_part_of_no_scans_no_rows_other_scans_or_one_twice_is_refused() -> None:
    for chosen, named in (
        ([], "no scans"),
        ([0, 4], "scan 4"),
        ([-1], "scan -1"),
        ([2, 0, 2], "scan 2 twice"),
    ):
        with pytest.raises(InvalidShape, match=named):
            COHORT.only(np.array(chosen, np.int64))
