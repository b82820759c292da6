"""A second worker helps with a compression, and what becomes of it when it is killed or paused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from support.processes import until
from support.scans import files_below, upload
from support.shooting import Range

from storage.jobs import Job
from storage.volume import Volume

pytestmark = pytest.mark.slow

SHAPE = (300, 260, 190)
ROUNDS_S = 240.0


def scan() -> bytes:
    """Of twelve shards of level 0."""
    x, y, z = np.ogrid[tuple(slice(-1, 1, side * 1j) for side in SHAPE)]
    field = 100 * np.exp(-2 * (x**2 + y**2 + z**2)) + np.random.default_rng(0).normal(0, 1.5, SHAPE)
    return nibabel.Nifti1Image(field.astype(np.int16), np.eye(4), dtype=np.int16).to_bytes()


def desks(root: Path, job: Job) -> list[Path]:
    """Of all helpers that are there now."""
    return [path for path in (root / "checkpoints" / job.id).glob("drafts/*/desks/*") if not path.suffix]


def has_finished_one(root: Path, job: Job) -> bool:
    return any((desk / "ledger.jsonl").stat().st_size for desk in desks(root, job))


def result_of(job: Job) -> dict[str, Any]:
    assert job.result is not None, job.error
    return job.result


@pytest.mark.parametrize("fate", ["lives", "killed", "paused"])
def test_help(fate: str, shooting_range: Range, tmp_path: Path) -> None:
    """The job ends on its first attempt with the bytes that one worker alone would have made."""
    truth, bell = shooting_range.truth, shooting_range.bell
    volume, ingest = upload(truth, tmp_path, scan())
    bell.ring(ingest)
    bell.succeeded(ingest, ROUNDS_S)

    job = truth.submit("compress", {"bound": 2}, volume_id=volume.id)
    bell.ring(job)
    until(lambda: has_finished_one(tmp_path, job), ROUNDS_S, pause_s=0.005)
    (helper,) = (w for name, w in shooting_range.workers.items() if name != truth.job(job.id).worker)
    if fate == "killed":
        helper.kill()
    elif fate == "paused":
        helper.pause()
    ended = bell.succeeded(job, ROUNDS_S)
    assert ended.attempt == 1
    helped = result_of(ended)
    assert helped["tiles_helped"] > 0
    assert helped["tiles_coded"] > 0

    if fate == "paused":
        helper.resume()
        until(lambda: f"job {job.id} needs no help any more" in helper.log())
    if fate != "killed":
        helper.kill()
    again = truth.submit("compress", {"bound": 2}, volume_id=volume.id)
    bell.ring(again)
    alone = result_of(bell.succeeded(again, ROUNDS_S))
    assert alone["tiles_helped"] == 0
    assert levels_of(tmp_path, helped["volume_id"], truth) == levels_of(tmp_path, alone["volume_id"], truth)
    assert files_below(tmp_path / "checkpoints") == []


def levels_of(root: Path, volume_id: str, truth: Any) -> dict[str, bytes]:
    """All chunks of a derived volume, verified."""
    record = truth.volume(volume_id)
    volume = Volume.open(root / record.store, record.stored.digest)
    volume.verify()
    return {
        str(path.relative_to(volume.path)): path.read_bytes()
        for path in sorted(volume.path.rglob("c/**/*"))
        if path.is_file()
    }
