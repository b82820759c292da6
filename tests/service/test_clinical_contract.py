"""The clinical forms read what `predict` writes: the two know each other by JSON alone."""

from __future__ import annotations

import json
from typing import Any

import pytest
from clinical_cases import CASES, HOSTILE

from service.clinical.prediction import KIND, Prediction
from workers.jobs.predict import Predict, PredictResult


@pytest.mark.parametrize("result", [*CASES.values(), HOSTILE], ids=[*CASES, "hostile"])
def test_the_tests_results_are_as_the_worker_writes_them(result: dict[str, Any]) -> None:
    assert json.loads(PredictResult.model_validate(result).model_dump_json()) == result
    Prediction.model_validate_json(json.dumps(result))


def test_every_field_that_is_read_is_written() -> None:
    assert Predict.name == KIND
    assert set(Prediction.model_fields) <= set(PredictResult.model_fields)
