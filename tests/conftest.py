"""Fixtures that every test may use."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real scans and broken inputs that stands beside the checkout in CI."""
    if not (SHARED_DATA / "dev" / "MANIFEST.tsv").is_file():
        pytest.skip("the collection of real scans is not beside this checkout")
    return SHARED_DATA
