"""Answers to a table's rows as CSV, for people with spreadsheets."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from models.learning.conformal import Conformal
from models.learning.task import QUANTILE_LEVELS, Task
from models.types import Array
from workers.cohorts import Row

CSV = "text/csv; charset=utf-8"
FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What spreadsheets take a text for a formula by, where a cell begins with it."""
INTERVAL_COVERAGE = 0.9
"""Of the intervals beside the answers."""


def answers_csv(
    rows: Sequence[Row],
    task: Task,
    outputs: Float64[Array, "n o"],
    conformal: Conformal,
    more: Mapping[str, Sequence[Any]],
) -> bytes:
    """One line per row: its scan, patient and target, the columns `more`, the answer and its interval.

    Ends of intervals that patients are too few for are left empty. A text that a spreadsheet would reckon out
    begins with an apostrophe.
    """
    names = {
        "mean": ["answer"],
        "quantiles": [f"quantile {level:g}" for level in QUANTILE_LEVELS],
        "classes": [f"probability of {name}" for name in task.classes],
    }[task.kind]
    columns = [outputs]
    if task.kind != "classes":
        names += [f"{INTERVAL_COVERAGE:.0%} low", f"{INTERVAL_COVERAGE:.0%} high"]
        columns.append(conformal.intervals(outputs, INTERVAL_COVERAGE))
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["volume_id", "patient", "target", *more, *names])
    beside = zip(*more.values(), strict=True)
    for row, told, numbers in zip(rows, beside, np.hstack(columns).tolist(), strict=True):
        finite = [number if math.isfinite(number) else "" for number in numbers]
        writer.writerow([row.volume_id, _harmless(row.patient), _harmless(row.target), *told, *finite])
    return stream.getvalue().encode()


def pairs_csv(
    rows: Sequence[Row],
    numbers: Sequence[int],
    task: Task,
    before: Float64[Array, "n o"],
    after: Float64[Array, "n o"],
) -> bytes:
    """One line for each of some rows of a table: its number, scan, patient and target, and for each number of
    an answer what one model says, what the other, and the second less the first.
    """
    of = {
        "mean": [""],
        "quantiles": [f" quantile {level:g}" for level in QUANTILE_LEVELS],
        "classes": [f" probability of {name}" for name in task.classes],
    }[task.kind]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    told = [f"{what}{each}" for each in of for what in ("before", "after", "difference")]
    writer.writerow(["row", "volume_id", "patient", "target", *told])
    triples = np.stack([before, after, after - before], axis=2).reshape(len(before), -1)
    for number, values in zip(numbers, triples.tolist(), strict=True):
        row = rows[number]
        writer.writerow([number, row.volume_id, _harmless(row.patient), _harmless(row.target), *values])
    return stream.getvalue().encode()


def _harmless(cell: float | str) -> float | str:
    """A cell that is no formula; numbers that are written as text are none."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA) and not _is_number(cell) else cell


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
