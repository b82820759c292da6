"""A web process that dies where it is asked to: by SIGKILL, when all is committed and nothing answered.

python mortal_api.py DATA_ROOT: prints the port. A keeper holds the socket and starts the next process, as a
supervisor would; it forks them, so that a life costs no imports.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path

import uvicorn
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.app import create_app
from service.protocol import Protocol
from service.queue import MemoryQueue
from service.settings import ServiceSettings
from storage.catalogue import Catalogue
from storage.jobs import JobKind, Queue

DIE = "x-die"
KIND = JobKind(
    name="errand",
    version="1",
    title="Errand",
    description="For tests",
    queue=Queue.BATCH,
    parameters_schema={"type": "object"},
    result_schema={"type": "object"},
    needs_volume=False,
)


class Mortal:
    """ASGI layer that kills its process instead of sending the first byte of an answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def dying(message: Message) -> None:
            if scope["type"] == "http" and DIE in Headers(scope=scope):
                os.kill(os.getpid(), signal.SIGKILL)
            await send(message)

        await self._app(scope, receive, dying)


def live(root: Path, listener: socket.socket) -> None:
    """Serve until killed."""
    settings = ServiceSettings(data_root=root, authentication=False)
    catalogue = Catalogue.open(settings.catalogue_url)
    catalogue.announce("worker", [KIND], "cpu")
    app = Mortal(create_app(settings, catalogue, MemoryQueue()))
    uvicorn.Server(uvicorn.Config(app, log_config=None, http=Protocol, ws="none")).run([listener])


def keep(root: Path) -> None:
    """Start one process after the other."""
    listener = socket.create_server(("127.0.0.1", 0))
    sys.stdout.write(f"{listener.getsockname()[1]}\n")
    sys.stdout.flush()
    while True:
        child = os.fork()
        if child == 0:
            live(root, listener)
            os._exit(0)
        os.waitpid(child, 0)


if __name__ == "__main__":
    keep(Path(sys.argv[1]))
