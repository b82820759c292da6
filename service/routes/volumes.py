"""Volumes: the scans that were sent, their slices, and their OME-Zarr for viewers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

from fastapi import APIRouter, BackgroundTasks, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from service.accepting import accept, accepted
from service.conditional import (
    PageSize,
    PageToken,
    decode_token,
    file_answer,
    json_answer,
    next_link,
    not_modified,
    page,
    strong_etag,
    unchanged,
)
from service.deps import FoundVolume, Known, Parts, ReadyVolume, needs
from service.described import CONDITIONAL, PARTIAL, UNCHANGED, a_file, header, reads
from service.errors import ApiError
from service.idempotency import REPLAYED, KeyHeader, request_key
from service.intake import announced_sha256, announced_size, check_announced_size, receive, scan_name
from service.schemas import PROBLEMS, Accepted, VolumePage, VolumeView, volume_view
from service.slices import Window, png
from storage.access import Scope
from storage.ids import new_id
from storage.tidy import upload_path
from storage.uploads import Upload
from storage.volume import Volume

router = APIRouter(
    prefix="/v1/volumes", tags=["volumes"], responses=PROBLEMS, dependencies=[needs(Scope.VOLUMES_READ)]
)

Axis = Literal["z", "y", "x"]
_SCAN_BODY = {
    "requestBody": {
        "required": True,
        "description": "The scan itself: NIfTI-1/2 (.nii, .nii.gz), DICOM (one file, or a zip of a series), "
        "NRRD, or a zip of an OME-Zarr.",
        "content": {
            "application/octet-stream": {"schema": {"type": "string", "format": "binary", "minLength": 1}}
        },
    },
    **reads(
        header("Content-Digest", "`sha-256=:...:`, of the body (RFC 9530)"),
        header("Content-Disposition", "`filename=...`: a name that tells nothing of a person is kept"),
    ),
}
_MOST_PIXELS = 1 << 26
"""Largest plane drawn: 8192 x 8192."""
_KEPT = {"Cache-Control": "private, max-age=3600"}


@router.post(
    "",
    status_code=202,
    response_model=Accepted,
    openapi_extra=_SCAN_BODY,
    dependencies=[needs(Scope.VOLUMES_WRITE)],
)
async def send_scan(
    request: Request,
    background: BackgroundTasks,
    parts: Parts,
    who: Known,
    name: Annotated[str | None, Query(description="what to call the scan", max_length=400)] = None,
    idempotency_key: KeyHeader = None,
) -> Response:
    """Send a scan as the request's body. Its content is looked at; an `ingest` job reads it.

    `Content-Digest: sha-256=:...:` (RFC 9530) has the bytes checked on arrival.
    """
    request_key(request)  # before the body comes
    limit = parts.settings.max_upload_bytes
    check_announced_size(request.headers, limit)
    announced_sha256(request.headers)
    called = scan_name(name, request.headers)
    volume_id = new_id("vol")
    await run_in_threadpool(parts.uploads.require_room, who.project_id, announced_size(request.headers))
    folder = upload_path(parts.settings.data_root, volume_id).parent
    upload = Upload(folder, volume_id, limit, parts.uploads.watermark.require)
    received = await receive(request, upload, parts.settings.upload_idle_s)
    key = request_key(request, f"{received.sha256} {called}")
    volume, job = await run_in_threadpool(accept, parts.catalogue, received, called, who, key)
    answer = accepted(volume, job, background)
    if volume.id == volume_id:
        background.add_task(parts.ring, job)
    else:
        answer.headers[REPLAYED] = "true"
    return answer


@router.get("", response_model=VolumePage, responses=UNCHANGED, openapi_extra=CONDITIONAL)
def list_volumes(
    request: Request,
    parts: Parts,
    who: Known,
    sha256: Annotated[
        str | None, Query(pattern="^[0-9a-f]{64}$", description="only those that were sent as these bytes")
    ] = None,
    page_size: PageSize = 50,
    page_token: PageToken = None,
) -> Response:
    """The volumes, newest first."""
    rows = parts.catalogue.volumes(
        project_id=who.project_id, sha256=sha256, limit=page_size + 1, before=decode_token(page_token)
    )
    shown, token = page(rows, page_size)
    document = VolumePage(volumes=[volume_view(row) for row in shown], next_page_token=token)
    return json_answer(request, document, headers=next_link(request, token))


@router.get("/{volume_id}", response_model=VolumeView, responses=UNCHANGED, openapi_extra=CONDITIONAL)
def get_volume(request: Request, record: FoundVolume) -> Response:
    """One volume."""
    return json_answer(request, volume_view(record), etag=strong_etag(record.id, record.revision))


@router.delete("/{volume_id}", status_code=204, dependencies=[needs(Scope.VOLUMES_WRITE)])
def delete_volume(
    record: FoundVolume,
    parts: Parts,
    who: Known,
    force: Annotated[bool, Query(description="cancel the jobs that use it")] = False,
) -> Response:
    """Delete a volume; its bytes go when no job uses it any more, volumes derived from it stay."""
    if force:
        who.require(Scope.JOBS_WRITE)
    parts.catalogue.delete_volume(record.id, project_id=who.project_id, force=force)
    return Response(status_code=204)


class Look(BaseModel):
    """How a slice is to be shown."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    level: int = Field(0, ge=0, le=32, description="level of the pyramid; 0 is the finest")
    frame: int = Field(0, ge=0, description="time point or channel of a 4-D scan")
    window_min: float | None = Field(None, description="value shown black")
    window_max: float | None = Field(None, description="value shown white")
    size: int | None = Field(None, ge=16, le=2048, description="longer side in pixels, in true proportions")

    def window(self, default: Window) -> Window:
        """The window asked for; where it does not say, the default."""
        low = default.low if self.window_min is None else self.window_min
        high = default.high if self.window_max is None else self.window_max
        return Window(low, high)


