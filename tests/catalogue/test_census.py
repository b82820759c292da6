"""What operators watch is counted alike on both databases."""

from __future__ import annotations

from dataclasses import replace

from catalogue_examples import ERROR, KIND, announce, ready_volume, upload

from storage.catalogue import Catalogue
from storage.census import Recent, alive, schema_step, take
from storage.jobs import Queue
from storage.migrations import HEAD


def test_every_count(catalogue: Catalogue) -> None:
    announce(catalogue)
    ready_volume(catalogue)
    upload(catalogue)
    jobs = [catalogue.submit("measure", {}) for _ in range(5)]
    for job in jobs[:3]:
        catalogue.claim(job.id, "worker-1", -1 if job is jobs[0] else 60)
    catalogue.finish(jobs[1].id, 1, {})
    catalogue.fail(jobs[2].id, 1, ERROR)
    census = take(catalogue.database, fresh_s=60)
    assert census.open == {
        ("ingest", "interactive", "queued"): 1,
        ("measure", "batch", "running"): 1,
        ("measure", "batch", "queued"): 2,
    }
    assert census.ended == {
        ("interactive", "succeeded"): 1,
        ("batch", "succeeded"): 1,
        ("batch", "failed"): 1,
    }
    assert census.expired_leases == 1
    assert set(census.recent) == {
        Recent("ingest", "queued", "", 1, 0),
        Recent("ingest", "succeeded", "", 1, 1),
        Recent("measure", "queued", "", 2, 0),
        Recent("measure", "running", "", 1, 1),
        Recent("measure", "succeeded", "", 1, 1),
        Recent("measure", "failed", "invalid-scan", 1, 1),
    }
    assert census.volumes == {"ready": (1, 1234), "validating": (1, 1234)}
    assert census.workers == {"batch": 1}
    assert 0 < census.oldest_queued_s["interactive"] < 60
    assert census.oldest_queued_s["train"] == 0


def test_queues_without_a_living_worker_are_told(catalogue: Catalogue) -> None:
    announce(catalogue)
    catalogue.announce("trainer", [replace(KIND, name="fit", queue=Queue.TRAIN)], "cpu")
    assert alive(catalogue.database, fresh_s=60) == {"batch": 1, "train": 1}
    assert alive(catalogue.database, fresh_s=-60) == {"batch": 0, "train": 0}
    assert schema_step(catalogue.database) == HEAD
