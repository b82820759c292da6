"""Tables of answers, as spreadsheets read them."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest

from models.learning.conformal import Conformal
from models.learning.task import Task
from workers.answers import answers_csv
from workers.cohorts import Row


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ('=HYPERLINK("http://x","y")', '\'=HYPERLINK("http://x","y")'),
        ("+x", "'+x"),
        ("-x", "'-x"),
        ("@x", "'@x"),
        ("-7", "-7"),
        ("x=1", "x=1"),
    ],
)
def test_no_text_is_a_formula(text: str, cell: str) -> None:
    task = Task("classes", (text, "other"))
    names = [f"{text}{i}" if i else text for i in range(12)]
    rows = [Row(volume_id="vol_1", patient=name, target=text) for name in names]
    outputs = np.full((12, 2), 0.5)
    conformal = Conformal.of(outputs, np.zeros(12), names, task, method="out-of-fold")
    content = answers_csv(rows, task, outputs, conformal, {"fold": [0] * 12}).decode()
    first = next(csv.DictReader(io.StringIO(content)))
    assert (first["patient"], first["target"], first["fold"]) == (cell, cell, "0")
