"""Real brokers and workers, made to be killed."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.fixtures import StartWorker, bell, broker, start_worker, truth
from support.processes import Bell, until
from support.shooting import LEASE_S, Range

from storage.catalogue import Catalogue

__all__ = ["bell", "broker", "start_worker", "truth"]


@pytest.fixture
def shooting_range(
    truth: Catalogue, bell: Bell, start_worker: StartWorker, tmp_path: Path, request: pytest.FixtureRequest
) -> Range:
    """Two workers of all kinds, with the leases of the test's module if it names any."""
    lease_s = getattr(request.module, "LEASE_S", LEASE_S)
    workers = {f"{name}@test": start_worker("workers.app", name, lease_s=lease_s) for name in ("w1", "w2")}
    until(lambda: len(truth.workers()) == len(workers))
    return Range(truth, bell, workers, tmp_path)
