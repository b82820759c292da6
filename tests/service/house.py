"""A service over real HTTP, on a real catalogue and a queue in memory; a worker that a test runs by hand."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import numpy as np
import uvicorn
from starlette.types import ASGIApp

from service.app import create_app
from service.deps import Services
from service.protocol import Protocol
from service.queue import MemoryQueue
from service.settings import ServiceSettings
from storage.catalogue import Catalogue
from storage.ingest import ingest
from storage.jobs import Artifact, Job, JobKind, Queue
from storage.readers import open_scan
from storage.tidy import store_key, upload_path

SHAPE_XYZ = (20, 16, 12)
SPACING_XYZ = (1.0, 2.0, 3.0)

EMBED = JobKind(
    name="embed",
    version="1",
    title="Embed",
    description="For tests",
    queue=Queue.BATCH,
    parameters_schema={
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "rank": {"type": "integer", "minimum": 1, "default": 10},
            "layout": {"enum": ["qtt", "tt"], "default": "qtt"},
            "oversampling": {"type": "number", "minimum": 1},
            "tolerance": {"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "null"}]},
            "nested": {"type": "object", "properties": {"seed": {"type": "integer", "default": 0}}},
        },
    },
    result_schema={"type": "object"},
)
INTERNAL = JobKind(
    name="ingest",
    version="1",
    title="Ingest",
    description="For the service alone",
    queue=Queue.INTERACTIVE,
    parameters_schema={"type": "object"},
    result_schema={"type": "object"},
    internal=True,
)


def nifti_voxels() -> np.ndarray[Any, Any]:
    """Voxels (x, y, z) of the test scan: no two planes alike, no voxel zero."""
    return np.arange(1, 1 + np.prod(SHAPE_XYZ), dtype=np.int16).reshape(SHAPE_XYZ)


@dataclass
class House:
    """The parts of one service under test."""

    root: Path
    catalogue: Catalogue
    queue: MemoryQueue
    http: httpx.Client
    parts: Services

    def send(self, body: bytes, **options: Any) -> dict[str, Any]:
        """Upload; the answer's body."""
        answer = self.http.post("/v1/volumes", content=body, **options)
        assert answer.status_code == 202, answer.text
        document: dict[str, Any] = answer.json()
        return document

    def work(self, job_id: str) -> Job:
        """Run an ingest as a worker would."""
        job = self.catalogue.claim(job_id, "worker", 60)
        assert job is not None
        assert job.volume_id is not None
        store = store_key(job.volume_id, job.attempt)
        (self.root / store).parent.mkdir(parents=True, exist_ok=True)
        with open_scan(upload_path(self.root, job.volume_id)) as scan:
            stored = ingest(scan, self.root / store)
        return self.catalogue.finish(job.id, job.attempt, {}, volume=stored, store=store)

    def ready(self, body: bytes) -> str:
        """The id of a volume that has been read."""
        accepted = self.send(body)
        self.work(accepted["job"]["id"])
        volume_id: str = accepted["volume"]["id"]
        return volume_id

    def finish(self, job_id: str, result: dict[str, Any], artifacts: tuple[Artifact, ...] = ()) -> Job:
        """Claim a job and finish it at once."""
        job = self.catalogue.claim(job_id, "worker", 60)
        assert job is not None
        return self.catalogue.finish(job.id, job.attempt, result, artifacts=artifacts)


@dataclass(frozen=True)
class Library:
    """A service, and the id of a volume that is ready."""

    house: House
    volume_id: str

    @property
    def http(self) -> httpx.Client:
        """A client of the service."""
        return self.house.http

    @property
    def address(self) -> str:
        """Of the volume."""
        return f"/v1/volumes/{self.volume_id}"


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Until it holds. Fails when that takes too long."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not true within {seconds} s"
        time.sleep(0.005)


@contextmanager
def serving(app: ASGIApp) -> Iterator[httpx.Client]:
    """A client of the application, which a real server runs on a free port of this machine."""
    server = uvicorn.Server(
        uvicorn.Config(app, port=0, log_config=None, lifespan="on", http=Protocol, ws="none")
    )
    thread = Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.005)
        port = server.servers[0].sockets[0].getsockname()[1]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=30) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def open_house(root: Path, **settings: Any) -> Iterator[House]:
    """A service on an empty data root; a worker has announced two kinds, and nothing sweeps by itself."""
    chosen = ServiceSettings(
        **{
            "data_root": root,
            "max_upload_bytes": 1 << 20,
            "sweep_every_s": 3600,
            "authentication": False,
            "zarr_origins": ("https://viewer.example",),
            **settings,
        }
    )
    catalogue = Catalogue.open(chosen.catalogue_url)
    catalogue.announce("worker", [EMBED, INTERNAL], "cpu")
    queue = MemoryQueue()
    app = create_app(chosen, catalogue, queue)
    with serving(app) as http:
        yield House(root, catalogue, queue, http, app.state.services)
