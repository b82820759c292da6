"""Workers and the kinds that they announce."""

from __future__ import annotations

from dataclasses import replace

import pytest
from catalogue_examples import KIND

from storage.catalogue import Catalogue
from storage.errors import UnknownKind


def test_announced_kinds_come_back_whole_in_their_newest_version(catalogue: Catalogue) -> None:
    newest = replace(KIND, version="1.10", title="Newest")
    catalogue.announce("old", [replace(KIND, version="1.9")], "cpu")
    catalogue.announce("new", [newest, replace(KIND, name="count")], "cuda:0")
    catalogue.announce("older", [KIND], "cpu")
    assert catalogue.kinds() == [replace(KIND, name="count"), newest]
    assert catalogue.kind("measure") == newest
    with pytest.raises(UnknownKind) as refusal:
        catalogue.kind("guess")
    assert refusal.value.known == ["count", "measure"]


def test_announcing_again_replaces(catalogue: Catalogue) -> None:
    catalogue.announce("worker", [KIND], "cpu")
    catalogue.announce("worker", [replace(KIND, title="Renamed")], "cuda:0")
    (worker,) = catalogue.workers()
    assert (worker.name, worker.device, worker.kinds) == ("worker", "cuda:0", ("measure",))
    assert catalogue.kind("measure").title == "Renamed"


def test_idle_are_the_living_that_run_no_job(catalogue: Catalogue) -> None:
    for name in ("busy", "free", "other"):
        catalogue.announce(name, [replace(KIND, name="count") if name == "other" else KIND], "cpu")
    assert catalogue.idle_workers("measure", 10) == ["busy", "free"]
    job = catalogue.submit("measure", {"size": 1})
    assert catalogue.claim(job.id, "busy", 30, kinds={"measure"}) is not None
    assert catalogue.idle_workers("measure", 10) == ["free"]
    assert catalogue.idle_workers("count", 10) == ["other"]
    assert catalogue.idle_workers("measure", -1) == []
    catalogue.finish(job.id, 1, {})
    assert catalogue.idle_workers("measure", 10) == ["busy", "free"]


def test_a_worker_is_seen(catalogue: Catalogue) -> None:
    catalogue.announce("worker", [KIND], "cpu")
    (before,) = catalogue.workers()
    catalogue.worker_seen("worker")
    (after,) = catalogue.workers()
    assert after.last_seen > before.last_seen
    catalogue.worker_seen("stranger")
    assert len(catalogue.workers()) == 1
