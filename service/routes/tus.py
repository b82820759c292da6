"""One file in as many requests as it takes, by the tus resumable upload protocol 1.0.0.

Core with the extensions creation, creation-with-upload, checksum, expiration and termination
(https://tus.io/protocols/resumable-upload). See docs/adr/0017-tus-by-hand.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from functools import partial
from typing import Annotated

from fastapi import APIRouter, BackgroundTasks, Depends, Request, Response
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from service import tus_headers as tus
from service.deps import Known, Parts, Services, needs
from service.described import header, reads
from service.errors import ApiError
from service.identity import Principal
from service.intake import Patience, pieces
from service.routes.uploads import FoundUpload
from service.schemas import PROBLEMS
from service.tus_writing import TusWriter
from service.uploading import Made
from storage import access
from storage.errors import EmptyUpload, StorageError, StorageFull
from storage.upload_errors import MissingUpload, StorageLow, UploadBusy, UploadGone
from storage.upload_sessions import UploadKind, UploadSession, UploadState

SILENT_S = 2.0
_ASKED_AGAIN, _PAUSE_S = 20, 0.05
_CUT = (ClientDisconnect, StorageLow, StorageFull)


class Resumable(APIRoute):
    """A route whose every answer, errors too, says which version of tus it speaks."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""

        async def speaking(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Tus-Resumable"] = tus.VERSION
            await send(message)

        await super().handle(scope, receive, speaking)


def _require_version(request: Request) -> None:
    tus.require_version(request.headers)


def found_tus(session: FoundUpload) -> UploadSession:
    """The upload that the address names. Raises MissingUpload."""
    if session.kind is not UploadKind.TUS:
        raise MissingUpload(session.id)
    return session


FoundTus = Annotated[UploadSession, Depends(found_tus)]
_WRITING = [needs(access.Scope.VOLUMES_WRITE), Depends(_require_version)]
_BODY = {
    "description": "Bytes of the file.",
    "content": {tus.MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}},
}
router = APIRouter(prefix="/v1/tus", tags=["uploads"], responses=PROBLEMS, route_class=Resumable)
_SPOKEN = header("Tus-Resumable", "the version of the protocol", pattern=r"^1\.0\.0$", required=True)
_LENGTH = header("Upload-Length", "bytes of the whole file", pattern=tus.POSITIVE, required=True)
_OFFSET = header("Upload-Offset", "where the body goes on", pattern=tus.NUMBER, required=True)
_METADATA = header(
    "Upload-Metadata", "filename, label, sha256: each with its value in base64", pattern=tus.METADATA
)
_CHECKSUM = header("Upload-Checksum", "an algorithm and the body's digest in base64", pattern=tus.CHECKSUM)


@router.options("", status_code=204)
@router.options("/{upload_id}", status_code=204, include_in_schema=False)
def describe_tus(parts: Parts) -> Response:
    """What of the tus protocol is offered here."""
    return Response(
        status_code=204,
        headers={
            "Tus-Version": tus.VERSION,
            "Tus-Extension": tus.EXTENSIONS,
            "Tus-Max-Size": str(parts.settings.max_upload_bytes),
            "Tus-Checksum-Algorithm": ",".join(tus.ALGORITHMS),
        },
    )


@router.post(
    "",
    status_code=201,
    response_class=Response,
    dependencies=_WRITING,
    openapi_extra={"requestBody": _BODY, **reads(_SPOKEN, _LENGTH, _METADATA, _CHECKSUM)},
)
async def create_tus(
    request: Request,
    background: BackgroundTasks,
    parts: Parts,
    who: Known,
) -> Response:
    """Begin an upload, with its first bytes in the body if they are at hand."""
    session = await run_in_threadpool(_create, request, parts, who)
    headers = {"Location": f"/v1/tus/{session.id}", **tus.expiry(session.expires_at)}
    if tus.has_bytes(request.headers):
        headers |= await _append(request, background, parts, who, session.id, 0)
    return Response(status_code=201, headers=headers, background=background)


