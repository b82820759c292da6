"""Imports by reference: scans that lie where the service can read them are copied, then read as uploads."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, BackgroundTasks, Request, Response

from service.accepting import accept, accepted
from service.deps import Known, Parts, Services, needs
from service.importing import allowed_path, read_into, size_of
from service.intake import kept_file_name, scan_name
from service.schemas import PROBLEMS, Accepted
from service.upload_schemas import ImportRequest
from storage.access import Scope
from storage.ids import new_id
from storage.records import Received
from storage.tidy import upload_path
from storage.uploads import Upload

_MAX_BODY_BYTES = 64 << 10

router = APIRouter(
    prefix="/v1/volumes:import",
    tags=["volumes"],
    responses=PROBLEMS,
    dependencies=[needs(Scope.VOLUMES_WRITE)],
)


@router.post("", status_code=202, response_model=Accepted, max_body_size=_MAX_BODY_BYTES)
def import_volume(
    wanted: ImportRequest, request: Request, background: BackgroundTasks, parts: Parts, who: Known
) -> Response:
    """Import a file that lies below one of the folders that the service may read: `file:///...`."""
    path = allowed_path(wanted.source, parts.settings.import_roots)
    parts.uploads.require_room(who.project_id, size_of(path))
    name = scan_name(wanted.name, request.headers) if wanted.name else kept_file_name(path.name)
    volume, job = accept(parts.catalogue, _copied(path, parts), name, who)
    background.add_task(parts.ring, job)
    return accepted(volume, job, background)


def _copied(path: Path, parts: Services) -> Received:
    volume_id = new_id("vol")
    folder = upload_path(parts.settings.data_root, volume_id).parent
    upload = Upload(folder, volume_id, parts.uploads.most_bytes, parts.uploads.watermark.require)
    try:
        read_into(path, upload)
        return upload.finish()
    except BaseException:
        upload.abort()
        raise
