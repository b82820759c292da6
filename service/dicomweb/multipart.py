"""multipart/related bodies (RFC 2046 5.1, RFC 2387), read and written piece by piece, in bounded memory."""

from __future__ import annotations

import re
import secrets
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from email.message import Message

from service.errors import ApiError

BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]")
"""RFC 2046, bcharsnospace and spaces: at most 70 characters."""
LINE_BYTES = 4096
"""Longest line of a part's head."""
HEAD_LINES = 32
PARTS = 200_000
RELATED = "multipart/related"


def boundary_of(content_type: str) -> bytes:
    """The boundary that a Content-Type names. Raises ApiError for another type, and for none or a bad one."""
    message = Message()
    message["Content-Type"] = re.sub(r"[\r\n\0]", "", content_type)
    if message.get_content_type() != RELATED:
        raise ApiError(
            "unsupported-media-type", f'the body has to be {RELATED}; type="application/dicom"; boundary=...'
        )
    boundary = message.get_param("boundary")
    if not isinstance(boundary, str) or not BOUNDARY.fullmatch(boundary):
        raise ApiError("bad-request", "Content-Type: the boundary is missing, or no boundary of RFC 2046")
    return boundary.encode()


@dataclass(frozen=True)
class Part:
    """One part of a body: its head, names in small letters, and its content, which is to be read at once."""

    headers: Mapping[str, str]
    content: AsyncIterator[bytes]

    @property
    def media_type(self) -> str:
        """Its Content-Type without parameters; `text/plain` where it has none (RFC 2046 5.2)."""
        return self.headers.get("content-type", "text/plain").partition(";")[0].strip().lower()


async def parts(body: AsyncIterator[bytes], boundary: bytes) -> AsyncIterator[Part]:
    """The parts of a body, one after the other; what is not read of one is passed over.

    Raises ApiError, at the latest at the end, for a body that breaks off or is none, with too many parts, or
    with a head that is too large.
    """
    buffer = _Buffer(body)
    async for _ in buffer.until(b"\r\n--" + boundary):
        pass
    for _ in range(PARTS):
        if await buffer.is_closing():
            return
        content = buffer.until(b"\r\n--" + boundary)
        yield Part(await buffer.head(), content)
        async for _ in content:
            pass
    raise ApiError("bad-request", f"the body has more than {PARTS:,} parts; send it in several requests")


def written(items: Iterable[tuple[Mapping[str, str], Iterable[bytes]]], boundary: bytes) -> Iterator[bytes]:
    """The bytes of a body of parts: their heads, and their contents piece by piece."""
    opening = b"--" + boundary
    for headers, content in items:
        yield b"".join(
            [opening, b"\r\n", *(f"{name}: {value}\r\n".encode() for name, value in headers.items()), b"\r\n"]
        )
        yield from content
        opening = b"\r\n--" + boundary
    yield opening + b"--\r\n"


def new_boundary() -> bytes:
    """A boundary of 128 random bits, which stands in no content but by a miracle."""
    return secrets.token_hex(16).encode()


def content_type_of(boundary: bytes, media_type: str) -> str:
    """The Content-Type of a body whose parts are of a media type (PS3.18 8.6.1.2.1)."""
    return f'{RELATED}; type="{media_type}"; boundary={boundary.decode()}'


class _Buffer:
    """A body as it comes in. It begins with a line's end: the first boundary needs none before it."""

    def __init__(self, body: AsyncIterator[bytes]) -> None:
        self._body, self._held = body, b"\r\n"

    async def until(self, mark: bytes) -> AsyncIterator[bytes]:
        """The bytes before a mark, which is taken away. Holds no more than a piece."""
        while (at := self._held.find(mark)) < 0:
            safe = len(self._held) - len(mark) + 1
            if safe > 0:
                piece, self._held = self._held[:safe], self._held[safe:]
                yield piece
            await self._more()
        piece, self._held = self._held[:at], self._held[at + len(mark) :]
        if piece:
            yield piece

    async def is_closing(self) -> bool:
        """Whether the boundary that was just passed is the last; else the rest of its line is taken away."""
        while len(self._held) < 2:
            await self._more()
        if self._held.startswith(b"--"):
            return True
        if (await self._line()).strip(b" \t"):
            raise ApiError("bad-request", "a line of the multipart body begins with the boundary and is none")
        return False

    async def head(self) -> dict[str, str]:
        """The headers of a part."""
        headers: dict[str, str] = {}
        for _ in range(HEAD_LINES):
            line = await self._line()
            if not line:
                return headers
            name, colon, value = line.decode("latin-1").partition(":")
            if not colon:
                raise ApiError("bad-request", "a part's head has a line without a colon")
            headers[name.strip().lower()] = value.strip()
        raise ApiError("bad-request", f"a part's head has more than {HEAD_LINES} lines")

    async def _line(self) -> bytes:
        while (end := self._held.find(b"\r\n")) < 0:
            if len(self._held) > LINE_BYTES:
                raise ApiError("bad-request", f"a line of a part's head has more than {LINE_BYTES} bytes")
            await self._more()
        line, self._held = self._held[:end], self._held[end + 2 :]
        return line

    async def _more(self) -> None:
        try:
            self._held += await anext(self._body)
        except StopAsyncIteration:
            raise ApiError("bad-request", "the multipart body breaks off; send the whole of it") from None
