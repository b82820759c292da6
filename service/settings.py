"""The service's settings: `TOMOTRAIN_*` variables, read once in `service/app.py`."""

from __future__ import annotations

from pydantic import Field

from storage.settings import StorageSettings


class ServiceSettings(StorageSettings):
    """What the web process needs to know beside where things are kept."""

    max_upload_bytes: int = Field(16 << 30, gt=0, description="largest scan accepted, in bytes as sent")
    sweep_every_s: float = Field(2.0, gt=0, description="pause between two sweeps of the catalogue")
    ring_after_s: float = Field(
        30.0, ge=0, description="a queued job is rung again when its ring is this old"
    )
    worker_fresh_s: float = Field(60.0, gt=0, description="a worker not seen for this long counts as gone")
    allowed_hosts: tuple[str, ...] = Field(
        ("*",), description="names in the Host header that are answered; the embedded stack sets its own"
    )
    zarr_origins: tuple[str, ...] = Field((), description="other origins whose pages may read volumes (CORS)")
