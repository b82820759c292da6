"""kill -9 of the whole worker, parent and pool, in the middle of the main job's two steps.

The next attempt must end with the result of a run that nobody disturbed, bit for bit, and nothing of the
killed attempt may be left.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.processes import until
from support.scans import files_below, nifti, upload
from support.shooting import Range, moments

from storage.catalogue import Catalogue
from storage.jobs import Job, JobState
from storage.volume import Volume

SHAPE = (160, 192, 160)
"""Large enough for an ingest that takes longer than it takes to aim."""
EMBED = {"rank": 12, "n_dim": 16, "sweeps": 3}


@pytest.mark.parametrize("points", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_the_main_job_survives_its_workers(points: int, shooting_range: Range) -> None:
    truth, root, scan = shooting_range.truth, shooting_range.root, nifti(SHAPE)

    def ingest() -> Job:
        return upload(truth, root, scan)[1]

    reference, seconds = shooting_range.undisturbed(ingest)
    for after_s in moments(points, seconds):
        ended = shooting_range.killed(ingest, after_s)
        assert ended.attempt == 2
        assert _without_peak(ended.result) == _without_peak(reference.result)
        _check_published(truth, root, ended)

    def embed() -> Job:
        return truth.submit("embed", EMBED, volume_id=reference.volume_id)

    reference, seconds = shooting_range.undisturbed(embed)
    assert reference.result is not None
    for after_s in moments(points, seconds):
        ended = shooting_range.killed(embed, after_s)
        assert ended.attempt == 2
        assert ended.result is not None
        assert ended.result["cores_digest"] == reference.result["cores_digest"]
        assert ended.result["certificate"] == reference.result["certificate"]
        assert files_below(root / "artifacts" / ended.id) == ["2"]


@pytest.mark.slow
def test_a_job_that_loses_three_workers_fails_and_leaves_nothing(shooting_range: Range) -> None:
    truth, root = shooting_range.truth, shooting_range.root
    job = shooting_range.begun(lambda: upload(truth, root, nifti(SHAPE))[1])
    for attempt in (1, 2, 3):
        until(lambda attempt=attempt: truth.job(job.id).attempt == attempt, pause_s=0.002)
        shooting_range.kill_worker_of(truth.job(job.id))
    ended = shooting_range.bell.ended(job)
    assert ended.error is not None
    assert (ended.state, ended.attempt, ended.error["code"]) == (JobState.FAILED, 3, "worker-lost")
    shooting_range.kill_worker_of(ended)
    until(lambda: not files_below(root / "uploads") and not files_below(root / "volumes"))


def _check_published(truth: Catalogue, root: Path, ingest: Job) -> None:
    """The second attempt's store is whole, and the only thing there."""
    assert ingest.volume_id is not None
    record = truth.volume(ingest.volume_id)
    assert record.stored is not None
    assert record.store == f"volumes/{record.id}/2.zarr"
    assert files_below(root / "volumes" / record.id) == ["2.zarr"]
    until(lambda: not files_below(root / "uploads"))
    Volume.open(root / record.store, record.stored.digest).verify()


def _without_peak(result: dict[str, Any] | None) -> dict[str, Any]:
    assert result is not None
    return {name: value for name, value in result.items() if name != "peak_memory_bytes"}
