"""How much memory there is, and how much a job took."""

from __future__ import annotations

import contextlib
import resource
import sys
from pathlib import Path

import psutil

BASE_BYTES = 320 << 20
"""A process that has torch and the readers loaded: 306 MiB were measured (Linux, torch for CPUs)."""
_CGROUP_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


def default_budget(share: float) -> int:
    """A share of the memory that is free now; in a container, at most that of what it may use."""
    free = psutil.virtual_memory().available
    return int(share * min([free, *_container_limits()]))


def reset_peak() -> None:
    """Begin to measure anew, where the system can (Linux); elsewhere the peak is that of the process."""
    with contextlib.suppress(OSError):
        _CLEAR_REFS.write_text("5")


def peak_bytes() -> int:
    """The most memory that this process held at once (resident) since `reset_peak`."""
    if _STATUS.is_file():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _container_limits() -> list[int]:
    texts = [path.read_text().strip() for path in _CGROUP_LIMITS if path.is_file()]
    return [int(text) for text in texts if text.isdigit()]
