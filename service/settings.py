"""The service's settings: `TOMOTRAIN_*` variables, read once in `service/app.py`."""

from __future__ import annotations

from pydantic import Field

from storage.settings import StorageSettings


class ServiceSettings(StorageSettings):
    """What the web process needs to know beside where things are kept."""

    max_upload_bytes: int = Field(16 << 30, gt=0, description="largest scan accepted, in bytes as sent")
    upload_keep_s: float = Field(
        86_400.0, gt=0, description="an upload in parts to which nothing is added for this long is given up"
    )
    upload_idle_s: float = Field(
        60.0, gt=0, description="a body of which nothing comes for this long is cut off"
    )
    stow_quiet_s: float = Field(
        10.0, gt=0, description="a series that comes by DICOMweb becomes a volume after so long a pause"
    )
    disk_kept_share: float = Field(
        0.05, ge=0, lt=1, description="share of the disk that uploads leave free (507 storage-low)"
    )
    disk_kept_bytes: int = Field(2 << 30, ge=0, description="they leave so many bytes free, if that is more")
    import_roots: tuple[str, ...] = Field(
        (), description="folders (or s3://bucket/prefix) that scans may be imported from by reference"
    )
    sweep_every_s: float = Field(2.0, gt=0, description="pause between two sweeps of the catalogue")
    ring_after_s: float = Field(
        30.0, ge=0, description="a queued job is rung again when its ring is this old"
    )
    jobs_kept_s: float = Field(
        90 * 86_400.0,
        gt=0,
        description="so long after its end a job is removed, with what it wrote; one that made a model stays",
    )
    worker_fresh_s: float = Field(60.0, gt=0, description="a worker not seen for this long counts as gone")
    allowed_hosts: tuple[str, ...] = Field(
        ("*",), description="names in the Host header that are answered; the embedded stack sets its own"
    )
    zarr_origins: tuple[str, ...] = Field((), description="other origins whose pages may read volumes (CORS)")
    authentication: bool = Field(
        True, description="false: whoever reaches the service may do everything in the project default"
    )
    oidc_issuer: str | None = Field(None, description="issuer of OpenID Connect tokens that are taken")
    oidc_audience: str | None = Field(None, description="audience that such a token must name")
    oidc_jwks_url: str | None = Field(None, description="where the issuer's keys are (JSON Web Key Set)")
    oidc_project_claim: str = Field("tomotrain_project", description="claim that names the project")
    session_s: float = Field(12 * 3600.0, gt=0, description="how long a browser stays signed in")
    webhook_hosts: tuple[str, ...] = Field(
        (), description="host names and networks where webhooks may be though these are not public"
    )
    requests_per_s: float = Field(200.0, gt=0, description="requests of one key, on the whole")
    requests_at_once: int = Field(2000, gt=0, description="requests of one key in a burst")
    audit_reads_s: float = Field(
        900.0, ge=0, description="further reads of one scan by the same key within this time are one record"
    )
    metrics_open: bool = Field(False, description="true: /metrics asks for no key")
