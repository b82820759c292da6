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


def test_a_worker_is_seen(catalogue: Catalogue) -> None:
    catalogue.announce("worker", [KIND], "cpu")
    (before,) = catalogue.workers()
    catalogue.worker_seen("worker")
    (after,) = catalogue.workers()
    assert after.last_seen > before.last_seen
    catalogue.worker_seen("stranger")
    assert len(catalogue.workers()) == 1
