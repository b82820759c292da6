"""Names of things: a prefix and a UUIDv7, so that the order of ids is the order of time."""

from __future__ import annotations

import secrets
import threading
import time
import uuid

_lock = threading.Lock()
_last_tick = 0


def new_id(prefix: str) -> str:
    """A fresh id such as `job_0199...`, greater than every one that this process made before.

    UUIDv7 of RFC 9562: 48 bits of Unix milliseconds, 12 bits of a millisecond's fraction (section 6.2,
    method 3), 62 random bits.
    """
    tick = _next_tick()
    milliseconds, fraction = tick >> 12, tick & 0xFFF
    value = milliseconds << 80 | 0x7 << 76 | fraction << 64 | 0b10 << 62 | secrets.randbits(62)
    return f"{prefix}_{uuid.UUID(int=value)}"


def derived_id(job_id: str) -> str:
    """The id of the volume that a job derives from its own: known as soon as the job is."""
    return f"vol_{job_id.removeprefix('job_')}"


def _next_tick() -> int:
    """Time in 1/4096 ms, but at least one more than the last answer."""
    global _last_tick  # noqa: PLW0603 - the clock of a process is one
    with _lock:
        _last_tick = max(time.time_ns() * 4096 // 1_000_000, _last_tick + 1)
        return _last_tick