def _create(request: Request, parts: Services, who: Principal) -> UploadSession:
    length = tus.length(request.headers)
    if length == 0:
        raise EmptyUpload
    metadata = tus.metadata(request.headers)
    tus.checksum(request.headers)
    sha256 = tus.announced_sha256(metadata)
    return parts.uploads.open(
        UploadKind.TUS,
        project_id=who.project_id,
        name=tus.called(metadata),
        length=length,
        facts={} if sha256 is None else {"sha256": sha256},
    )


@router.head("/{upload_id}", response_class=Response, dependencies=_WRITING, openapi_extra=reads(_SPOKEN))
def get_tus_offset(session: FoundTus) -> Response:
    """How many bytes have arrived, for good: where to go on."""
    _require_alive(session)
    return Response(headers={**tus.state(session), **_made_headers(session)})


@router.patch(
    "/{upload_id}",
    status_code=204,
    response_class=Response,
    dependencies=_WRITING,
    openapi_extra={
        "requestBody": {"required": True, **_BODY},
        **reads(_SPOKEN, _OFFSET, _CHECKSUM),
    },
)
async def append_tus(
    request: Request,
    background: BackgroundTasks,
    session: FoundTus,
    parts: Parts,
    who: Known,
) -> Response:
    """Send the bytes that follow. With the last one the file becomes a volume, as by `POST /v1/volumes`:
    `X-Volume-Id` and `X-Job-Id` name it and the job that reads it.
    """
    tus.require_bytes(request.headers)
    offset = tus.offset(request.headers)
    headers = await _append(request, background, parts, who, session.id, offset)
    return Response(status_code=204, headers=headers, background=background)


@router.delete(
    "/{upload_id}",
    status_code=204,
    response_class=Response,
    dependencies=_WRITING,
    openapi_extra=reads(_SPOKEN),
)
def abort_tus(session: FoundTus, parts: Parts) -> Response:
    """Give an upload up; what has arrived of it is removed."""
    session.require_open()
    parts.uploads.give_up(session)
    return Response(status_code=204)


async def _append(
    request: Request,
    background: BackgroundTasks,
    parts: Services,
    who: Principal,
    upload_id: str,
    offset: int,
) -> dict[str, str]:
    """Take the body in; the headers that say what came of it. What came of a body that broke off is kept."""
    checksum = tus.checksum(request.headers)
    begin = partial(TusWriter.begin, parts.uploads, upload_id, who.project_id, offset, checksum)
    writer = await _begun(begin, parts.uploads.waiting.get(upload_id))
    patience = parts.uploads.waiting[upload_id] = Patience(parts.uploads.idle_s)
    try:
        made = await _take_in(pieces(request, patience), who, writer)
    finally:
        del parts.uploads.waiting[upload_id]
        writer.close()
    headers = {"Upload-Offset": str(writer.at), **tus.expiry(writer.expires_at)}
    if made is None:
        return headers
    volume, job = made
    background.add_task(parts.ring, job)
    return {**headers, "X-Volume-Id": volume.id, "X-Job-Id": job.id}


async def _begun(begin: Callable[[], TusWriter], other: Patience | None) -> TusWriter:
    """A writer. One that waits for a connection which has fallen silent makes way: a client that lost it
    comes back before the service knows. Raises as TusWriter.begin.
    """
    try:
        return await run_in_threadpool(begin)
    except UploadBusy:
        if other is None or not other.end(SILENT_S):
            raise
    for _ in range(_ASKED_AGAIN):
        await asyncio.sleep(_PAUSE_S)
        with suppress(UploadBusy):
            return await run_in_threadpool(begin)
    return await run_in_threadpool(begin)


async def _take_in(body: AsyncIterator[bytes], who: Principal, writer: TusWriter) -> Made | None:
    try:
        async for piece in body:
            await run_in_threadpool(writer.write, piece)
    except (*_CUT, ApiError):
        with suppress(StorageError):
            await run_in_threadpool(writer.cut)
        raise
    return await run_in_threadpool(writer.finish, who.name)


def _require_alive(session: UploadSession) -> None:
    if session.state not in (UploadState.OPEN, UploadState.COMPLETE):
        raise UploadGone(session.id, session.state, session.facts.get("error"))


def _made_headers(session: UploadSession) -> dict[str, str]:
    return {} if session.volume_id is None else {"X-Volume-Id": session.volume_id}
