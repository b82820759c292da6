"""The doorbell against a real broker, and against none."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from house import wait_until

from service.queue import CeleryQueue
from service.settings import ServiceSettings
from service.stack import broker_arguments
from storage.jobs import RUN_JOB, Job, JobState, Queue

JOB = Job("job_1", "embed", JobState.QUEUED, 0, 3, {}, None, Queue.TRAIN, 0.0)


@pytest.fixture(params=["a %41 #?@ b", "x" * 120])
def settings(request: pytest.FixtureRequest) -> Iterator[ServiceSettings]:
    with tempfile.TemporaryDirectory() as folder:
        settings = ServiceSettings(data_root=Path(folder) / request.param, broker_url=None)
        yield settings
        shutil.rmtree(settings.broker_socket.parent, ignore_errors=True)


@pytest.fixture
def broker(settings: ServiceSettings) -> Iterator[redis.Redis]:
    arguments = broker_arguments(settings)
    server = subprocess.Popen(arguments, stdout=subprocess.DEVNULL)
    client = redis.Redis(unix_socket_path=str(settings.broker_socket))
    try:
        wait_until(settings.broker_socket.exists)
        yield client
    finally:
        client.close()
        server.kill()
        server.wait()


def test_a_ring_is_one_message_with_the_id_alone(settings: ServiceSettings, broker: redis.Redis) -> None:
    queue = CeleryQueue(settings.broker)
    assert queue.reachable()
    assert queue.ring(JOB)
    (message,) = broker.lrange("train", 0, -1)
    assert f'"task":"{RUN_JOB}"'.encode() in message.replace(b": ", b":")
    assert b'"argsrepr":"[\'job_1\']"' in message.replace(b": ", b":")


def test_a_broker_that_is_down_is_an_answer_not_an_error(settings: ServiceSettings) -> None:
    queue = CeleryQueue(settings.broker)
    began = time.monotonic()
    assert not queue.ring(JOB)
    assert not queue.reachable()
    assert time.monotonic() - began < 1.0


def test_it_rings_again_when_the_broker_is_back(settings: ServiceSettings, broker: redis.Redis) -> None:
    queue = CeleryQueue(settings.broker)
    assert queue.ring(JOB)
    os.kill(broker.info()["process_id"], signal.SIGKILL)
    assert not queue.ring(JOB)
    again = subprocess.Popen(broker_arguments(settings), stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: queue.ring(JOB))
    finally:
        again.kill()
        again.wait()


def test_a_long_data_root_gets_a_short_socket(tmp_path: Path) -> None:
    deep = ServiceSettings(data_root=tmp_path / ("x" * 120))
    assert len(str(deep.broker_socket)) < 100
    assert deep.broker_socket == ServiceSettings(data_root=tmp_path / ("x" * 120)).broker_socket
    assert deep.broker_socket != ServiceSettings(data_root=tmp_path / ("y" * 120)).broker_socket
