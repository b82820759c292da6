"""The small parts: memory, device, presence, patience."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from workers import process
from workers.device import resolve_device
from workers.memory import default_budget, peak_bytes, reset_peak
from workers.process import WorkerProcess
from workers.settings import WorkerSettings

MIB = 1 << 20


def test_the_peak_is_that_of_the_job_and_not_of_the_process() -> None:
    ballast = np.ones(100 * MIB, np.uint8)
    high = peak_bytes()
    del ballast
    reset_peak()
    assert peak_bytes() < high - 50 * MIB


def test_the_default_budget_is_less_than_the_machine_has() -> None:
    import psutil

    assert 0 < default_budget() < psutil.virtual_memory().total


def test_devices() -> None:
    assert resolve_device("cuda:1") == "cuda:1"
    assert resolve_device("auto") in ("cpu", "cuda")


def test_a_worker_waits_for_its_database_but_not_for_ever(
    monkeypatch: pytest.MonkeyPatch, settings: WorkerSettings
) -> None:
    from storage.errors import CatalogueUnavailable

    monkeypatch.setattr(process, "PATIENCE_S", 0.05)
    monkeypatch.setattr(process, "PAUSE_S", 0.01)
    away = settings.model_copy(update={"db_url": "postgresql+psycopg://nobody@127.0.0.1:1/nothing"})
    with pytest.raises(CatalogueUnavailable):
        WorkerProcess(away, [], "w1")


def test_the_parent_of_the_pool_imports_nothing_heavy() -> None:
    program = (
        "import sys, workers.app; "
        "print([name for name in ('torch', 'zarr', 'dask', 'nibabel') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
