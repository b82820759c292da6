"""When a Celery parent is taken for deaf: a real broker, and a parent's answers by Celery's own protocol."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from support.processes import Broker, until

from workers import hearing
from workers.hearing import Hearing

ROOT = Path(__file__).resolve().parents[2]
NAME = "w1@test"
EVERY_S, DEAF_S = 0.15, 0.5


class Child:
    """A pool process as `Hearing` sees it."""

    def __init__(self, broker: Broker, monkeypatch: pytest.MonkeyPatch, *, name: str = NAME) -> None:
        self.idle_s, self.told, self.ended = 60.0, list[bool](), list[int]()
        self.app = Celery("child", broker=broker.url, set_as_current=False)
        self.hearing = Hearing(
            self.app, name, lambda: self.idle_s, self.told.append, every_s=EVERY_S, deaf_s=DEAF_S
        )
        monkeypatch.setattr(hearing, "end_parent", self.ended.append)

    @contextmanager
    def listening(self) -> Iterator[Child]:
        self.hearing.start()
        try:
            yield self
        finally:
            self.hearing.stop()
            self.hearing._thread.join()
            self.app.close()


@contextmanager
def parent(broker: Broker, queues: list[str]) -> Iterator[None]:
    """Answers as a Celery worker that consumes from these queues; takes no message."""
    with (
        Celery("parent", broker=broker.url, set_as_current=False) as app,
        app.connection_for_read() as connection,
    ):
        answers = {"active_queues": lambda state: [{"name": queue} for queue in queues]}
        node = app.control.mailbox(connection).Node(NAME, state=object(), handlers=answers)
        node.channel = connection.default_channel
        consumer, stop = node.listen(), threading.Event()

        def serve() -> None:
            while not stop.is_set():
                try:
                    connection.drain_events(timeout=0.05)
                except TimeoutError:
                    continue

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            consumer.cancel()


def test_one_that_answers_and_consumes_is_left_alone(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    with parent(broker, ["batch"]), Child(broker, monkeypatch).listening() as child:
        time.sleep(2 * DEAF_S)
    assert set(child.told) == {True}
    assert child.ended == []


@pytest.mark.parametrize("queues", [pytest.param(None, marks=pytest.mark.slow), []])
def test_one_that_is_silent_or_consumes_nothing_ends_but_not_under_a_job(
    queues: list[str] | None, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = Child(broker, monkeypatch, name="nobody@test" if queues is None else NAME)
    child.idle_s = 0.0
    began = time.monotonic()
    with parent(broker, queues or []), child.listening():
        until(lambda: False in child.told)
        assert time.monotonic() - began > DEAF_S
        time.sleep(3 * EVERY_S)
        assert child.ended == []
        child.idle_s = 1.0
        until(lambda: child.ended)
    assert child.ended[0] == os.getppid()


def test_one_that_leaves_messages_waiting_while_there_is_nothing_to_do_is_deaf(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = Child(broker, monkeypatch)
    with parent(broker, ["batch"]):
        assert child.hearing._fault() is None
        child.app.send_task("anything", queue="batch", retry=False)
        assert child.hearing._fault() == hearing.TAKES_NONE
        child.idle_s = EVERY_S / 2  # it has done something since the last time: it is only busy
        assert child.hearing._fault() is None
    with parent(broker, ["train"]):
        child.idle_s = 60.0
        assert child.hearing._fault() is None
    child.app.close()


@pytest.mark.slow
def test_a_broker_that_is_away_says_nothing_of_the_parent(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Child(broker, monkeypatch).listening() as child:
        until(lambda: child.told)
        broker.kill()
        time.sleep(EVERY_S)
        child.told.clear()
        time.sleep(2 * DEAF_S)
        assert set(child.told) == {True}
        broker.start()
        until(lambda: child.ended)


def test_a_process_that_was_suspended_begins_anew(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr("workers.hearing.time.monotonic", lambda: clock[0])
    child = Child(broker, monkeypatch)
    clock[0] += EVERY_S
    assert not child.hearing._is_deaf("does not answer")
    clock[0] += 3600
    assert not child.hearing._is_deaf("does not answer")
    for _ in range(int(DEAF_S / EVERY_S) + 1):
        clock[0] += EVERY_S
        assert not child.hearing._is_deaf("does not answer")
    clock[0] += EVERY_S
    assert child.hearing._is_deaf("does not answer")


FAMILY = """
import os, signal, sys, time
from workers import hearing
hearing.END_S = 0.5
parent = os.getpid()
if sys.argv[1] == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
told, tell = os.pipe()
child = os.fork()
if child == 0:
    os.read(told, 1)
    hearing.end_parent(parent)
print(child, flush=True)
os.write(tell, b".")
time.sleep(60)
"""


@pytest.mark.parametrize(("manners", "status"), [("polite", -15), ("stubborn", -9)])
def test_a_parent_is_asked_before_it_is_killed_and_its_child_goes_with_it(manners: str, status: int) -> None:
    family: Any = subprocess.Popen(
        [sys.executable, "-c", FAMILY, manners], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    with family:
        assert family.wait(20) == status
        child = int(family.stdout.readline())
    until(lambda: not Path(f"/proc/{child}").exists() or _is_zombie(child))


def _is_zombie(process: int) -> bool:
    return Path(f"/proc/{process}/stat").read_text().split()[2] == "Z"
