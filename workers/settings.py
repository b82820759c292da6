"""The worker's settings: `TOMOTRAIN_*` variables, read once in `workers/app.py`."""

from __future__ import annotations

from pydantic import Field

from storage.settings import StorageSettings


class WorkerSettings(StorageSettings):
    """What a worker needs to know beside where things are kept."""

    device: str = Field("auto", description="torch device; auto: cuda where there is one, else cpu")
    memory_budget_bytes: int | None = Field(
        None, gt=0, description="most memory that one job may need; unset: `memory_share` of what is free"
    )
    memory_share: float = Field(
        0.5, gt=0, le=1, description="of the memory that is free at the worker's start, what one job may need"
    )
    lease_s: float = Field(
        30.0, gt=0, description="a job whose worker is silent for this long is given to another"
    )
    cancel_grace_s: float = Field(
        10.0, ge=0, description="a job that is to stop, and does not by then, ends with its process"
    )
    silence_s: float = Field(
        60.0,
        gt=0,
        description="a process in which no thread gets a turn for so long beyond a lease ends; raise it to "
        "halt jobs in a debugger",
    )
    retry_pause_s: float = Field(
        5.0, ge=0, description="pause before a second attempt; four times as long before the third"
    )
    cache_bytes: int = Field(256 << 20, ge=0, description="decoded chunks that a job keeps in memory")
    dask_scheduler: str = Field("threads", description="threads, or the address of a Dask scheduler")
    scan_decoded_bytes: int = Field(64 << 30, gt=0, description="largest scan, decoded")
    scan_plane_bytes: int = Field(512 << 20, gt=0, description="largest plane or foreign chunk, decoded")
    scan_members: int = Field(200_000, gt=0, description="most entries in an archive")
    scan_member_bytes: int = Field(2 << 30, gt=0, description="largest entry of an archive, unpacked")
    visibility_timeout_s: int = Field(
        6 * 3600, gt=0, description="the broker delivers a message again when it is not acknowledged by then"
    )
    presence_s: float = Field(10.0, gt=0, description="pause between two signs of life of an idle worker")
    hearing_s: float = Field(
        30.0, gt=0, description="pause between two questions whether Celery hears the broker"
    )
    deaf_s: float = Field(
        60.0, gt=0, description="a worker that is deaf for so long, with the broker in reach, ends"
    )
