"""What goes over the wire: JSON in snake_case, times in RFC 3339 (UTC), lengths in millimetres."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from service.errors import MEDIA_TYPE, plain, recorded_problem
from storage.jobs import LONGEST_LINE, JobKind, JobState
from storage.layout import plan_levels
from storage.records import StoredVolume, VolumeRecord, VolumeState

UNSTORABLE = re.compile(r"[\0\ud800-\udfff]")
"""What no text may hold that is kept."""
UNSTORABLE_WORDS = "must not contain the character NUL or half of a surrogate pair"


class Wire(BaseModel):
    """Base of everything that is sent; never holds NaN."""

    model_config = ConfigDict(frozen=True)


class FieldError(Wire):
    """One thing that is wrong: a JSON pointer into the body, or `#name` of a parameter."""

    pointer: str
    detail: str


class Problem(Wire):
    """RFC 9457. `code` is stable and for programs; `detail` names the cause and the cure."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str
    errors: list[FieldError] = []
    retryable: bool = False
    request_id: str | None = None


PROBLEMS: dict[int | str, dict[str, Any]] = {
    "default": {
        "description": "Any error, as RFC 9457 has it.",
        "content": {MEDIA_TYPE: {"schema": {"$ref": f"#/components/schemas/{Problem.__name__}"}}},
    }
}
"""What every route may answer beside its own; for OpenAPI."""


class StatisticsView(Wire):
    """Of every voxel of the full resolution."""

    minimum: float
    maximum: float
    mean: float
    std: float
    replaced: int = Field(description="voxels that were not finite, replaced by the smallest finite value")


class DerivationView(Wire):
    """What a volume was made of, where that is no upload."""

    volume_id: str
    digest: str = Field(description="of the volume that it was made of, as it was then")
    kind: str = Field(description="kind of the job that made it")
    settings: dict[str, Any] = {}


class VolumeView(Wire):
    """A scan as it is stored. What is null is not known (yet); lengths are never guessed."""

    id: str
    name: str
    state: VolumeState
    created_at: str
    source_bytes: int = Field(description="bytes of the upload; of a derived volume those of its voxels")
    source_sha256: str = Field(description="of the upload; a derived volume's own digest")
    ingest_job: str = Field(description="the job that made it")
    shape: list[int] | None = Field(None, description="voxels along (z, y, x)")
    spacing: list[float] | None = Field(None, description="millimetres between voxels along (z, y, x)")
    affine: list[list[float]] | None = Field(
        None, description="4x4, from voxel (i, j, k) = (x, y, z) to RAS+ millimetres"
    )
    orientation: str | None = Field(None, description="where x, y and z grow to: R/L, A/P, S/I")
    axes: list[str] | None = None
    array_shape: list[int] | None = None
    frame_step_s: float | None = None
    dtype: str | None = None
    levels: int | None = Field(None, description="levels of the pyramid; level 0 is the full resolution")
    level_shapes: list[list[int]] | None = Field(None, description="voxels (z, y, x) of each level")
    digest: str | None = Field(None, description="root digest of the chunk manifest")
    statistics: StatisticsView | None = None
    stored_bytes: int | None = None
    source_format: str | None = None
    warnings: list[str] = []
    metadata: dict[str, Any] = {}
    derived: DerivationView | None = None
    error: Problem | None = None
    links: dict[str, str]


class ProgressView(Wire):
    """`done` of `total` units in a named phase; `total` is null while unknown."""

    phase: str
    done: int
    total: int | None
    unit: str


class ArtifactView(Wire):
    """A file that a job wrote."""

    name: str
    size: int
    sha256: str
    media_type: str
    href: str


class QueuePosition(Wire):
    """Where a job stands that has not begun. Numbers of a moment ago; the estimate is rough."""

    ahead: int = Field(
        description=f"jobs before it in its queue, {LONGEST_LINE} standing for as many or more"
    )
    position: int = Field(description="1: the next")
    eta_seconds: float | None = Field(
        description="until a worker begins it, by what such jobs took of late; null where none is known"
    )


class WorkerView(Wire):
    """Who runs a job, or ran it last, and on what."""

    id: str
    device: str | None = Field(None, description="a torch device's name")


