"""A whole service for the acceptance tests: broker, worker and API as `tomotrain up` runs them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.client import Client
from service.stack import Stack

DECODED_LIMIT = 1 << 30


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("root")


@pytest.fixture(scope="module")
def client(data_root: Path) -> Iterator[Client]:
    """A client of an embedded stack whose limit for decoded scans is 1 GiB."""
    outside = {k: v for k, v in os.environ.items() if not k.startswith("TOMOTRAIN_")}
    environment = {**outside, "TOMOTRAIN_SCAN_DECODED_BYTES": str(DECODED_LIMIT)}
    with (
        Stack(data_root, port=0, environment=environment) as stack,
        Client(stack.url, key=stack.key) as client,
    ):
        yield client
