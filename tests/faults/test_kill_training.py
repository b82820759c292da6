"""kill -9 of a worker in the midst of a training: the next attempt goes on, and comes to the same bits."""

from __future__ import annotations

import random
import re
from typing import Any

import numpy as np
import pytest
from support.cohorts import organ
from support.processes import until
from support.scans import files_below, upload
from support.shooting import Range

from storage.checkpoints import NAME
from storage.jobs import Job, JobState, Progress

PATIENTS, FOLDS = 8, 3
SETTINGS: dict[str, Any] = {
    "steps": 300,
    "voxels": 24,
    "batch": 3,
    "encoder": {"hidden": [3, 3], "features": 3},
    "readout": {"count": 600},
}
DEADLINE_S = 300.0
LEASE_S = 1.0
"""Progress is told with each beat of a lease: at those of a longer one, short phases would not be seen."""


def cohort(shooting_range: Range) -> list[dict[str, object]]:
    truth, bell, root = shooting_range.truth, shooting_range.bell, shooting_range.root
    rows = []
    for number, target in enumerate(np.linspace(0, 1, PATIENTS).tolist()):
        volume, ingest = upload(truth, root, organ(target, number))
        bell.ring(ingest)
        bell.succeeded(ingest)
        rows.append({"volume_id": volume.id, "patient": f"p{number}", "target": target})
    return rows


@pytest.mark.slow
def test_a_killed_training_goes_on_and_comes_to_the_same_bits(shooting_range: Range) -> None:
    truth, root = shooting_range.truth, shooting_range.root
    parameters = {
        "rows": cohort(shooting_range),
        "regressor": "random_voxels",
        "settings": SETTINGS,
        "folds": FOLDS,
    }

    def begun() -> Job:
        return shooting_range.begun(lambda: truth.submit("train", parameters))

    reference = shooting_range.bell.succeeded(begun(), DEADLINE_S)
    assert reference.result is not None
    generator = random.Random(0)
    for stage in range(FOLDS + 1):
        job, step = begun(), generator.randrange(int(0.8 * SETTINGS["steps"]))
        until(lambda job=job, at=(stage, step): stands_at(truth.job(job.id)) >= at, DEADLINE_S, 0.005)
        shooting_range.kill_worker_of(job)
        assert truth.job(job.id).state is JobState.RUNNING, "it was over before it was hit"
        if stage > 0 or step > 100:
            assert files_below(root / "checkpoints" / job.id, f"**/{NAME}")
        ended = shooting_range.bell.succeeded(job, DEADLINE_S)
        assert ended.result is not None
        assert ended.attempt == 2
        assert ended.result["model_digest"] == reference.result["model_digest"]
        assert ended.result["metrics"] == reference.result["metrics"]
        assert files_below(root / "artifacts" / ended.id) == ["2"]
        until(lambda job=job: not (root / "checkpoints" / job.id).exists())


def stands_at(job: Job) -> tuple[int, int]:
    """The stage that a training is in, all rows being the last, and the step in it."""
    progress = job.progress or Progress("")
    if progress.phase.startswith("random_voxels, all rows: training"):
        return FOLDS, progress.done
    fold = re.match(r"random_voxels, fold (\d+) of \d+: training", progress.phase)
    return (int(fold[1]) - 1, progress.done) if fold else (-1, 0)
