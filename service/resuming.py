"""Uploads that outlast lost connections, restarts of the service, and restarts of the client."""

from __future__ import annotations

import base64
import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from service.connection import Connection, ServiceProblem, ServiceUnreachable
from service.packing import NothingToSend
from service.schemas import Accepted, JobView, VolumeView
from service.trying import Tries, patiently
from service.upload_memory import Remembered
from service.upload_schemas import UploadView
from storage.naming import without_identity
from storage.sent_objects import MOST_IN_MANIFEST, SentObject, check_key, digest_of
from storage.upload_errors import BadKey

LAST_BYTES_S = 600.0
"""The answer to the last bytes of a file waits until the service has hashed it."""
CONNECTIONS = 4
PIECE_BYTES = 1 << 20
REQUEST_BYTES = 256 << 20
"""So much is sent in vain at most where a request is refused: the answer is read when all has been sent."""
NOT_SENT = frozenset({"manifest.json"})
"""What our own volumes hold beside a Zarr's objects."""
_GONE = frozenset({404, 410})
_TUS = {"Tus-Resumable": "1.0.0"}

Heard = Callable[[int], None]


class ResumableUploads(Connection):
    """The part of `service.client.Client` that sends scans in parts."""

    def upload_resumable(
        self,
        path: Path,
        *,
        name: str | None = None,
        on_sent: Heard = lambda sent: None,
        resume: bool = True,
    ) -> Accepted:
        """Send a scan's file by the tus protocol; `on_sent` hears the bytes that have gone out.

        A lost connection, or a service that is away for a while, is waited for and gone on with; with
        `resume`, so is an upload that an earlier process began.
        """
        size, sha256 = path.stat().st_size, sha256_of(path).hex()
        memory = Remembered(self.url, sha256, name)
        address = self._known(memory) if resume else None
        if address is None:
            address = self._begin_file(path, size, sha256, name)
            memory.write(address)
        volume_id = self._send_file(path, size, address, on_sent)
        memory.forget()
        return self._accepted(volume_id)

    def upload_zarr(
        self,
        folder: Path,
        *,
        name: str | None = None,
        on_sent: Heard = lambda sent: None,
        resume: bool = True,
        connections: int = CONNECTIONS,
    ) -> Accepted:
        """Send a Zarr v3 object by object over several connections; of one begun before, what is missing.

        Raises NothingToSend for a folder that cannot be sent like that.
        """
        manifest = manifest_of(folder)
        memory = Remembered(self.url, digest_of(manifest), name)
        address = self._known(memory) if resume else None
        if address is None:
            address = self._begin_zarr(manifest, name)
            memory.write(address)
        volume_id = self._send_objects(folder, manifest, address, on_sent, connections)
        memory.forget()
        return self._accepted(volume_id)

    def _known(self, memory: Remembered) -> str | None:
        """The address of an upload that was begun before and may be gone on with."""
        address = memory.read()
        if address is None:
            return None
        view = address.replace("/v1/tus/", "/v1/uploads/")
        try:
            patiently(lambda: self.request("GET", view))
        except ServiceProblem as error:
            if error.problem.status not in _GONE:
                raise
            memory.forget()
            return None
        return address

    def _accepted(self, volume_id: str) -> Accepted:
        def ask() -> Accepted:
            volume = VolumeView.model_validate_json(self.request("GET", f"/v1/volumes/{volume_id}").content)
            job = JobView.model_validate_json(self.request("GET", f"/v1/jobs/{volume.ingest_job}").content)
            return Accepted(volume=volume, job=job)

        return patiently(ask)

    # One file

    def _begin_file(self, path: Path, size: int, sha256: str, name: str | None) -> str:
        told = {"sha256": sha256, "filename": without_identity(path.name, "scan")}
        if name is not None:
            told["label"] = name
        metadata = ",".join(f"{key} {_base64(text.encode())}" for key, text in told.items())
        headers = {**_TUS, "Upload-Length": str(size), "Upload-Metadata": metadata}
        answer = patiently(lambda: self.request("POST", "/v1/tus", headers=headers))
        return httpx.URL(answer.headers["Location"]).path

    def _send_file(self, path: Path, size: int, address: str, on_sent: Heard) -> str:
        """Send the rest, again and again until all has arrived; the id of the volume."""
        tries, furthest = Tries(), -1
        while True:
            try:
                at, volume_id = self._offset(address)
                on_sent(at)
                if volume_id is not None:
                    return volume_id
                if at > furthest:
                    tries, furthest = Tries(), at
                until = min(size, at + REQUEST_BYTES)
                answer = self.request(
                    "PATCH",
                    address,
                    content=_bytes(path, at, until, on_sent),
                    headers={
                        **_TUS,
                        "Content-Type": "application/offset+octet-stream",
                        "Content-Length": str(until - at),
                        "Upload-Offset": str(at),
                    },
                    timeout=LAST_BYTES_S,
                )
                if until == size:
                    return str(answer.headers["X-Volume-Id"])
            except (ServiceUnreachable, ServiceProblem) as error:
                tries.another(error)

    def _offset(self, address: str) -> tuple[int, str | None]:
        """How many bytes have arrived, and the volume that they have become."""
        answer = self.request("HEAD", address, headers=_TUS)
        return int(answer.headers["Upload-Offset"]), answer.headers.get("X-Volume-Id")

    # A Zarr

    def _begin_zarr(self, manifest: Mapping[str, SentObject], name: str | None) -> str:
        entries = {key: {"size": sent.size, "sha256": sent.sha256} for key, sent in manifest.items()}
        body = {"kind": "zarr", "manifest": entries, **({} if name is None else {"name": name})}
        answer = patiently(lambda: self.request("POST", "/v1/uploads", json=body))
        return httpx.URL(answer.headers["Location"]).path

    def _send_objects(
        self,
        folder: Path,
        manifest: Mapping[str, SentObject],
        address: str,
        on_sent: Heard,
        connections: int,
    ) -> str:
        """Send what is missing, then have it completed; the id of the volume."""
        view = self._upload(address)
        count = _Count(view.received, on_sent)

        def send(key: str) -> None:
            patiently(lambda: self._send_object(address, key, folder / key, manifest[key].sha256))
            count.add(manifest[key].size)

        while view.missing:
            _for_each(view.missing, send, connections)
            view = self._upload(address)
        if view.volume_id is None:
            self._complete(address)
            view = self._upload(address)
        assert view.volume_id is not None
        return view.volume_id

    def _send_object(self, address: str, key: str, path: Path, sha256: str) -> None:
        digest = _base64(bytes.fromhex(sha256))
        size = path.stat().st_size
        headers = {"Content-Digest": f"sha-256=:{digest}:", "Content-Length": str(size)}
        self.request("PUT", f"{address}/objects/{key}", content=_bytes(path, 0, size), headers=headers)

    def _complete(self, address: str) -> None:
        """Complete an upload, if that was not done by a request whose answer was lost."""
        try:
            patiently(lambda: self.request("POST", f"{address}/complete", timeout=LAST_BYTES_S))
        except ServiceProblem as error:
            if error.problem.code != "upload-finished":
                raise

    def _upload(self, address: str) -> UploadView:
        return patiently(lambda: UploadView.model_validate_json(self.request("GET", address).content))