class JobView(Wire):
    """A job as it stands."""

    id: str
    kind: str
    state: JobState
    attempt: int
    max_attempts: int
    parameters: dict[str, Any]
    left_out: list[str] = Field(
        [], description="parameters that are not here for their length; /v1/jobs/{id} has them"
    )
    volume_id: str | None
    queue: str
    queue_position: QueuePosition | None = Field(None, description="while it is `queued` or `waiting`")
    created_at: str
    started_at: str | None
    ended_at: str | None
    expires_at: str | None = Field(
        None,
        description="when it and what it wrote are removed; null while open, and for one that made a model",
    )
    progress: ProgressView | None
    result: dict[str, Any] | None
    error: Problem | None
    artifacts: list[ArtifactView]
    worker: WorkerView | None
    depends_on: str | None
    retry_of: str | None = None
    retried_by: str | None = Field(None, description="the last job that repeats it")
    kind_version: str | None = Field(None, description="of the kind, when it was submitted")
    traceparent: str | None = Field(None, description="of the request that submitted it (W3C Trace Context)")
    labels: dict[str, str]
    links: dict[str, str]


class Accepted(Wire):
    """An upload that has arrived, and the job that reads it."""

    volume: VolumeView
    job: JobView


class KindView(Wire):
    """What a worker can do. `parameters_schema` and `result_schema` are JSON Schema 2020-12."""

    name: str
    version: str
    title: str
    description: str
    queue: str
    needs_volume: bool
    parameters_schema: dict[str, Any]
    result_schema: dict[str, Any]


class VolumePage(Wire):
    """Newest first. `next_page_token` is null on the last page (AIP-158)."""

    volumes: list[VolumeView]
    next_page_token: str | None = None


class JobPage(Wire):
    """Newest first. `next_page_token` is null on the last page (AIP-158)."""

    jobs: list[JobView]
    next_page_token: str | None = None


class JobList(Wire):
    """The jobs of a batch, in its order; parameters that are long lists are left out."""

    jobs: list[JobView]


class KindList(Wire):
    """Every kind of job that a worker has announced and that may be submitted."""

    kinds: list[KindView]


class Health(Wire):
    """Whether the parts answer; `checks` gives the reason for each that does not."""

    status: str
    checks: dict[str, str] = {}


def _storable(text: str) -> str:
    if UNSTORABLE.search(text):
        raise ValueError(UNSTORABLE_WORDS)
    return text


_NO_NUL = {"pattern": r"^[^\u0000]*$"}
Storable = Annotated[str, AfterValidator(_storable), Field(json_schema_extra=_NO_NUL)]
Label = Annotated[Storable, Field(max_length=200)]


def timestamp(seconds: float | None) -> str | None:
    """Seconds since 1970 as RFC 3339 in UTC, to the millisecond."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def volume_view(record: VolumeRecord) -> VolumeView:
    """A volume's row as it goes over the wire."""
    address = f"/v1/volumes/{record.id}"
    error = recorded_problem(record.error, instance=address) if record.error else None
    return VolumeView(
        id=record.id,
        name=record.name,
        state=record.state,
        created_at=timestamp(record.created_at) or "",
        source_bytes=record.source_bytes,
        source_sha256=record.source_sha256,
        ingest_job=record.ingest_job,
        error=Problem.model_validate(error) if error else None,
        links=_volume_links(address, record),
        **(_stored_facts(record.stored) if record.stored else {}),
    )


def _volume_links(address: str, record: VolumeRecord) -> dict[str, str]:
    links = {"self": address, "ingest_job": f"/v1/jobs/{record.ingest_job}"}
    if record.state is VolumeState.READY:
        links |= {"slices": f"{address}/slices/{{axis}}/{{index}}", "zarr": f"{address}/zarr/"}
    return links


def _stored_facts(stored: StoredVolume) -> dict[str, Any]:
    document = plain(stored.to_json())
    grid = document.pop("grid")
    shapes = [list(level.shape) for level in plan_levels(stored.grid)]
    return {**document, **grid, "orientation": stored.grid.orientation, "level_shapes": shapes}


def kind_view(kind: JobKind) -> KindView:
    """A kind of job as it goes over the wire."""
    facts = {name: value for name, value in vars(kind).items() if name != "internal"}
    return KindView(**facts)
