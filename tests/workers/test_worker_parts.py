"""The small parts: memory, device, presence, patience."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from models.errors import SourceFailed
from storage.errors import CorruptVolume
from workers import process
from workers.device import resolve_device
from workers.failures import cause_of, error_record
from workers.memory import default_budget, peak_bytes, reset_peak
from workers.process import WorkerProcess
from workers.settings import WorkerSettings

MIB = 1 << 20


def without_memory() -> Exception:
    try:
        torch.empty(1 << 50)
    except RuntimeError as error:
        return error
    pytest.fail("there is no such memory")


def from_cause(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "lacking", [MemoryError("8 GiB"), without_memory(), torch.OutOfMemoryError("CUDA out of memory.")]
)
def test_memory_that_was_refused_is_told_as_such(lacking: Exception) -> None:
    within = from_cause(SourceFailed("reading slices 0 to 31"), lacking)
    for error in (lacking, within, from_cause(SourceFailed("reading cubes"), within)):
        record = error_record(cause_of(error))
        assert (record["code"], record["retryable"]) == ("out-of-memory", False)


def test_errors_are_told_by_what_they_came_from() -> None:
    corrupt = CorruptVolume("0/c/0", "other bytes")
    broken = from_cause(SourceFailed("reading cubes"), OSError("broken pipe"))
    for error, told in (
        (from_cause(SourceFailed("reading cubes"), corrupt), corrupt),
        (broken, broken),
        (unforeseen := from_cause(RuntimeError("shapes do not fit"), MemoryError()), unforeseen),
    ):
        assert cause_of(error) is told
    assert error_record(RuntimeError("shapes do not fit"))["code"] == "internal-error"


def test_the_peak_is_that_of_the_job_and_not_of_the_process() -> None:
    ballast = np.ones(100 * MIB, np.uint8)
    high = peak_bytes()
    del ballast
    reset_peak()
    assert peak_bytes() < high - 50 * MIB


def test_the_default_budget_is_less_than_the_machine_has() -> None:
    import psutil

    assert 0 < default_budget(0.25) < default_budget(0.5) < psutil.virtual_memory().total


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
