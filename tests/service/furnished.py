"""A house with something of everything in it: what requests of any kind may be about."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from errands import fail, offer
from house import House, open_house

from storage.access import Access, Scope
from storage.artifacts import ArtifactStore
from storage.jobs import JobState

ARTIFACT = "a.json"
TUS = {"Tus-Resumable": "1.0.0"}


@dataclass(frozen=True)
class Furniture:
    """Ids of what is there."""

    volumes: list[str]
    jobs: dict[JobState, str]
    webhooks: list[str]
    uploads: list[str]
    tus_uploads: list[str]
    keys: list[str]
    study: str
    series: str
    instance: str


@contextmanager
def keyed_house(root: Path, **settings: Any) -> Iterator[House]:
    """A service that asks for keys; its client holds one for everything. Webhooks stay on this machine."""
    with open_house(root, authentication=True, webhook_hosts=("127.0.0.1",), **settings) as house:
        made = Access(house.catalogue.database).make_key("everything", tuple(Scope))
        house.http.headers["Authorization"] = f"Bearer {made.secret}"
        yield house


def furnish(house: House, scan: bytes) -> Furniture:
    """A volume that has been read and one that has not, a job in each state, a webhook, uploads and a key."""
    offer(house)
    ready, unread = house.ready(scan), house.send(scan)["volume"]["id"]
    study = _uid(house, "/dicomweb/studies", "0020000D")
    series = _uid(house, f"/dicomweb/studies/{study}/series", "0020000E")
    return Furniture(
        volumes=[ready, unread],
        study=study,
        series=series,
        instance=_uid(house, f"/dicomweb/studies/{study}/series/{series}/instances", "00080018"),
        jobs={state: _job(house, state, ready, unread) for state in JobState},
        webhooks=[_webhook(house)],
        uploads=[_zarr_upload(house)],
        tus_uploads=[_tus_upload(house)],
        keys=[Access(house.catalogue.database).make_key("spare", [Scope.JOBS_READ]).key.id],
    )


def _job(house: House, state: JobState, ready: str, unread: str) -> str:
    """A job that is brought into a state."""
    volume_id = unread if state is JobState.WAITING else ready
    job_id = _made(house.http.post("/v1/jobs", json={"kind": "embed", "volume_id": volume_id}))["id"]
    if state in (JobState.RUNNING, JobState.CANCELLING):
        assert house.catalogue.claim(job_id, "worker", 86_400) is not None
    if state in (JobState.CANCELLED, JobState.CANCELLING):
        house.catalogue.request_cancel(job_id)
    elif state is JobState.FAILED:
        fail(house, job_id)
    elif state is JobState.SUCCEEDED:
        written = (
            ArtifactStore(house.root / "artifacts").writer(job_id, 1).write_bytes(ARTIFACT, b"{}", "a/b")
        )
        house.finish(job_id, {"ranks": [1, 2]}, (written,))
    assert house.catalogue.job(job_id).state is state
    return str(job_id)


def _uid(house: House, address: str, attribute: str) -> str:
    """Of the first that is found at an address of QIDO-RS."""
    answer = house.http.get(address)
    assert answer.status_code == 200, answer.text
    return str(answer.json()[0][attribute]["Value"][0])


def _webhook(house: House) -> str:
    made = _made(house.http.post("/v1/webhooks", json={"url": "http://127.0.0.1:9/hook"}))
    _made(house.http.post(f"/v1/webhooks/{made['id']}/test"))
    return str(made["id"])


def _zarr_upload(house: House) -> str:
    body = b'{"zarr_format": 3}'
    digest = f"sha-256=:{base64.b64encode(hashlib.sha256(body).digest()).decode()}:"
    upload_id = _made(house.http.post("/v1/uploads", json={"kind": "zarr"}))["id"]
    address = f"/v1/uploads/{upload_id}/objects/zarr.json"
    answer = house.http.put(address, content=body, headers={"Content-Digest": digest})
    assert answer.status_code == 201, answer.text
    return str(upload_id)


def _tus_upload(house: House) -> str:
    answer = house.http.post("/v1/tus", headers={**TUS, "Upload-Length": "1000"})
    assert answer.status_code == 201, answer.text
    return answer.headers["location"].rpartition("/")[2]


def _made(answer: Any) -> dict[str, Any]:
    assert answer.status_code in (201, 202), answer.text
    document: dict[str, Any] = answer.json()
    return document


@dataclass(frozen=True)
class Room:
    """A furnished service, and what the addresses of its operations are filled with."""

    house: House
    names: dict[str, str]

    def ask(self, request: str, **options: Any) -> Any:
        method, _, path = request.format_map(self.names).partition(" ")
        return self.house.http.request(method, path, **options)


def names_of(furniture: Furniture) -> dict[str, str]:
    """What stands in the addresses below in braces."""
    return {
        "volume": furniture.volumes[0],
        "unread": furniture.volumes[1],
        "queued": furniture.jobs[JobState.QUEUED],
        "succeeded": furniture.jobs[JobState.SUCCEEDED],
        "upload": furniture.uploads[0],
        "tus": furniture.tus_uploads[0],
        "webhook": furniture.webhooks[0],
        "study": f"/dicomweb/studies/{furniture.study}",
        "series": furniture.series,
        "instance": furniture.instance,
    }
