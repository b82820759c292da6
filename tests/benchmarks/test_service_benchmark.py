"""The service's benchmark at a small size: what it counts, and who is compared."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout

import pytest

from benchmarks import service
from benchmarks.service_pollers import Polled, Polling


def test_a_polling_can_be_written_down() -> None:
    polling = Polling(1.0, 2, 0.5, {"a": Polled("127.0.0.1", 80, ("/x", "/y"), {"Accept": "*/*"})})
    assert Polling.from_json(polling.to_json()) == polling


def test_cases_without_a_name_are_refused() -> None:
    with pytest.raises(SystemExit, match="there are upload, jobs"):
        service.run(["nothing"])


@pytest.mark.slow
def test_small_scans_and_few_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "LARGE", (64, 64, 64))
    monkeypatch.setattr(service, "SMALL", (32, 32, 32))
    monkeypatch.setattr(service, "JOBS", 12)
    monkeypatch.setattr(service, "POLLERS", 4)
    found = service.run()
    assert found["lost"] == found["doubled"] == found["refused_polls"] == 0
    assert found["not_modified"] > 0
    assert found["upload_ratio"] == pytest.approx(found["upload_mb_s"] / found["raw_copy_mb_s"])
    assert found["poll_ratio"] == pytest.approx(found["poll_p99_ms"] / found["bare_fastapi_p99_ms"])
    assert {target["key"] for target in found["targets"]} == {target.key for target in service.TARGETS}
    json.dumps(found, allow_nan=False)
    text = io.StringIO()
    with redirect_stdout(text):
        service.show(found)
    assert "poll_p99_ms" in text.getvalue()
