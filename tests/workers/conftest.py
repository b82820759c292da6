"""A catalogue, settings and a runner in a folder of the test's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.cohorts import School
from support.fixtures import bell, broker, start_worker, truth

from storage.catalogue import Catalogue
from workers.jobs.base import AnyKind
from workers.runner import Runner
from workers.settings import WorkerSettings

__all__ = ["bell", "broker", "start_worker", "truth"]

MakeRunner = Callable[..., Runner]


@pytest.fixture
def settings(tmp_path: Path) -> WorkerSettings:
    """Of a worker on the CPU."""
    return WorkerSettings(
        data_root=tmp_path, device="cpu", lease_s=30, retry_pause_s=0, memory_budget_bytes=2 << 30
    )


@pytest.fixture
def catalogue(settings: WorkerSettings) -> Iterator[Catalogue]:
    """An empty catalogue."""
    with Catalogue.open(settings.catalogue_url) as opened:
        yield opened


@pytest.fixture
def make_runner(catalogue: Catalogue, settings: WorkerSettings) -> MakeRunner:
    """Makes a runner for some kinds, which it announces."""

    def make(*kinds: AnyKind, **changes: object) -> Runner:
        catalogue.announce("worker-1", [kind.announcement() for kind in kinds], "cpu")
        changed = settings.model_copy(update=changes)
        return Runner(catalogue, kinds, changed, worker="worker-1", device="cpu")

    return make


@pytest.fixture(scope="session")
def school(tmp_path_factory: pytest.TempPathFactory) -> Iterator[School]:
    """A cohort of fourteen patients, for tests that add jobs and change nothing else."""
    opened = School.of(tmp_path_factory.mktemp("school"), 14)
    yield opened
    opened.catalogue.close()
