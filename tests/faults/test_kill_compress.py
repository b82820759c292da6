"""kill -9 of a worker in the midst of a job that makes a volume: the next attempt goes on with what is whole.

It comes to the same bits, and nothing else is left.
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from support.processes import until
from support.scans import files_below, upload
from support.shooting import Range, moments

from storage.ids import derived_id
from storage.jobs import Job, JobState
from storage.volume import Volume

pytestmark = pytest.mark.slow

MANY, SOME = (1600, 12, 12), (500, 12, 12)
"""(z, y, x): of 52 and of 18 shards, in few voxels."""
DEADLINE_S = 120.0
OWN = {
    *("volume_id", "seconds", "mb_s", "peak_memory_bytes"),
    *("tiles_coded", "tiles_kept", "tiles_helped", "source_bytes"),
}
"""What two attempts may tell differently."""


def scan(shape: tuple[int, int, int], dtype: Any = np.int16) -> bytes:
    """With gaps where the dtype has NaN."""
    z, y, x = np.ogrid[tuple(slice(-1, 1, side * 1j) for side in shape)]
    body = 1000 * np.exp(-2 * (x**2 + y**2 + z**2)) + np.random.default_rng(0).normal(0, 8, shape)
    voxels = body.astype(dtype)
    if voxels.dtype.kind == "f":
        voxels[::40, 4:8, 5:9] = np.nan
    return gzip.compress(nibabel.Nifti1Image(voxels.T, np.eye(4)).to_bytes(), compresslevel=1)


def read_in(shooting_range: Range, content: bytes) -> str:
    """The id of a volume that is ready."""
    volume, ingest = upload(shooting_range.truth, shooting_range.root, content)
    shooting_range.bell.ring(ingest)
    shooting_range.bell.succeeded(ingest, DEADLINE_S)
    return volume.id


def whole(root: Path, job: Job) -> int:
    """Tiles of the shards that the owner of the newest draft has finished."""
    ledgers = sorted((root / "checkpoints" / job.id).glob("drafts/*/ledger.jsonl"))
    try:
        lines = ledgers[-1].read_text().splitlines(keepends=True) if ledgers else []
    except FileNotFoundError:
        return 0
    return sum(json.loads(line)["tiles"] for line in lines if line.endswith("\n"))


def told(job: Job) -> dict[str, Any]:
    assert job.result is not None, job.error
    return {name: value for name, value in job.result.items() if name not in OWN}


def check_nothing_else(shooting_range: Range, job: Job) -> None:
    """The attempt's volume is whole; of it and of all jobs before there is no other file."""
    truth, root = shooting_range.truth, shooting_range.root
    record = truth.volume(derived_id(job.id))
    assert record.stored is not None
    Volume.open(root / str(record.store), record.stored.digest).verify()
    until(lambda: not files_below(root / "checkpoints"))
    assert files_below(root / "uploads") == []
    ready = truth.volumes(limit=100)
    assert files_below(root / "volumes", "*/*") == sorted(
        str(volume.store).removeprefix("volumes/") for volume in ready
    )
    published = {f"{done.id}/{done.attempt}" for done in truth.jobs(limit=100) if done.artifacts}
    assert set(files_below(root / "artifacts", "*/*")) == published
    assert [path for path in root.rglob("*part*") if "pytest" not in path.name] == []


def shot(shooting_range: Range, make: Callable[[], Job], tiles: int) -> tuple[Job, int]:
    """A job whose worker is killed when so many tiles are whole, as the next attempt ends it, and how many
    were.
    """
    truth, root = shooting_range.truth, shooting_range.root
    job = shooting_range.begun(make)
    until(lambda: whole(root, job) >= tiles, DEADLINE_S, 0.002)
    shooting_range.kill_worker_of(job)
    found = whole(root, job)
    assert truth.job(job.id).state is JobState.RUNNING, "it was over before it was hit"
    return shooting_range.bell.succeeded(job, DEADLINE_S), found


@pytest.fixture
def many(shooting_range: Range) -> str:
    return read_in(shooting_range, scan(MANY))


def test_a_compression_goes_on_with_what_is_whole(shooting_range: Range, many: str) -> None:
    """One pass; shot at when a random number of its shards is whole."""

    def compress() -> Job:
        return shooting_range.truth.submit("compress", {"ratio": 20}, volume_id=many)

    reference, _ = shooting_range.undisturbed(compress)
    assert len(told(reference)["passes"]) == 1
    generator = random.Random(0)
    for _ in range(4):
        ended, found = shot(shooting_range, compress, generator.randrange(1, 40))
        assert ended.result is not None
        assert ended.attempt == 2
        assert ended.result["tiles_kept"] >= found > 0
        assert told(ended) == told(reference)
        check_nothing_else(shooting_range, ended)


@pytest.mark.parametrize(
    ("kind", "parameters", "points"),
    [
        ("compress", {"ratio": 8}, 4),
        ("compress", {"bound": 2}, 3),
        ("decompress", {}, 2),
    ],
)
def test_killed_at_any_moment(
    shooting_range: Range, many: str, kind: str, parameters: dict[str, Any], points: int
) -> None:
    """While it looks, seeks a setting, codes (for a ratio of 8 in two passes), or measures."""

    def make() -> Job:
        return shooting_range.truth.submit(kind, parameters, volume_id=many)

    reference, seconds = shooting_range.undisturbed(make)
    for after_s in moments(points, seconds):
        ended = shooting_range.killed(make, after_s)
        assert ended.attempt == 2
        assert told(ended) == told(reference)
        check_nothing_else(shooting_range, ended)


@pytest.mark.parametrize("kind", ["denoise", "complete"])
def test_what_restores_a_volume_goes_on(shooting_range: Range, kind: str) -> None:
    volume = read_in(shooting_range, scan(SOME, np.float32))

    def make() -> Job:
        return shooting_range.truth.submit(kind, {"tile": 16}, volume_id=volume)

    reference, _ = shooting_range.undisturbed(make)
    generator = random.Random(1)
    for _ in range(3):
        ended, _found = shot(shooting_range, make, generator.randrange(1, 7))
        assert ended.attempt == 2
        assert told(ended) == told(reference)
        check_nothing_else(shooting_range, ended)
