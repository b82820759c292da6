"""A service as a department has it: with keys, a DICOMweb client that holds one, and a worker run by hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from dicomweb_client.api import DICOMwebClient
from dicomweb_client.session_utils import create_session_from_auth
from house import House, open_house, wait_until
from requests.auth import AuthBase

from storage.access import Access, Scope
from storage.dicom_collections import DicomCollections
from storage.dicom_uids import UidMap
from storage.ingest import ingest
from storage.jobs import Job
from storage.readers import open_scan, readers_replacing
from storage.readers.base import Limits
from storage.tidy import store_key, upload_path

QUIET_S = 0.05
BOUNDARY = "edge"
TYPE = f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'


class _Key(AuthBase):
    def __init__(self, secret: str) -> None:
        self._secret = secret

    def __call__(self, request: Any) -> Any:
        request.headers["Authorization"] = f"Bearer {self._secret}"
        return request


@dataclass
class Department:
    """A service and one of its projects."""

    house: House
    secret: str
    http: httpx.Client

    @property
    def client(self) -> DICOMwebClient:
        """A DICOMweb client with the project's key."""
        return self.client_of(self.secret)

    def client_of(self, secret: str) -> DICOMwebClient:
        """A DICOMweb client with a key."""
        address = f"{str(self.http.base_url).rstrip('/')}/dicomweb"
        session = create_session_from_auth(_Key(secret))
        session.trust_env = False
        return DICOMwebClient(address, session=session)

    def key(self, project: str, *scopes: Scope) -> str:
        """A new key of a project."""
        access = Access(self.house.catalogue.database)
        access.put_project(project)
        return access.make_key("test", scopes or tuple(Scope), project_id=project).secret

    def new_uid(self, uid: str) -> str:
        """The UID that replaces one."""
        return UidMap.of(self.house.root)(uid)

    @property
    def collections(self) -> DicomCollections:
        """As the sweeper has them."""
        return DicomCollections(self.house.catalogue.database, self.house.root, QUIET_S)

    def stow(self, *contents: bytes, study: str | None = None, **options: Any) -> httpx.Response:
        """Store instances by one request."""
        address = "/dicomweb/studies" + ("" if study is None else f"/{study}")
        headers = {"Content-Type": TYPE, **options.pop("headers", {})}
        return self.http.post(address, content=body(*contents), headers=headers, **options)

    def closed(self, count: int = 1) -> list[Job]:
        """The jobs of the collections that become volumes, when so many have."""
        jobs: list[Job] = []
        wait_until(lambda: jobs.extend(self.collections.close_quiet()) or len(jobs) >= count)
        return jobs

    def read(self, count: int = 1) -> list[str]:
        """Make volumes of the collections, and read them; their ids."""
        return [self._ingested(job) for job in self.closed(count)]

    def _ingested(self, queued: Job) -> str:
        job = self.house.catalogue.claim(queued.id, "worker", 60)
        assert job is not None
        assert job.volume_id is not None
        store = store_key(job.volume_id, job.attempt)
        (self.house.root / store).parent.mkdir(parents=True, exist_ok=True)
        readers = readers_replacing(UidMap.of(self.house.root))
        with open_scan(upload_path(self.house.root, job.volume_id), Limits(), readers) as scan:
            stored = ingest(scan, self.house.root / store)
        self.house.catalogue.finish(job.id, job.attempt, {}, volume=stored, store=store)
        return job.volume_id


def body(*contents: bytes, media_type: str = "application/dicom") -> bytes:
    """A multipart body of some instances."""
    head = f"--{BOUNDARY}\r\nContent-Type: {media_type}\r\n\r\n".encode()
    return b"\r\n".join([*(head + content for content in contents), f"--{BOUNDARY}--\r\n".encode()])


@contextmanager
def open_department(root: Path, **settings: Any) -> Iterator[Department]:
    """A service that asks for keys; its collections are whole after a moment."""
    chosen = {"authentication": True, "stow_quiet_s": QUIET_S, "max_upload_bytes": 64 << 20, **settings}
    with open_house(root, **chosen) as house:
        department = Department(house, "", house.http)
        department.secret = department.key("radiology")
        house.http.headers["Authorization"] = f"Bearer {department.secret}"
        yield department
