"""A TCP proxy that cuts connections after so many bytes, and counts what passed."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Lock, Thread


class CuttingProxy:
    """Forwards to a port of this machine. `cuts` are budgets in bytes towards the server, one for each
    connection that would pass its budget; connections after the last are left alone.
    """

    def __init__(self, port: int, cuts: list[int]) -> None:
        self.cuts, self.sent, self.done_cuts = list(cuts), 0, 0
        self._port, self._lock = port, Lock()
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = Thread(target=self._accept)
        self._thread.start()

    def close(self) -> None:
        """Accept no more."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        _end(*self._open)
        self._thread.join()

    def _accept(self) -> None:
        pumps: list[Thread] = []
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                break
            far = socket.create_connection(("127.0.0.1", self._port))
            self._open += [near, far]
            pumps += [Thread(target=self._up, args=(near, far)), Thread(target=_down, args=(far, near))]
            for pump in pumps[-2:]:
                pump.start()
        for pump in pumps:
            pump.join()

    def _up(self, near: socket.socket, far: socket.socket) -> None:
        """Towards the server, until the budget of the moment is used up."""
        passed = 0
        with suppress(OSError):
            while piece := near.recv(1 << 14):
                with self._lock:
                    cut = bool(self.cuts) and passed + len(piece) > self.cuts[0]
                    if cut:
                        piece = piece[: self.cuts.pop(0) - passed]
                        self.done_cuts += 1
                    self.sent += len(piece)
                far.sendall(piece)
                passed += len(piece)
                if cut:
                    near.shutdown(socket.SHUT_RDWR)
                    break
            far.shutdown(socket.SHUT_WR)  # what passed arrives; `_down` ends when the server has seen the end


def _down(far: socket.socket, near: socket.socket) -> None:
    with suppress(OSError):
        while piece := far.recv(1 << 14):
            near.sendall(piece)
    _end(near, far)


def _end(*connections: socket.socket) -> None:
    for connection in connections:
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
        connection.close()


@contextmanager
def cutting(port: int | None, cuts: list[int]) -> Iterator[CuttingProxy]:
    """A proxy to a port, for the time of the block."""
    assert port is not None
    proxy = CuttingProxy(port, cuts)
    try:
        yield proxy
    finally:
        proxy.close()
