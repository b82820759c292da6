"""The running service against its own description: requests that fit it, and requests that do not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fuzzing import Target, fuzz, fuzzed_house


@pytest.fixture
def target(tmp_path: Path, nifti: bytes) -> Iterator[Target]:
    with fuzzed_house(tmp_path, nifti) as opened:
        yield opened


def operations(target: Target) -> set[str]:
    paths = target.house.http.get("/openapi.json").json()["paths"]
    return {f"{method.upper()} {path}" for path, item in paths.items() for method in item}


def test_answers_are_as_described(target: Target) -> None:
    found = fuzz(target, "examples", "fuzzing", examples=10)
    assert not found.faults, str(found)
    assert operations(target) <= set(found.requests)


@pytest.mark.slow
def test_answers_to_much_are_as_described(target: Target) -> None:
    found = fuzz(target, "coverage", "fuzzing", examples=500)
    assert not found.faults, str(found)


@pytest.mark.slow
def test_answers_to_requests_that_build_on_others_are_as_described(target: Target) -> None:
    found = fuzz(target, "stateful", examples=500)
    assert not found.faults, str(found)
    assert sum(found.requests.values()) > 500
