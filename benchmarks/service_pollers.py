"""Pollers of HTTP resources, each on a connection of its own, as light as can be: they share the machine with
what they measure.

    python -m benchmarks.service_pollers '{"seconds": ..., "pollers": ..., "every_s": ..., "targets": [...]}'

prints for each target the latencies of its answers in seconds and how many were 200, 304 or another, once a
line has come on standard input or the seconds are over. Every poller asks all targets in turn, each once in
`every_s`, and begins at a time of its own.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Polled:
    """Where to ask for which paths, poller by poller; `headers` go with each request."""

    host: str
    port: int
    paths: tuple[str, ...]
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Polling:
    """`pollers` ask each of the targets every `every_s` seconds for so many seconds."""

    seconds: float
    pollers: int
    every_s: float
    targets: dict[str, Polled]

    def to_json(self) -> str:
        """What the command takes."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Polling:
        """What `to_json` made."""
        record = json.loads(text)
        targets = {
            name: Polled(**{**each, "paths": tuple(each["paths"])})
            for name, each in record["targets"].items()
        }
        return cls(record["seconds"], record["pollers"], record["every_s"], targets)


@dataclass
class Heard:
    """What a target answered."""

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)


async def poll(polling: Polling) -> dict[str, Heard]:
    """All pollers at once, until somebody says stop."""
    heard = {name: Heard() for name in polling.targets}
    pollers = [asyncio.ensure_future(_poller(polling, number, heard)) for number in range(polling.pollers)]
    stopped = asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    await asyncio.wait([stopped, asyncio.gather(*pollers)], return_when=asyncio.FIRST_COMPLETED)
    for poller in pollers:
        poller.cancel()
    for failed in await asyncio.gather(*pollers, return_exceptions=True):
        if isinstance(failed, Exception):
            raise failed
    return heard


async def _poller(polling: Polling, number: int, heard: dict[str, Heard]) -> None:
    asked = {
        name: _Connection(target, target.paths[number % len(target.paths)])
        for name, target in polling.targets.items()
    }
    pause = polling.every_s / len(asked)
    began = time.monotonic() + polling.every_s * number / polling.pollers
    turn = 0
    try:
        while True:
            for name, connection in asked.items():
                due = began + turn * pause
                if due > began + polling.seconds:
                    return
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                seconds, status = await connection.ask()
                heard[name].seconds.append(seconds)
                heard[name].statuses[status] += 1
                turn += 1
    finally:
        for connection in asked.values():
            connection.close()


class _Connection:
    """Asks for one path again and again, with the entity tag of the last answer."""

    def __init__(self, target: Polled, path: str) -> None:
        lines = [f"GET {path} HTTP/1.1", f"Host: {target.host}:{target.port}"]
        lines += [f"{name}: {value}" for name, value in target.headers.items()]
        self._target, self._head = target, "\r\n".join(lines)
        self._etag = ""
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self) -> tuple[float, int]:
        """Seconds until the whole answer was there, and its status."""
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._target.host, self._target.port)
        reader, writer = self._streams
        condition = f"\r\nIf-None-Match: {self._etag}" if self._etag else ""
        began = time.perf_counter()
        writer.write(f"{self._head}{condition}\r\n\r\n".encode())
        status, headers = _parsed(await reader.readuntil(b"\r\n\r\n"))
        if status != 304:
            await reader.readexactly(int(headers.get("content-length", 0)))
        self._etag = headers.get("etag", "")
        return time.perf_counter() - began, status

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()


def _parsed(head: bytes) -> tuple[int, dict[str, str]]:
    first, *lines = head.decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines if line)
    return int(first.split()[1]), {name.lower(): value.strip() for name, _, value in pairs}


def main() -> None:
    """Poll as the command line says, and print what was heard."""
    heard = asyncio.run(poll(Polling.from_json(sys.argv[1])))
    answer: dict[str, Any] = {
        name: {"seconds": each.seconds, "statuses": dict(each.statuses)} for name, each in heard.items()
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
