"""What has arrived whole becomes a volume, whichever way it came."""

from __future__ import annotations

from fastapi import BackgroundTasks
from fastapi.responses import JSONResponse

from service.identity import Principal
from service.job_views import job_view
from service.schemas import Accepted, volume_view
from service.tracing import traceparent_of_span
from storage.catalogue import Catalogue
from storage.jobs import Job, RequestKey
from storage.readers import identify
from storage.readers.base import Limits
from storage.records import Received, VolumeRecord
from storage.tidy import remove


def accept(
    catalogue: Catalogue,
    received: Received,
    name: str,
    who: Principal,
    request: RequestKey | None = None,
) -> tuple[VolumeRecord, Job]:
    """Look at an upload's content and enter it in the catalogue; it is removed when that fails, and where the
    same request came before: then the volume is that one's.
    """
    try:
        scan_format = identify(received.path, Limits())
        volume, job = catalogue.create_volume(
            received,
            name=name,
            scan_format=scan_format,
            project_id=who.project_id,
            submitted_by=who.name,
            trace=traceparent_of_span(),
            request=request,
        )
    except BaseException:
        remove(received.path)
        raise
    if volume.id != received.volume_id:
        remove(received.path)
    return volume, job


def accepted(volume: VolumeRecord, job: Job, background: BackgroundTasks) -> JSONResponse:
    """The answer: 202, with the volume and the job that reads it."""
    return JSONResponse(
        Accepted(volume=volume_view(volume), job=job_view(job)).model_dump(mode="json"),
        202,
        {"Location": f"/v1/volumes/{volume.id}", "Retry-After": "1"},
        background=background,
    )
