"""What the headers of an upload say: its name, its size, its digest; and the body, piece by piece."""

from __future__ import annotations

import asyncio
import base64
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email.message import Message
from email.utils import collapse_rfc2231_value
from pathlib import PurePosixPath

from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect

from service.errors import ApiError
from storage.errors import ScanTooLarge
from storage.naming import without_identity
from storage.records import Received
from storage.uploads import Upload

IDLE_S = 60.0
_PIECE_BYTES = 1 << 20
_SLOW_PIECE_S = 5.0
_SHA256 = re.compile(r"(?:^|,)\s*sha-256\s*=\s*([^,;\s]+)", re.IGNORECASE)
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, also those that turn the direction of writing, and halves of surrogate pairs."""
_NAME_LENGTH = 200
_NAMELESS = "scan"
_CHARSETS = ("utf-8", "iso-8859-1")
"""Of names in headers (RFC 8187). Python would run any codec that a client names, even failing ones."""


def scan_name(given: str | None, headers: Headers) -> str:
    """What the scan is called: `?name=`, else what may be kept of Content-Disposition's file name (RFC 6266).

    `?name=` is a label that the sender chose; only the last part of a path is kept, and nothing unprintable.
    """
    if given:
        return _last_part(given)[:_NAME_LENGTH] or _NAMELESS
    return kept_file_name(_disposition_name(headers.get("content-disposition", "")))


def kept_file_name(name: str) -> str:
    """A file's name where it says nothing of a person, as `slice_1.dcm`; else `scan` with its ending.

    Names of files come along without anybody's having chosen to send them, and often name the patient.
    """
    return without_identity(_last_part(name)[-_NAME_LENGTH:], _NAMELESS) or _NAMELESS


def _last_part(path: str) -> str:
    return PurePosixPath(_UNPRINTABLE.sub("", path).replace("\\", "/")).name.strip()


def _disposition_name(header: str) -> str:
    message = Message()
    message["Content-Disposition"] = _UNPRINTABLE.sub("", header)
    found = message.get_param("filename", "", "content-disposition")
    if not isinstance(found, tuple):
        return str(found)
    charset, language, value = found
    known = charset if (charset or "").lower() in _CHARSETS else "utf-8"
    return collapse_rfc2231_value((known, language, value))


def announced_sha256(headers: Headers) -> str | None:
    """The sha-256 (hex) that `Content-Digest` or `Repr-Digest` announces (RFC 9530); others are ignored.

    Raises ApiError when it cannot be read.
    """
    for name in ("content-digest", "repr-digest"):
        match = _SHA256.search(headers.get(name, ""))
        if match:
            return _hex_of_byte_sequence(name, match[1])
    return None


def _hex_of_byte_sequence(header: str, value: str) -> str:
    try:
        digest = base64.b64decode(value.removeprefix(":").removesuffix(":"), validate=True)
    except ValueError:
        digest = b""
    if len(digest) != 32 or not (value.startswith(":") and value.endswith(":")):
        detail = f"{header}: write sha-256=:<base64 of the 32 bytes>: (RFC 9530), or leave the header out"
        raise ApiError("invalid-digest", detail)
    return digest.hex()


def check_announced_size(headers: Headers, limit: int) -> None:
    """Refuse a body before its first byte. Raises ScanTooLarge."""
    announced = announced_size(headers)
    if announced > limit:
        raise ScanTooLarge("upload", announced, limit)


def announced_size(headers: Headers) -> int:
    """How long the body will be; 0 where nobody says."""
    announced = headers.get("content-length", "")
    return int(announced) if announced.isascii() and announced.isdecimal() else 0


async def receive(request: Request, upload: Upload, idle_s: float = IDLE_S) -> Received:
    """Write the request's body into the upload, disk work in threads, a piece at a time in memory.

    Whatever goes wrong, a lost or idle connection included, leaves nothing behind.
    """
    try:
        async for piece in pieces(request, Patience(idle_s)):
            await run_in_threadpool(upload.write, piece)
        return await run_in_threadpool(upload.finish, announced_sha256(request.headers))
    except BaseException:
        upload.abort()
        raise


class Patience:
    """How long the next bytes of a body are waited for. Of one event loop."""

    def __init__(self, idle_s: float) -> None:
        self.idle_s = idle_s
        self._wait: asyncio.Timeout | None = None
        self._since = 0.0

    @asynccontextmanager
    async def waiting(self) -> AsyncIterator[None]:
        """A wait. Raises TimeoutError when it has lasted too long, or was ended."""
        self._since = time.monotonic()
        try:
            async with asyncio.timeout(self.idle_s) as self._wait:
                yield
        finally:
            self._wait = None

    def end(self, after_s: float) -> bool:
        """End the wait of this moment if it has lasted so long; whether it was ended."""
        if self._wait is None or time.monotonic() - self._since < after_s:
            return False
        self._wait.reschedule(asyncio.get_running_loop().time())
        return True


async def pieces(request: Request, patience: Patience) -> AsyncIterator[bytes]:
    """The body in pieces of about a megabyte, so that few hops to a thread are needed; smaller where it comes
    slowly.

    What came before a connection was lost (ClientDisconnect) comes too. Raises ApiError `upload-idle` when
    nothing comes for too long.
    """
    piece, began = bytearray(), time.monotonic()
    stream = request.stream()
    while True:
        try:
            async with patience.waiting():
                chunk = await anext(stream, None)
        except (ClientDisconnect, TimeoutError) as error:
            if piece:
                yield bytes(piece)
            if isinstance(error, TimeoutError):
                raise _idle(patience.idle_s) from None
            raise
        piece += chunk or b""
        if len(piece) >= _PIECE_BYTES or (piece and time.monotonic() - began > _SLOW_PIECE_S):
            yield bytes(piece)
            piece.clear()
            began = time.monotonic()
        if chunk is None:
            break
    if piece:
        yield bytes(piece)


def _idle(idle_s: float) -> ApiError:
    return ApiError(
        "upload-idle",
        f"nothing came for {idle_s:g} s, or another request goes on in the place of this one: send the rest "
        "again, or resume the upload where it was one in parts",
        retryable=True,
        headers={"Connection": "close"},
    )
