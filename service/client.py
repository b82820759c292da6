"""A small typed client of the service's API, used by the command line."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
from pydantic import JsonValue

from service.connection import KEY_VARIABLE, ServiceProblem, ServiceUnreachable, problem_of
from service.resuming import ResumableUploads, sha256_of
from service.schemas import Accepted, JobView, KindList, KindView, Problem, VolumePage, VolumeView
from storage.naming import without_identity
from storage.records import VolumeState

__all__ = ["KEY_VARIABLE", "Client", "ServiceProblem", "ServiceUnreachable"]

PIECE_BYTES = 1 << 20
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 2.0
OUTAGE_S = 60.0
"""How long a wait for a job goes on while the service does not answer."""


class Client(ResumableUploads):
    """One service at `url`, asked with an API key: `key`, else that of the environment (TOMOTRAIN_API_KEY).

    A context manager. Every method raises ServiceProblem or ServiceUnreachable.
    """

    def alive(self) -> bool:
        """Whether a Tomotrain service answers at the address."""
        try:
            answer = self._http.get("/openapi.json", timeout=5.0)
            return bool(answer.is_success and answer.json()["info"]["title"] == "Tomotrain")
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError):
            return False

    def upload(
        self, path: Path, *, name: str | None = None, on_sent: Callable[[int], None] = lambda sent: None
    ) -> Accepted:
        """Send a scan's file. Its sha-256 goes with it; `on_sent` hears the bytes sent so far.

        `name` is a label for it; the file's own name may be a patient's, and goes only where it cannot be.
        """
        digest, called = base64.b64encode(sha256_of(path)).decode(), without_identity(path.name, "scan")
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(path.stat().st_size),
            "Content-Digest": f"sha-256=:{digest}:",
            "Content-Disposition": f"attachment; filename*=UTF-8''{quote(called, safe='')}",
        }
        label = {} if name is None else {"name": name}
        answer = self.request(
            "POST", "/v1/volumes", params=label, content=_pieces(path, on_sent), headers=headers
        )
        return Accepted.model_validate_json(answer.content)

    def submit(
        self, kind: str, parameters: Mapping[str, JsonValue], *, volume_id: str | None = None
    ) -> JobView:
        """Submit a job."""
        body = {"kind": kind, "volume_id": volume_id, "parameters": dict(parameters)}
        return JobView.model_validate_json(self.request("POST", "/v1/jobs", json=body).content)

    def sent_before(self, path: Path) -> VolumeView | None:
        """The newest volume that was sent as exactly this file and not refused; None: it is to be sent."""
        query = {"sha256": sha256_of(path).hex()}
        page = VolumePage.model_validate_json(self.request("GET", "/v1/volumes", params=query).content)
        usable = (VolumeState.READY, VolumeState.VALIDATING)
        return next((volume for volume in page.volumes if volume.state in usable), None)

    def volume(self, volume_id: str) -> VolumeView:
        """One volume."""
        return VolumeView.model_validate_json(self.request("GET", f"/v1/volumes/{volume_id}").content)

    def kinds(self) -> list[KindView]:
        """What workers have announced that they can do."""
        return KindList.model_validate_json(self.request("GET", "/v1/kinds").content).kinds

    def job(self, job_id: str) -> JobView:
        """One job."""
        return JobView.model_validate_json(self.request("GET", f"/v1/jobs/{job_id}").content)

    def cancel(self, job_id: str) -> JobView:
        """Ask for a job to stop."""
        return JobView.model_validate_json(self.request("POST", f"/v1/jobs/{job_id}/cancel").content)

    def result(self, job_id: str) -> dict[str, Any]:
        """What a succeeded job found."""
        found: dict[str, Any] = self.request("GET", f"/v1/jobs/{job_id}/result").json()
        return found

    @contextmanager
    def pieces(self, path: str) -> Iterator[Iterator[bytes]]:
        """The bytes at an address, as they come; of an artifact, or of an object of a volume's store."""
        try:
            with self._http.stream("GET", path) as answer:
                if answer.is_error:
                    answer.read()
                    raise ServiceProblem(problem_of(answer))
                yield answer.iter_bytes(PIECE_BYTES)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ServiceUnreachable(self.url, str(error) or type(error).__name__) from error

    def wait(self, job_id: str, *, on_change: Callable[[JobView], None] = lambda job: None) -> JobView:
        """Wait for a job to succeed; `on_change` hears each new state.

        Outlasts a restart of the service. Jobs come without parameters that are long lists. Raises
        ServiceProblem when the job failed or was cancelled.
        """
        pause_s, revision = FIRST_PAUSE_S, ""
        while True:
            answer = self._patiently(
                f"/v1/jobs/{job_id}?brief=true", {"If-None-Match": revision} if revision else {}
            )
            if answer.status_code != httpx.codes.NOT_MODIFIED:
                revision, pause_s = answer.headers["ETag"], FIRST_PAUSE_S
                job = JobView.model_validate_json(answer.content)
                on_change(job)
                if job.state.terminal:
                    return _succeeded(job)
            time.sleep(pause_s)
            pause_s = min(pause_s * 1.5, LONGEST_PAUSE_S)

    def _patiently(self, path: str, headers: Mapping[str, str]) -> httpx.Response:
        deadline = time.monotonic() + OUTAGE_S
        while True:
            try:
                return self.request("GET", path, headers=headers)
            except ServiceUnreachable:
                if time.monotonic() > deadline:
                    raise
            except ServiceProblem as error:
                if not error.problem.retryable or time.monotonic() > deadline:
                    raise
            time.sleep(LONGEST_PAUSE_S)


def _succeeded(job: JobView) -> JobView:
    if job.error is not None:
        raise ServiceProblem(job.error)
    if job.result is None:
        title, detail = "The job was cancelled", f"job {job.id} ended without a result"
        raise ServiceProblem(
            Problem(type="", title=title, status=409, detail=detail, instance="", code="cancelled")
        )
    return job


def _pieces(path: Path, on_sent: Callable[[int], None]) -> Iterator[bytes]:
    sent = 0
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            yield piece
            sent += len(piece)
            on_sent(sent)
