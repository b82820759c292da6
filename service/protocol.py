"""HTTP/1.1 as uvicorn speaks it, for what never reaches the application: malformed and endless requests.

uvicorn service.app:build --factory --http service.protocol:Protocol
"""

from __future__ import annotations

import json
import uuid
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.errors import MEDIA_TYPE, problem

HEAD_BYTES = 64 << 10
"""Longest request line and headers together; counted by what has arrived, so a little more may pass."""


class Protocol(HttpToolsProtocol):
    """Bounds a request's head, which uvicorn would gather without end, and answers with problems.

    An endless answer may cut its connection (ASGI extension `tomotrain.connection`, `abort`), and learns when
    the server stops by what the lifespan's state holds as `stopping`.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._in_head, self._head_bytes = True, 0

    def data_received(self, data: bytes) -> None:
        """Some bytes of the connection."""
        self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > HEAD_BYTES and not self.transport.is_closing():
            self._refuse("head-too-large", f"the address and the headers are over {HEAD_BYTES} bytes")

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self.scope["extensions"] = {"tomotrain.connection": {"abort": self.transport.abort}}

    def on_headers_complete(self) -> None:
        """The head has ended; what follows is the body, or the next request."""
        self._in_head, self._head_bytes = False, 0
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The request has ended."""
        super().on_message_complete()
        self._in_head, self._head_bytes = True, 0

    def shutdown(self) -> None:
        """The server stops: it takes no more connections, and waits for answers that have begun."""
        stopping = self.app_state.get("stopping")
        if stopping is not None:
            stopping()
        super().shutdown()

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP, and close the connection."""
        self._refuse("bad-request", msg)

    def _refuse(self, code: str, detail: str) -> None:
        request_id = uuid.uuid4().hex
        body = problem(code, detail, instance="", request_id=request_id)
        content = json.dumps(body).encode()
        status = HTTPStatus(body["status"])
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\n"
            f"Content-Type: {MEDIA_TYPE}\r\nContent-Length: {len(content)}\r\n"
            f"X-Request-Id: {request_id}\r\nConnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + content)
        self.transport.close()
