"""Probes: bounded in time whatever hangs, and clear about what is missing."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections import namedtuple
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from house import House, open_house
from problem_checks import assert_problem
from sqlalchemy import text

from service.checks import SOUND, Checks, Finding
from service.queue import CeleryQueue
from storage.census import schema_step
from storage.database import Database
from storage.jobs import JobKind, Queue

TRAIN = JobKind("train", "1", "Train", "For tests", Queue.TRAIN, {"type": "object"}, {"type": "object"})
Usage = namedtuple("Usage", "total used free")


def test_parts_are_asked_at_the_same_time_and_one_that_hangs_does_not_hold_up_the_answer() -> None:
    awake, asked = threading.Event(), []

    def hangs() -> Finding:
        asked.append(1)
        awake.wait()
        return SOUND

    checks = Checks(
        {"hangs": hangs, "sound": lambda: SOUND, "raises": lambda: Finding(str(1 / 0))}, limit_s=0.5
    )
    try:
        began = time.monotonic()
        for _ in range(2):
            found = checks.findings()
            assert found["hangs"].fault == "did not answer within 0.5 s"
            assert str(found["sound"]) == "ok"
            assert found["raises"].fault == "does not answer (ZeroDivisionError)"
        assert time.monotonic() - began < 5.0
        assert asked == [1]
        awake.set()
        assert str(checks.findings()["hangs"]) == "ok"
    finally:
        awake.set()
        checks.close()


def test_a_broker_that_swallows_connections_is_told_within_the_limit(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket_that_never_answers() as port:
        broker = CeleryQueue(f"redis://127.0.0.1:{port}/0")
        monkeypatch.setattr(house.queue, "reachable", broker.reachable)
        began = time.monotonic()
        body = assert_problem(house.http.get("/readyz"), 503, "not-ready")
        assert time.monotonic() - began < 4.0
        assert [error["pointer"] for error in body["errors"]] == ["broker"]
        assert house.http.get("/livez").status_code == 200


def test_a_queue_without_a_worker_is_told_and_the_rest_goes_on(house: House) -> None:
    house.catalogue.announce("trainer", [TRAIN], "cpu")
    assert house.http.get("/readyz").json()["checks"]["worker"] == "ok"
    with house.catalogue.database.writing() as connection:
        connection.execute(text("UPDATE workers SET last_seen = 0 WHERE name = 'trainer'"))
    answer = house.http.get("/readyz")
    assert answer.status_code == 200
    assert answer.json()["status"] == "degraded"
    assert answer.json()["checks"]["worker"] == "none for the queue train; start one"


def test_little_room_on_the_disk_is_told(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10 << 40, 10 << 40, 1 << 30))
    answer = house.http.get("/readyz").json()
    assert answer["status"] == "degraded"
    assert answer["checks"]["disk"].startswith("1.1 of 10995.1 GB are free, and uploads")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10 << 40, 0, 10 << 40))
    assert house.http.get("/readyz").json()["checks"]["disk"] == "ok"


def test_a_schema_of_another_release_is_not_ready_and_one_that_has_started_stays_so(tmp_path: Path) -> None:
    with open_house(tmp_path) as house:
        set_step(house, "9999")
        assert_problem(house.http.get("/startupz"), 503, "not-ready")
        body = assert_problem(house.http.get("/readyz"), 503, "not-ready")
        assert "9999" in body["detail"]
        set_step(house, house_step(tmp_path))
        assert house.http.get("/startupz").json()["status"] == "ok"
        set_step(house, "9999")
        assert house.http.get("/startupz").status_code == 200
        assert house.http.get("/readyz").status_code == 503


def set_step(house: House, step: str) -> None:
    with house.catalogue.database.writing() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = :step"), {"step": step})


def house_step(root: Path) -> str:
    """What a new catalogue stands at."""
    database = Database.open(f"sqlite:///{root / 'new.db'}")
    try:
        return schema_step(database)
    finally:
        database.close()


@contextmanager
def socket_that_never_answers() -> Iterator[int]:
    """A port that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]
