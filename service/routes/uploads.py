"""Uploads in parts: a Zarr object by object, and how far any upload has come.

Each object is a `PUT` with its `Content-Digest` (RFC 9530), so that an upload that broke off is resumed by
sending what is missing, and sending something twice does no harm.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Annotated

from fastapi import APIRouter, BackgroundTasks, Depends, Request, Response
from fastapi import Path as FromPath
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from service.accepting import accepted
from service.conditional import json_answer
from service.deps import Known, Parts, Services, needs
from service.described import CONDITIONAL, UNCHANGED, header, reads
from service.errors import ApiError
from service.intake import announced_sha256, announced_size, receive, scan_name
from service.schemas import PROBLEMS, Accepted
from service.upload_schemas import (
    CompleteRequest,
    UploadRequest,
    UploadView,
    sent_objects,
    upload_view,
)
from storage.access import Scope
from storage.sent_objects import Objects, check_complete, check_digest, check_key
from storage.upload_errors import MissingUpload, UploadGone
from storage.upload_sessions import UploadKind, UploadSession, UploadState

_ID = re.compile(r"upl_[0-9a-f-]{36}")
_MAX_BODY_BYTES = 8 << 20
"""A manifest of 50,000 objects."""
_OBJECT_BODY = {
    "requestBody": {
        "required": True,
        "description": "The object's bytes. `Content-Digest: sha-256=:...:` is required.",
        "content": {
            "application/octet-stream": {"schema": {"type": "string", "format": "binary", "minLength": 1}}
        },
    },
    **reads(
        header(
            "Content-Digest",
            "of the body (RFC 9530)",
            pattern="^sha-256=:[A-Za-z0-9+/]{43}=:$",
            required=True,
        )
    ),
}

router = APIRouter(
    prefix="/v1/uploads", tags=["uploads"], responses=PROBLEMS, dependencies=[needs(Scope.VOLUMES_WRITE)]
)


def found_upload(upload_id: Annotated[str, FromPath()], parts: Parts, who: Known) -> UploadSession:
    """The session that the address names. Raises MissingUpload, also for another project's."""
    if not _ID.fullmatch(upload_id):
        raise MissingUpload(upload_id)
    return parts.uploads.session(upload_id, who.project_id)


FoundUpload = Annotated[UploadSession, Depends(found_upload)]


def open_zarr(session: FoundUpload) -> UploadSession:
    """The session that the address names, to which objects may be added."""
    if session.kind is not UploadKind.ZARR:
        raise MissingUpload(session.id)
    session.require_open()
    return session


OpenZarr = Annotated[UploadSession, Depends(open_zarr)]


@router.post("", status_code=201, response_model=UploadView, max_body_size=_MAX_BODY_BYTES)
def open_upload(wanted: UploadRequest, request: Request, parts: Parts, who: Known) -> Response:
    """Begin to send a Zarr v3 object by object: then `PUT` each of them, and `complete` it."""
    manifest = None if wanted.manifest is None else sent_objects(wanted.manifest)
    for key in manifest or ():
        check_key(key)
    session = parts.uploads.open(
        UploadKind.ZARR,
        project_id=who.project_id,
        name=scan_name(wanted.name, request.headers),
        length=_length(wanted.size, manifest),
        manifest=manifest,
    )
    view = upload_view(session, {}, manifest)
    return JSONResponse(view.model_dump(mode="json"), 201, {"Location": view.links["self"]})


def _length(size: int | None, manifest: Objects | None) -> int | None:
    if manifest is None:
        return size
    total = sum(sent.size for sent in manifest.values())
    if size not in (None, total):
        detail = f"the objects of the manifest have {total:,} bytes, not {size:,}; leave `size` out"
        raise ApiError("invalid-request", detail, errors=[("/size", detail)])
    return total


@router.get("/{upload_id}", response_model=UploadView, responses=UNCHANGED, openapi_extra=CONDITIONAL)
def get_upload(request: Request, session: FoundUpload, parts: Parts) -> Response:
    """How far an upload has come, and what of its manifest is missing."""
    if session.state not in (UploadState.OPEN, UploadState.COMPLETE):
        raise UploadGone(session.id, session.state, session.facts.get("error"))
    if session.kind is not UploadKind.ZARR or session.state is not UploadState.OPEN:
        return json_answer(request, upload_view(session))
    manifest = parts.uploads.arrival(session).manifest()
    return json_answer(request, upload_view(session, parts.uploads.sessions.objects(session.id), manifest))


@router.put(
    "/{upload_id}/objects/{key:path}",
    status_code=201,
    response_class=Response,
    openapi_extra=_OBJECT_BODY,
    responses={204: {"description": "The same bytes are there already."}},
)
async def put_object(request: Request, session: OpenZarr, key: str, parts: Parts, who: Known) -> Response:
    """Send one object: it is there when it is whole and has the announced digest, and not before."""
    check_key(key)
    if announced_sha256(request.headers) is None:
        raise ApiError("invalid-digest", "send Content-Digest: sha-256=:<base64 of the 32 bytes>: (RFC 9530)")
    uploads = parts.uploads
    await run_in_threadpool(uploads.require_room, who.project_id, _unreserved(request, session))
    part = await run_in_threadpool(uploads.part, session)
    received = await receive(request, part, uploads.idle_s)
    new = await run_in_threadpool(uploads.keep_object, session, key, received)
    return Response(status_code=201 if new else 204)


def _unreserved(request: Request, session: UploadSession) -> int:
    """The bytes of an object for which there is no room yet."""
    return announced_size(request.headers) if session.length is None else 0


@router.post("/{upload_id}/complete", status_code=202, response_model=Accepted, max_body_size=_MAX_BODY_BYTES)
def complete_upload(
    session: OpenZarr,
    parts: Parts,
    who: Known,
    background: BackgroundTasks,
    wanted: CompleteRequest | None = None,
) -> Response:
    """All has been sent: where exactly the manifest's objects are there, they become a volume."""
    check = _check(session, parts, wanted or CompleteRequest())
    volume, job = parts.uploads.finish_objects(session, check, who.name)
    background.add_task(parts.ring, job)
    return accepted(volume, job, background)


def _check(session: UploadSession, parts: Services, wanted: CompleteRequest) -> partial[None]:
    """What tells whether all has arrived."""
    if wanted.manifest is not None:
        return partial(check_complete, session.id, manifest=sent_objects(wanted.manifest))
    if wanted.digest is not None:
        return partial(check_digest, session.id, digest=wanted.digest)
    manifest = parts.uploads.arrival(session).manifest()
    if manifest is None:
        detail = "send the manifest or its digest: the upload began without one"
        raise ApiError("invalid-request", detail, errors=[("/manifest", detail)])
    return partial(check_complete, session.id, manifest=manifest)


@router.delete("/{upload_id}", status_code=204)
def abort_upload(session: FoundUpload, parts: Parts) -> Response:
    """Give an upload up; what has arrived of it is removed."""
    session.require_open()
    parts.uploads.give_up(session)
    return Response(status_code=204)
