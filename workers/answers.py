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

    Ends of intervals that patients are too few for are left empty.
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
        writer.writerow([row.volume_id, row.patient, row.target, *told, *finite])
    return stream.getvalue().encode()
