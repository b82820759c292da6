"""The web process: quick to start, small, without torch, and no larger for a larger scan."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from house import wait_until

MIB = 1 << 20


@pytest.fixture
def process(tmp_path: Path) -> Iterator[tuple[psutil.Process, httpx.Client, float]]:
    """uvicorn as users run it: its process, a client, and the seconds until its first answer."""
    environment = {
        "PATH": "/usr/bin:/bin",
        "TOMOTRAIN_DATA_ROOT": str(tmp_path / "var"),
        "TOMOTRAIN_BROKER_URL": "redis://127.0.0.1:1/0",
        "TOMOTRAIN_AUTHENTICATION": "false",
    }
    command = [sys.executable, "-m", "uvicorn", "service.app:build", "--factory", "--port", "0"]
    began = time.monotonic()
    log = tmp_path / "log"
    with log.open("wb") as output:
        child = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
    try:
        wait_until(lambda: "running on" in log.read_text(), 30)
        url = log.read_text().split("running on ")[1].split()[0]
        with httpx.Client(base_url=url, trust_env=False, timeout=60) as client:
            assert client.get("/livez").status_code == 200
            yield psutil.Process(child.pid), client, time.monotonic() - began
    finally:
        child.terminate()
        child.wait(20)


def test_it_imports_neither_torch_nor_the_other_half() -> None:
    heavy = "torch", "models", "workers", "distributed", "dask.dataframe", "tensorstore"
    script = (
        f"import sys, service.app, service.cli; print([name for name in {heavy!r} if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_it_starts_within_two_seconds_of_processor_time_and_stays_small(
    process: tuple[psutil.Process, httpx.Client, float],
) -> None:
    server, _, _ = process
    times = server.cpu_times()
    assert times.user + times.system < 2.0
    assert server.memory_info().rss < 200 * MIB


def test_an_upload_costs_no_memory_of_its_size(
    process: tuple[psutil.Process, httpx.Client, float],
) -> None:
    server, client, _ = process
    client.post("/v1/volumes", content=b"x" * MIB)
    before, most = server.memory_info().rss, 0

    def body() -> Iterator[bytes]:
        nonlocal most
        for _ in range(200):
            yield b"x" * MIB
            most = max(most, server.memory_info().rss)

    assert client.post("/v1/volumes", content=body()).status_code == 415
    assert most - before < 24 * MIB


def test_a_broker_that_is_away_delays_nobody(
    process: tuple[psutil.Process, httpx.Client, float], nifti: bytes
) -> None:
    _, client, _ = process
    client.post("/v1/volumes", content=nifti)
    began = time.monotonic()
    for _ in range(5):
        assert client.post("/v1/volumes", content=nifti).status_code == 202
    assert (time.monotonic() - began) / 5 < 0.5
    faults = [error["pointer"] for error in client.get("/readyz").json()["errors"]]
    assert faults == ["broker", "worker"]
