"""The embedded stack as it runs: real broker, worker and API under a supervisor that gets killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from house import wait_until

from service.client import Client
from service.settings import ServiceSettings
from service.stack import Stack, StackError, visible_gpus, worker_commands

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
COMMAND = [sys.executable, "-c", "from service.cli import main; main()"]


@pytest.fixture
def root() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="stack-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def processes_of(root: Path) -> list[psutil.Process]:
    """Everything that a stack started: all of it runs in the folder `run` of its data root."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.cwd() == str(root.resolve() / "run"):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def one(root: Path, word: str) -> psutil.Process:
    """The process itself, not its leash: the oldest whose command begins with the word's program."""
    candidates = [
        process
        for process in processes_of(root)
        if word in " ".join(process.cmdline()) and not any("leash.py" in part for part in process.cmdline())
    ]
    return min(candidates, key=psutil.Process.create_time)


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", trust_env=False, timeout=2).is_success
    except httpx.HTTPError:
        return False


def up(root: Path, *options: str) -> tuple[subprocess.Popen[str], str]:
    """`tomotrain up` on a free port: the process and the address that it printed."""
    command = [*COMMAND, "up", "--port", "0", "--data-root", str(root), *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    assert process.stderr is not None
    line = process.stderr.readline()
    assert line.startswith("Ready: "), line + process.stderr.read()
    assert process.stderr.readline().startswith(f"Sign in: {line.split()[1]}/#key=tt_")
    return process, line.split()[1]


def test_what_dies_is_started_again_and_at_the_end_nothing_is_left(root: Path, nifti: bytes) -> None:
    scan = root / "scan.nii"
    scan.write_bytes(nifti)
    with Stack(root, port=0, environment=ENVIRONMENT) as stack, Client(stack.url, key=stack.key) as client:
        client.wait(client.upload(scan).job.id)
        for word in ("valkey-server", "celery", "uvicorn"):
            before = one(root, word)
            before.kill()
            wait_until(lambda: before not in processes_of(root))  # noqa: B023 - used at once
            wait_until(lambda: answers(stack.url), 60)
            client.wait(client.upload(scan).job.id)
            assert one(root, word) != before
    assert processes_of(root) == []
    assert not answers(stack.url)


@pytest.mark.slow
def test_a_long_data_root_works_and_leaves_no_socket(root: Path) -> None:
    deep = root / ("x" * 120)
    socket_folder = ServiceSettings(data_root=deep).broker_socket.parent
    with Stack(deep, port=0, environment=ENVIRONMENT) as stack:
        assert answers(stack.url)
        assert socket_folder.is_dir()
    assert not socket_folder.exists()


@pytest.mark.slow
def test_a_second_stack_says_why_it_stops(root: Path) -> None:
    with Stack(root, port=0, environment=ENVIRONMENT) as stack:
        with pytest.raises(StackError, match=f"process {os.getpid()}.*choose another --data-root"):
            Stack(root, port=0, environment=ENVIRONMENT).__enter__()
        assert answers(stack.url)


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGKILL,
        signal.SIGINT,
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
def test_nothing_outlives_its_supervisor(root: Path, number: signal.Signals) -> None:
    supervisor, url = up(root)
    assert len(processes_of(root)) >= 6
    assert answers(url)
    supervisor.send_signal(number)
    supervisor.wait(20)
    if number is signal.SIGKILL:
        wait_until(lambda: processes_of(root) == [], 15)
    assert processes_of(root) == []
    assert supervisor.returncode == (-9 if number is signal.SIGKILL else 128 + number)
    assert supervisor.stderr is not None
    assert supervisor.stderr.read() == ""
    supervisor.stderr.close()


def test_a_port_that_is_taken_is_named(root: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StackError, match=f"{port}.*choose another --port"):
            Stack(root, port=port, environment=ENVIRONMENT).__enter__()
    assert processes_of(root) == []


@pytest.mark.slow
def test_a_part_that_cannot_start_ends_the_stack_with_its_reason(root: Path) -> None:
    broken = {**ENVIRONMENT, "TOMOTRAIN_LEASE_S": "soon"}
    began = time.monotonic()
    with pytest.raises(StackError, match="worker-cpu does not start") as refusal:
        Stack(root, port=0, environment=broken).__enter__()
    assert "lease_s" in str(refusal.value)
    assert time.monotonic() - began < 60
    assert processes_of(root) == []


def test_a_catalogue_that_cannot_be_opened_is_named_without_its_password(root: Path) -> None:
    broken = {**ENVIRONMENT, "TOMOTRAIN_DB_URL": "postgresql+psycopg://me:secret@127.0.0.1:1/none"}
    with pytest.raises(StackError, match="check TOMOTRAIN_DB_URL") as refusal:
        Stack(root, port=0, environment=broken).__enter__()
    assert "secret" not in str(refusal.value)
    assert processes_of(root) == []


@pytest.mark.parametrize(
    ("chosen", "gpus"), [("", []), ("-1", []), ("0", ["0"]), ("2, 5", ["2", "5"]), ("GPU-a", ["GPU-a"])]
)
def test_gpus_are_those_that_may_be_seen(chosen: str, gpus: list[str]) -> None:
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": chosen}) == gpus


@pytest.mark.parametrize(("chosen", "places"), [("", ["cpu", "quick"]), ("0,1", ["gpu0", "gpu1", "quick"])])
def test_what_people_wait_for_has_a_worker_of_its_own(chosen: str, places: list[str]) -> None:
    commands = worker_commands({"CUDA_VISIBLE_DEVICES": chosen})
    assert [command.name for command in commands] == [f"worker-{place}" for place in places]
    queues = [command.arguments[command.arguments.index("--queues") + 1] for command in commands]
    assert queues == [*(["interactive,batch,train"] * (len(places) - 1)), "interactive"]
    assert commands[-1].environment["CUDA_VISIBLE_DEVICES"] == ""


def test_gpus_are_counted_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU 0: A (UUID: x)'\necho 'GPU 1: B (UUID: y)'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert visible_gpus({}) == ["0", "1"]
