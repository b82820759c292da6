"""Whether a service is of use: its catalogue, the broker, workers for each queue, and room on the disk.

Where a queue has no worker, or the disk is almost full, the service still answers: that is a warning.
"""

from __future__ import annotations

import shutil
from functools import partial

from service.checks import SOUND, Checks, Finding
from service.deps import Services
from service.settings import ServiceSettings
from storage.census import alive, schema_step
from storage.migrations import HEAD


def checks_of(parts: Services) -> Checks:
    """The checks of a service."""
    of = {"catalogue": _catalogue, "broker": _broker, "worker": _worker, "disk": _disk}
    return Checks({name: partial(check, parts) for name, check in of.items()})


def _catalogue(parts: Services) -> Finding:
    parts.catalogue.ping()
    step = schema_step(parts.catalogue.database)
    if step == HEAD:
        return SOUND
    return Finding(f"its schema stands at step {step}, this release needs {HEAD}; restart the newest release")


def _broker(parts: Services) -> Finding:
    if parts.queue.reachable():
        return SOUND
    return Finding("does not answer; jobs are kept, and rung when it is back")


def _worker(parts: Services) -> Finding:
    fresh_s = parts.settings.worker_fresh_s
    found = alive(parts.catalogue.database, fresh_s=fresh_s)
    if not found:
        return Finding("none has announced itself; start one")
    if not any(found.values()):
        return Finding(f"none was seen for {fresh_s:.0f} s; start one, or see its log")
    idle = [queue for queue, count in found.items() if not count]
    return Finding(warning=f"none for the queue {', '.join(idle)}; start one") if idle else SOUND


def _disk(parts: Services) -> Finding:
    usage = shutil.disk_usage(parts.settings.data_root)
    if usage.free >= kept_free(parts.settings, usage.total):
        return SOUND
    free, total = usage.free / 1e9, usage.total / 1e9
    found = f"{free:.1f} of {total:.1f} GB are free, and uploads are refused"
    return Finding(warning=f"{found}: remove volumes, or run `tomotrain gc`")


def kept_free(settings: ServiceSettings, disk_bytes: int) -> float:
    """How many bytes of a disk uploads leave free (storage/watermark.py)."""
    return max(settings.disk_kept_share * disk_bytes, settings.disk_kept_bytes)