@router.get(
    "/{volume_id}/slices/{axis}/{index}",
    response_class=Response,
    responses={200: {"content": {"image/png": {}}, "description": "8-bit grey"}, **UNCHANGED},
    openapi_extra=CONDITIONAL,
)
def get_slice(
    request: Request,
    record: ReadyVolume,
    parts: Parts,
    axis: Axis,
    index: int,
    look: Annotated[Look, Query()],
) -> Response:
    """A plane as PNG: rows and columns are the remaining axes in the order (z, y, x), as stored.

    Without `size`, one pixel per voxel. `X-Pixel-Spacing` gives mm per voxel of the plane, rows then
    columns. Without a window it is the 1st to the 99th percentile of the scan's middle planes.
    """
    assert record.stored is not None
    etag = strong_etag(record.stored.digest, axis, index, look.model_dump_json())
    opened = parts.shelf.take(record)
    _check_plane(opened.volume, axis, index, look)
    if unchanged(request, etag):
        return not_modified(etag, _KEPT)
    window = look.window(opened.window)
    spacing = _plane_spacing(opened.volume, axis, look.level)
    plane = opened.volume.plane(axis, index, level=look.level, frame=look.frame)
    picture = png(plane, window, spacing=spacing, size=look.size)
    headers = {**_KEPT, "ETag": etag, "X-Window": f"{window.low:g},{window.high:g}"}
    if spacing is not None:
        headers["X-Pixel-Spacing"] = f"{spacing[0]:g},{spacing[1]:g}"
    return Response(picture, media_type="image/png", headers=headers)


def _check_plane(volume: Volume, axis: Axis, index: int, look: Look) -> None:
    """Refuse what lies outside, with both numbers."""
    _check_index("level", look.level, len(volume.levels), "#level")
    shape = volume.levels[look.level].shape
    extent = shape["zyx".index(axis)]
    _check_index(f"axis {axis} at level {look.level}", index, extent, "#index")
    pixels = math.prod(shape) // extent
    if pixels > _MOST_PIXELS:
        detail = f"the plane has {pixels} pixels, over {_MOST_PIXELS}; ask for a coarser level"
        raise ApiError("invalid-request", detail, errors=[("#level", detail)])
    frames = volume.stored.array_shape[:-3]
    _check_index("frame", look.frame, frames[0] if frames else 1, "#frame")


def _check_index(what: str, index: int, count: int, pointer: str) -> None:
    if not 0 <= index < count:
        detail = f"{what}: {index} lies outside of 0 ... {count - 1}"
        raise ApiError("index-out-of-range", detail, errors=[(pointer, detail)])


def _plane_spacing(volume: Volume, axis: Axis, level: int) -> tuple[float, float] | None:
    """Millimetres per voxel of the plane's rows and columns; None where the scan does not say."""
    spacing = volume.stored.grid.spacing
    if spacing is None:
        return None
    factor = volume.levels[level].factor
    rows, columns = (step * factor[i] for i, step in enumerate(spacing) if "zyx"[i] != axis)
    return rows, columns


@router.head("/{volume_id}/zarr/{key:path}", include_in_schema=False)
@router.get(
    "/{volume_id}/zarr/{key:path}",
    response_class=Response,
    responses=a_file("the object's bytes", "application/octet-stream", "application/json"),
    openapi_extra=PARTIAL,
)
def get_zarr_object(request: Request, record: ReadyVolume, parts: Parts, key: str) -> Response:
    """An object of the volume's OME-Zarr 0.5 store, whole or by `Range`; 404 for an absent key."""
    assert record.stored is not None
    path = parts.shelf.take(record).volume.key_path(key)
    return file_answer(
        request,
        path,
        etag=strong_etag(record.stored.digest, key),
        media_type=_media_type(path),
        headers=_KEPT,
    )


def _media_type(path: Path) -> str:
    return "application/json" if path.suffix == ".json" else "application/octet-stream"
