"""Folds and splits by patient: what is learnt from one row of a patient must not be asked about another.

Everything drawn depends on the seed and on the patients' names, not on the order of the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from models.errors import InvalidConfig, InvalidShape
from models.types import Array, Int64

MOST_STRATA = 10
"""Into as many bins by quantiles the targets are sorted at most; as many distinct ones count as classes."""


@dataclass(frozen=True, eq=False)
class Split:
    """Rows by their use, ascending; no patient has rows in two parts."""

    train: Int64
    calibration: Int64
    test: Int64


def patient_numbers(patients: Sequence[str]) -> Int64:
    """Each row's patient (n,), as a number among the distinct names in their order."""
    return np.unique(np.asarray(patients, dtype=np.str_), return_inverse=True)[1].reshape(-1)


def patient_folds(
    patients: Sequence[str], folds: int, *, seed: int, targets: Float64[Array, " n"] | None = None
) -> Int64:
    """Each row's fold (n,), 0 ... folds - 1: all rows of a patient in one, and folds alike in rows.

    With `targets` they are alike in these too: in bins by quantiles, or in classes where targets have few
    values. Patients go one by one, those with most rows first, to the fold where the sum of squared counts
    grows least (greedy, as for bins that are filled evenly; ties are drawn). Raises InvalidConfig for fewer
    than two folds and more than there are patients, InvalidShape for other numbers of rows.
    """
    numbers = patient_numbers(patients)
    count = _patients(numbers)
    if not 2 <= folds <= count:
        raise InvalidConfig(
            "folds", folds, f"from 2 to {count}, the number of patients: ask for fewer, or add patients"
        )
    strata = np.zeros(len(numbers), np.int64) if targets is None else _strata(targets, count, folds)
    if len(strata) != len(numbers):
        raise InvalidShape(f"{len(strata)} targets for {len(numbers)} rows")
    rows = _counted(numbers, strata, (count, int(strata.max()) + 1))
    return _filled(rows, folds, np.random.default_rng([seed, folds]))[numbers]


def given_folds(patients: Sequence[str], column: Sequence[str]) -> Int64:
    """Each row's fold (n,) from a table's column of names, numbered in their order.

    Raises InvalidShape for a patient in two folds, naming all three, and for fewer than two folds.
    """
    refuse_divided(patients, column)
    names, folds = np.unique(np.asarray(column, dtype=np.str_), return_inverse=True)
    if len(names) < 2:
        raise InvalidShape(f"the column of folds names {len(names)}: it must name two or more")
    return folds.reshape(-1)


def refuse_divided(patients: Sequence[str], column: Sequence[object]) -> None:
    """Raise InvalidShape for a patient in two folds, naming all three, and for other numbers of rows."""
    if len(column) != len(patients):
        raise InvalidShape(f"{len(column)} folds for {len(patients)} rows")
    first: dict[str, object] = {}
    for patient, fold in zip(patients, column, strict=True):
        if (other := first.setdefault(patient, fold)) != fold:
            raise InvalidShape(
                f"patient {patient!r} is in fold {other!r} and in fold {fold!r}: give all rows of a patient "
                "one fold"
            )


def patient_split(patients: Sequence[str], shares: tuple[float, float, float], *, seed: int) -> Split:
    """Patients drawn at random for training, calibration and test, in these shares of them.

    Each part with a share has one patient at least. Raises InvalidConfig for shares that are no shares, and
    for more parts than patients.
    """
    numbers = patient_numbers(patients)
    count = _patients(numbers)
    if min(shares) < 0 or abs(sum(shares) - 1) > 1e-9:
        raise InvalidConfig("shares", shares, "three numbers from 0 that add up to 1")
    if (parts := sum(share > 0 for share in shares)) > count:
        raise InvalidConfig("shares", shares, f"of at most {count} parts, as there are patients, not {parts}")
    sizes = _sizes(shares, count)
    drawn = np.random.default_rng([seed, count]).permutation(count)
    parts_of_patients = np.empty(count, np.int64)
    parts_of_patients[drawn] = np.repeat(np.arange(3), sizes)
    train, calibration, test = (np.flatnonzero(parts_of_patients[numbers] == part) for part in range(3))
    return Split(train, calibration, test)


def _patients(numbers: Int64) -> int:
    return int(numbers.max()) + 1 if len(numbers) else 0


def _strata(targets: Float64[Array, " n"], patients: int, folds: int) -> Int64:
    """Each row's bin (n,): its class, or where its target stands among quantiles."""
    values, classes = np.unique(targets, return_inverse=True)
    if len(values) <= MOST_STRATA:
        return classes.reshape(-1)
    bins = max(1, min(MOST_STRATA, patients // folds))
    edges = np.quantile(targets, np.arange(1, bins) / bins)
    return np.unique(np.searchsorted(edges, targets, side="right"), return_inverse=True)[1].reshape(-1)


def _counted(numbers: Int64, strata: Int64, shape: tuple[int, int]) -> Int64:
    """How many rows each patient has in each stratum."""
    rows = np.zeros(shape, np.int64)
    np.add.at(rows, (numbers, strata), 1)
    return rows


def _filled(rows: Int64, folds: int, generator: np.random.Generator) -> Int64:
    """Each patient's fold, from the patients' rows by stratum."""
    order = generator.permutation(len(rows))
    order = order[np.argsort(-rows[order].sum(axis=1), kind="stable")]
    ties = np.argsort(generator.permuted(np.tile(np.arange(folds), (len(rows), 1)), axis=1), axis=1)
    held = np.zeros((folds, rows.shape[1]))
    fold_of = np.empty(len(rows), np.int64)
    for turn, patient in enumerate(order.tolist()):
        own = rows[patient]
        by_stratum = (own * (2 * held + own) / rows.sum(axis=0)).sum(axis=1)
        in_all = own.sum() * (2 * held.sum(axis=1) + own.sum()) / rows.sum()
        fold = int(np.lexsort((ties[turn], np.round(by_stratum + in_all, 12)))[0])
        held[fold] += own
        fold_of[patient] = fold
    return fold_of


def _sizes(shares: tuple[float, float, float], count: int) -> Int64:
    """Whole numbers in these shares that add up to `count`, by largest remainders; 1 at least for a share."""
    exact = np.array(shares) * count
    sizes = np.maximum(np.floor(exact + 1e-9), np.array(shares) > 0).astype(np.int64)
    while (missing := count - int(sizes.sum())) != 0:
        step = 1 if missing > 0 else -1
        sizes[int(np.argmax(np.where(sizes + step >= (exact > 0), step * (exact - sizes), -np.inf)))] += step
    return sizes
