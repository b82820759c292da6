"""The example scripts of the documentation do what they say."""

from __future__ import annotations

import json
import runpy
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from house import House, open_house

from storage.access import Access
from storage.jobs import JobState

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """A service that asks for keys, with a worker that does what comes."""
    with open_house(tmp_path / "root", authentication=True) as opened:
        ended = threading.Event()
        worker = threading.Thread(target=work, args=(opened, ended))
        worker.start()
        try:
            yield opened
        finally:
            ended.set()
            worker.join()


def work(house: House, ended: threading.Event) -> None:
    while not ended.wait(0.02):
        for job in house.catalogue.jobs(state=JobState.QUEUED):
            if job.kind == "ingest":
                house.work(job.id)
            else:
                house.finish(job.id, {"rank": 10})


@pytest.fixture
def script(house: House, nifti: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    scan = tmp_path / "scan.nii"
    scan.write_bytes(nifti)
    path = EXAMPLES / "analyse_scan.py"
    pause = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: pause(min(seconds, 0.02)))
    monkeypatch.setattr(sys, "argv", [str(path), str(scan)])
    monkeypatch.setenv("TOMOTRAIN_URL", str(house.http.base_url))
    monkeypatch.setenv("TOMOTRAIN_API_KEY", Access(house.catalogue.database).make_key("test").secret)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return path


def test_the_script_of_a_hospital(house: House, script: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        runpy.run_path(str(script), run_name="__main__")
        assert json.loads(capsys.readouterr().out) == {"rank": 10}
    assert len(house.catalogue.volumes()) == 1
    assert len(house.catalogue.jobs(kind="embed")) == 1


def test_the_script_outlasts_cuts(
    house: House, script: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every request's first answer is lost on its way."""
    real, seen = httpx.Client.request, set()

    def request(self: httpx.Client, method: str, path: str, **more: object) -> httpx.Response:
        answer = real(self, method, path, **more)
        if (method, path) not in seen:
            seen.add((method, path))
            raise httpx.ReadError("cut")
        return answer

    monkeypatch.setattr(httpx.Client, "request", request)
    runpy.run_path(str(script), run_name="__main__")
    assert json.loads(capsys.readouterr().out) == {"rank": 10}
    assert len(house.catalogue.volumes()) == 1
    assert len(house.catalogue.jobs(kind="embed")) == 1


def test_the_script_says_what_is_wrong(script: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "scan.nii").write_bytes(b"no scan")
    with pytest.raises(SystemExit, match="kind that is not read"):
        runpy.run_path(str(script), run_name="__main__")
    monkeypatch.setenv("TOMOTRAIN_API_KEY", "tt_wrong")
    with pytest.raises(SystemExit, match="credentials are not valid"):
        runpy.run_path(str(script), run_name="__main__")


def test_it_has_forty_lines() -> None:
    lines = (EXAMPLES / "analyse_scan.py").read_text().splitlines()
    assert sum(bool(line.strip()) for line in lines) <= 40
