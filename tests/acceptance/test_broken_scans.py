"""Every broken, odd or hostile file through the whole service: the answer that its manifest asks for.

And after all of them: the service is up, nothing is left in the store but what was accepted, and neither
the API nor the worker has needed more than 300 MB beside what a sound scan takes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from service.client import Client, ServiceProblem
from service.packing import sendable
from tests.readers.test_broken import ACCEPTED
from tests.readers.test_broken import REFUSED as REFUSED_BY_READERS
from tests.readers.test_dev import manifest

EXTRA_BYTES = 300 << 20
REFUSED_BY_INGEST = {"nii_all_nan.nii.gz"}
REFUSED = {*REFUSED_BY_READERS, *REFUSED_BY_INGEST}
ROWS = manifest("broken")


class Seen:
    """What became of each file: the id of its volume, or the status of the problem."""

    def __init__(self) -> None:
        self.accepted: dict[str, str] = {}
        self.refused: dict[str, ServiceProblem] = {}


@pytest.fixture(scope="module")
def seen(client: Client, shared_data: Path) -> Seen:
    """Send every file, one after the other, and hold the memory of all processes against a baseline."""
    outcome = Seen()
    _send(client, shared_data / "broken" / "good_control.nii.gz")
    _send(client, shared_data / "broken" / "good_control_series.zip")
    with _bounded_memory(EXTRA_BYTES):
        for row in ROWS:
            try:
                outcome.accepted[row["file"]] = _send(client, shared_data / "broken" / row["file"])
            except ServiceProblem as problem:
                outcome.refused[row["file"]] = problem
    return outcome


def _send(client: Client, scan: Path) -> str:
    with sendable(scan) as file:
        accepted = client.upload(file)
    client.wait(accepted.job.id)
    return accepted.volume.id


@contextmanager
def _bounded_memory(extra: int) -> Iterator[None]:
    """The peak of each process of the stack stays within `extra` bytes of what it holds now."""
    processes = psutil.Process().children(recursive=True)
    for process in processes:
        Path(f"/proc/{process.pid}/clear_refs").write_text("5")
    before = {process.pid: _peak(process.pid) for process in processes}
    yield
    for process in processes:
        if process.is_running():
            more, command = _peak(process.pid) - before[process.pid], " ".join(process.cmdline())
            print(f"{more / 2**20:6.0f} MiB  {command}")
            assert more <= extra, command


def _peak(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["file"])
def test_the_answer_is_the_one_asked_for(client: Client, seen: Seen, row: dict[str, str]) -> None:
    if row["file"] in REFUSED:
        problem = seen.refused[row["file"]].problem
        asked = {int(status) for status in re.findall(r"\b4\d\d\b", row["good_answer"].split(";")[0])}
        assert problem.status in (asked or {415, 422})
        assert len(problem.detail) > 20
        assert "vol_" not in problem.detail
    else:
        view = client.volume(seen.accepted[row["file"]])
        assert view.state == "ready"
        if "warning" in row["good_answer"] and row["file"] != "gz_bomb_honest.nii.gz":
            assert view.warnings


def test_nothing_is_left_in_the_store_but_what_was_accepted(
    client: Client, data_root: Path, seen: Seen
) -> None:
    kept = {path.name for path in (data_root / "volumes").iterdir() if any(path.iterdir())}
    assert len(kept) == len(seen.accepted) + 2
    assert set(seen.accepted.values()) <= kept
    assert list((data_root / "uploads").iterdir()) == []
    assert not list(data_root.rglob("*.part"))
    assert not list(Path("/tmp").glob("zip_slip_canary*"))
    assert "PICKLE CANARY" not in "".join(p.read_text("utf-8", "replace") for p in data_root.rglob("*.log"))
    assert client.alive()


def test_an_embedding_of_every_odd_volume_is_finite(client: Client, seen: Seen) -> None:
    """Oddities that were accepted (constant, huge, repaired values) never become NaN in an answer."""
    assert len(seen.accepted) == len(ACCEPTED) - len(REFUSED_BY_INGEST)
    jobs = [client.submit("embed", {"held_out": 50}, volume_id=volume) for volume in seen.accepted.values()]
    for job in jobs:
        assert client.wait(job.id).state == "succeeded"  # the result parsed as JSON, which knows no NaN
