"""kill -9 of a worker that compresses a model: the next attempt goes on, and comes to the same bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support.cohorts import organ
from support.processes import until
from support.scans import files_below, upload
from support.shooting import Range

from storage.checkpoints import NAME
from storage.jobs import Job, JobState, Progress

PATIENTS, CHECKPOINT_STEPS = 8, 20
NETWORK: dict[str, Any] = {
    "regressor": "resnet3d",
    "settings": {
        "width": 8,
        "depth": 10,
        "training": {"epochs": 1, "batch": 4, "checkpoint_steps": CHECKPOINT_STEPS},
    },
    "folds": 2,
}
STEPS = 300
SMALLER: dict[str, Any] = {"eps": 0.7, "epochs": STEPS, "rate": 1e-4, "seed": 5}
"""An epoch has one batch: of six patients two judge."""
PHASES = ("planning", "training")
DEADLINE_S = 300.0
LEASE_S = 2.0
"""Progress is told with each beat of a lease, three in its length."""


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
def test_a_killed_compression_of_a_model_goes_on_and_comes_to_the_same_bytes(shooting_range: Range) -> None:
    truth, root, bell = shooting_range.truth, shooting_range.root, shooting_range.bell
    rows = cohort(shooting_range)
    trained = shooting_range.begun(lambda: truth.submit("train", {**NETWORK, "rows": rows}))
    parameters = {"model": bell.succeeded(trained, DEADLINE_S).id, "rows": rows[:6], **SMALLER}

    def begun() -> Job:
        return shooting_range.begun(lambda: truth.submit("compress-model", parameters))

    reference = bell.succeeded(begun(), DEADLINE_S)
    assert reference.result is not None
    for at in [("planning", 0), ("training", STEPS // 10), ("training", STEPS // 2)]:
        job = begun()
        until(lambda job=job, at=at: stands_at(truth.job(job.id)) >= place(*at), DEADLINE_S, 0.005)
        shooting_range.kill_worker_of(job)
        assert truth.job(job.id).state is JobState.RUNNING, "it was over before it was hit"
        kept = files_below(root / "checkpoints" / job.id, f"**/{NAME}")
        wanted = {"plan", "tuning"} if at[1] > CHECKPOINT_STEPS else {"plan"} if at[1] else set()
        assert wanted <= {path.split("/")[0] for path in kept}
        ended = bell.succeeded(job, DEADLINE_S)
        assert ended.result is not None
        assert ended.attempt > 1
        for same in ("model_digest", "metrics", "agreement", "judged_rows", "pcr"):
            assert ended.result[same] == reference.result[same]
        assert files_below(root / "artifacts" / ended.id) == [str(ended.attempt)]
        until(lambda job=job: not (root / "checkpoints" / job.id).exists())


def place(phase: str, step: int) -> tuple[int, int]:
    """Where a phase stands among them, and the step in it; steps of a plan count layers again and again."""
    return PHASES.index(phase), step if phase == "training" else 0


def stands_at(job: Job) -> tuple[int, int]:
    """The phase that a compression is in, and the step in it."""
    progress = job.progress or Progress("")
    for phase in PHASES:
        if progress.phase.startswith(phase):
            return place(phase, progress.done)
    return (-1, 0)
