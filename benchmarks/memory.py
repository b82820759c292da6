"""Peak memory of this process, as the kernel counts it."""

from __future__ import annotations

from pathlib import Path


def peak_rss_mib() -> float:
    """The high-water mark of resident memory since this program started, in MiB.

    Not `getrusage().ru_maxrss`, which a child inherits from the process that started it.
    """
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024