def manifest_of(folder: Path) -> dict[str, SentObject]:
    """The objects of a Zarr v3 in a folder. Raises NothingToSend where it holds anything else."""
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*"))}
    files = {key: path for key, path in paths.items() if path.is_file() and key not in NOT_SENT}
    if "zarr.json" not in files:
        raise NothingToSend(f"{folder}: no Zarr v3, as it has no zarr.json; send it as a zip")
    if len(files) > MOST_IN_MANIFEST:
        raise NothingToSend(f"{folder}: over {MOST_IN_MANIFEST} objects; send it as a zip, or write shards")
    try:
        for key in files:
            check_key(key)
    except BadKey as error:
        raise NothingToSend(f"{folder}: {error}; send it as a zip") from error
    return {key: SentObject(path.stat().st_size, sha256_of(path).hex()) for key, path in files.items()}


def sha256_of(path: Path) -> bytes:
    """A file's sha-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


class _Count:
    """Bytes sent by several threads."""

    def __init__(self, sent: int, on_sent: Heard) -> None:
        self._sent, self._on_sent, self._lock = sent, on_sent, threading.Lock()
        on_sent(sent)

    def add(self, size: int) -> None:
        with self._lock:
            self._sent += size
            self._on_sent(self._sent)


def _for_each(keys: Sequence[str], send: Callable[[str], None], threads: int) -> None:
    """Do something for every key, in so many threads; the first error ends it."""
    with ThreadPoolExecutor(threads) as pool:
        sent = [pool.submit(send, key) for key in keys]
        try:
            for each in sent:
                each.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _bytes(path: Path, at: int, until: int, on_sent: Heard = lambda sent: None) -> Iterator[bytes]:
    """The bytes of a file from one to before another."""
    with path.open("rb") as file:
        file.seek(at)
        while piece := file.read(min(PIECE_BYTES, until - at)):
            yield piece
            at += len(piece)
            on_sent(at)


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
