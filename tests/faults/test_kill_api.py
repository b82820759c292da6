"""kill -9 of the web process between commit and answer: who asks again gets what was made (row 3)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from storage.catalogue import Catalogue
from storage.settings import StorageSettings

PROGRAM = Path(__file__).with_name("mortal_api.py")
DIE = "x-die"


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[httpx.Client]:
    """A client of a service that dies where `DIE` says so, and begins anew."""
    keeper = subprocess.Popen(
        [sys.executable, str(PROGRAM), str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert keeper.stdout is not None
        with httpx.Client(
            base_url=f"http://127.0.0.1:{int(keeper.stdout.readline())}", timeout=60, trust_env=False
        ) as http:
            yield http
    finally:
        os.killpg(keeper.pid, signal.SIGKILL)
        keeper.wait()
        assert keeper.stdout is not None
        keeper.stdout.close()


def patiently(http: httpx.Client, path: str, body: dict[str, Any] | None) -> httpx.Response:
    """As a client does that was never answered: the same request with the same key."""
    headers = {"Idempotency-Key": str(uuid.uuid4())}
    with pytest.raises(httpx.TransportError):
        http.post(path, json=body, headers={**headers, DIE: "now"})
    return http.post(path, json=body, headers=headers)


@pytest.mark.parametrize("times", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_each_request_makes_its_job_once(mortal: httpx.Client, times: int, tmp_path: Path) -> None:
    answers = [patiently(mortal, "/v1/jobs", {"kind": "errand"}) for _ in range(times)]
    assert {answer.status_code for answer in answers} == {202}
    assert {answer.headers["idempotency-replayed"] for answer in answers} == {"true"}
    with Catalogue.open(StorageSettings(data_root=tmp_path).catalogue_url) as catalogue:
        made = sorted(job.id for job in catalogue.jobs(limit=10 * times))
    assert made == sorted(answer.json()["id"] for answer in answers)
    assert len(made) == times


def test_a_batch_and_a_retry_are_whole_and_once(mortal: httpx.Client, tmp_path: Path) -> None:
    batch = patiently(mortal, "/v1/jobs:batch", {"jobs": [{"kind": "errand"}] * 50})
    first, *rest = [job["id"] for job in batch.json()["jobs"]]
    assert mortal.post(f"/v1/jobs/{first}/cancel").status_code == 200
    retry = patiently(mortal, f"/v1/jobs/{first}/retry", None)
    assert (retry.status_code, retry.json()["retry_of"]) == (202, first)
    with Catalogue.open(StorageSettings(data_root=tmp_path).catalogue_url) as catalogue:
        made = {job.id for job in catalogue.jobs(limit=200)}
    assert made == {first, *rest, retry.json()["id"]}
    assert len(made) == 51
