"""Names that others chose, on a terminal: shown as they are, and never obeyed."""

from __future__ import annotations

import io

from rich.console import Console

from service.learning_report import evaluation_tables, prediction_table, training_tables
from service.schemas import JobView
from service.terminal import pairs
from service.watcher import Watcher

ODD = "[/red] x [mm] :smile: \x1b[31m\u202e\n"
TOLD = "[/red] x [mm] :smile: \ufffd[31m\ufffd"
NAMED = {"target_name": ODD, "target_unit": "", "task": "classes", "warnings": [], "notice": ODD}
COUNTED = {"rows": 3, "scans": 2, "patients": 2}
TRAINED = {
    **NAMED,
    **COUNTED,
    "classes": [ODD, "well"],
    "covariates": [ODD],
    "folds": 5,
    "compared": [{"regressor": ODD, "metrics": {}, "reason": ODD}],
    "reasons": [ODD],
    "intervals": [],
    "regressor": "constant",
    "model_parameters": 30,
    "seconds": 61.25,
}
ANSWERED = {
    **NAMED,
    "value": None,
    "class_name": ODD,
    "intervals": [],
    "quantiles": [],
    "probabilities": [{"name": ODD, "value": 0.75}],
    "verdict": "alike",
    "voxels": 10,
    "share_read": 0.5,
    "cubes_read": 1,
    "seconds": 0.25,
    "model": "job_1",
    "regressor": "constant",
}
JUDGED = {
    **NAMED,
    **COUNTED,
    "model": ODD,
    "regressor": ODD,
    "metrics": {ODD: {"value": None}},
    "coverage": [],
}


def shown(*tables: object) -> str:
    console = Console(width=300, record=True, file=io.StringIO())
    for table in tables:
        console.print(table)
    return console.export_text()


def test_reports_show_names_as_they_are() -> None:
    trained, predicted, judged = (
        JobView.model_construct(id=ODD, result=result) for result in (TRAINED, ANSWERED, JUDGED)
    )
    for text, times in (
        (shown(*training_tables(trained)), 7),
        (shown(prediction_table(predicted)), 5),
        (shown(*evaluation_tables(judged)), 5),
    ):
        assert text.count(TOLD) == times
        assert "\x1b" not in text


def test_an_ordinary_table_stays_ordinary() -> None:
    text = shown(pairs("Model 7", [("age", "63 years"), ("größe", "1 m")]))
    assert text.startswith("Model 7 ")
    assert "│ größe │ 1 m      │" in text


def test_progress_shows_words_as_they_are() -> None:
    file = io.StringIO()
    with Watcher(Console(width=120, file=file, force_terminal=True, color_system=None)) as watcher:
        watcher.step("upload", 1, 2, "[/red]\u202e")
    assert "1 of 2 [/red]\ufffd" in file.getvalue()
