"""Fixtures for tests with real brokers and workers; imported by the conftest of folders that need them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from storage.catalogue import Catalogue
from storage.settings import StorageSettings
from support.processes import Bell, Broker, Worker

StartWorker = Callable[..., Worker]


@pytest.fixture
def broker() -> Iterator[Broker]:
    """A running broker."""
    server = Broker()
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture
def truth(tmp_path: Path) -> Iterator[Catalogue]:
    """The catalogue in the test's data root."""
    with Catalogue.open(StorageSettings(data_root=tmp_path).catalogue_url) as catalogue:
        yield catalogue


@pytest.fixture
def bell(truth: Catalogue, broker: Broker) -> Iterator[Bell]:
    """The doorbell, as the service rings it."""
    with Bell(truth, broker) as ringing:
        yield ringing


@pytest.fixture
def start_worker(tmp_path: Path, broker: Broker) -> Iterator[StartWorker]:
    """Starts workers: `start_worker(app, name, **settings)`; all are killed in the end."""
    with ExitStack() as stack:

        def start(app: str, name: str = "w1", **settings: object) -> Worker:
            worker = Worker(app, name, tmp_path, broker, **settings)
            stack.callback(worker.close)
            worker.start()
            return worker

        yield start
