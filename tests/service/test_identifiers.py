"""Fault row 21: identifiers of a patient, in every place of a scan that may hold them, are found nowhere."""

from __future__ import annotations

import base64
import gzip
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from house import House, open_house
from planted import (
    ELSEWHERE,
    HEADER_NAME,
    PATIENT,
    TOKENS,
    UIDS,
    broken,
    files_below,
    found_in,
    sound,
)

from storage.jobs import JobState
from workers.jobs.export import Export
from workers.jobs.ingest import Ingest
from workers.runner import Runner
from workers.settings import WorkerSettings

NEEDED = {"DICOM zip": 30, "DICOM file": 30, "DICOM multi-frame": 30, "NIfTI": 30, "NRRD": 30, "OME-Zarr": 30}


@dataclass
class Heard:
    """All that the service said over HTTP: addresses, heads and bodies, by what they were about."""

    said: list[tuple[str, bytes]] = field(default_factory=list)
    states: dict[str, str] = field(default_factory=dict)
    warnings: dict[str, list[str]] = field(default_factory=dict)

    def hear(self, about: str, answer: httpx.Response) -> httpx.Response:
        head = "\n".join(f"{name}: {value}" for name, value in answer.headers.items())
        self.said.append((f"{about}: {answer.request.url}", f"{answer.request.url}\n{head}".encode()))
        self.said.append((f"{about}: body of {answer.request.url.path}", answer.content))
        return answer


class Clinic:
    """A service, a worker of its own, and what is heard of both."""

    def __init__(self, house: House) -> None:
        self.house, self.heard = house, Heard()
        kinds = [Ingest(), Export()]
        settings = WorkerSettings(data_root=house.root, device="cpu", lease_s=30, memory_budget_bytes=1 << 30)
        house.catalogue.announce("worker-1", [kind.announcement() for kind in kinds], "cpu")
        self._runner = Runner(house.catalogue, kinds, settings, worker="worker-1", device="cpu")

    def treat(self, about: str, body: bytes) -> None:
        """Send a scan as a browser would, have it read, and look at everything that there is about it."""
        headers = {"Content-Disposition": HEADER_NAME}
        answer = self._ask(about, "POST", "/v1/volumes", content=body, headers=headers)
        if answer.is_error:
            self.heard.states[about] = str(answer.status_code)
        else:
            self._follow(about, *(answer.json()[kind]["id"] for kind in ("volume", "job")))

    def treat_in_parts(self, about: str, body: bytes) -> None:
        """The same by tus, whose metadata hold the file's name."""
        headers = {
            "Tus-Resumable": "1.0.0",
            "Upload-Length": str(len(body)),
            "Upload-Metadata": f"filename {base64.b64encode(ELSEWHERE['file'].encode()).decode()}",
            "Content-Type": "application/offset+octet-stream",
        }
        answer = self._ask(about, "POST", "/v1/tus", content=body, headers=headers)
        assert answer.status_code == 201, answer.text
        self._ask(about, "HEAD", answer.headers["location"], headers={"Tus-Resumable": "1.0.0"})
        self._follow(about, answer.headers["X-Volume-Id"], answer.headers["X-Job-Id"])

    def look_around(self) -> None:
        """What the service says of itself."""
        for address in ("/metrics", "/v1/audit", "/v1/kinds", "/readyz", "/openapi.json"):
            assert self._ask("around", "GET", address).is_success, address

    def _follow(self, about: str, volume_id: str, job_id: str) -> None:
        volume, job = f"/v1/volumes/{volume_id}", f"/v1/jobs/{job_id}"
        self._runner.run(job_id)
        view = self._ask(about, "GET", volume).json()
        self.heard.states[about], self.heard.warnings[about] = view["state"], view["warnings"]
        for address in (job, f"{job}/logs", f"{job}/events", "/v1/volumes", "/v1/jobs"):
            assert self._ask(about, "GET", address).is_success, address
        self._ask(about, "GET", f"{job}/result")
        if view["state"] == "ready":
            self._look(about, volume, len(view["shape"]))

    def _look(self, about: str, volume: str, axes: int) -> None:
        for address in ("slices/z/0", "zarr/zarr.json", "zarr/manifest.json", "zarr/0/zarr.json"):
            self._ask(about, "GET", f"{volume}/{address}")
        self._ask(about, "GET", f"{volume}/zarr/dicom.json")
        for form in ("nifti", "ome-zarr", "dicom"):
            body = {"kind": "export", "volume_id": volume.rpartition("/")[2], "parameters": {"format": form}}
            job = self._ask(about, "POST", "/v1/jobs", json=body).json()
            ended = self._runner.run(job["id"])
            assert ended is not None
            assert ended.state is JobState.SUCCEEDED, ended.error
            for artifact in ended.artifacts:
                self._ask(about, "GET", f"/v1/jobs/{job['id']}/artifacts/{artifact.name}")

    def _ask(self, about: str, method: str, address: str, **options: Any) -> httpx.Response:
        return self.heard.hear(about, self.house.http.request(method, address, **options))


@dataclass(frozen=True)
class Leavings:
    """What is left when all have been treated: files, what was heard, and what was logged."""

    heard: Heard
    files: list[tuple[str, bytes]]
    logs: str


@pytest.fixture(scope="module")
def leavings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Leavings]:
    """Of every scan, sound and broken, after the real service and the real worker had it."""
    scans, lines = {**sound(), **broken()}, list[str]()
    handler = _Lines(lines)
    logging.getLogger().addHandler(handler)
    before = logging.getLogger().level
    logging.getLogger().setLevel(logging.DEBUG)
    logging.getLogger("httpcore").setLevel(logging.WARNING)
    root = tmp_path_factory.mktemp("clinic")
    try:
        with open_house(root) as house:
            clinic = Clinic(house)
            for about, body in scans.items():
                clinic.treat(about, body)
            clinic.treat_in_parts("DICOM zip, by tus", scans["DICOM zip"])
            clinic.treat_in_parts("zip, spoilt, by tus", scans["zip, spoilt"])
            clinic.look_around()
            files = list(files_below(root))
        yield Leavings(clinic.heard, [*files, *files_below(root)], "\n".join(lines))
    finally:
        logging.getLogger().setLevel(before)
        logging.getLogger().removeHandler(handler)


class _Lines(logging.Handler):
    """Every record of every logger, as a log file would have it, with its traceback."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__(logging.DEBUG)
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.startswith(("httpx", "httpcore")):  # the test's own client
            return
        self._lines.append(logging.Formatter("%(name)s %(levelname)s %(message)s").format(record))


def test_the_identifiers_are_in_what_was_sent() -> None:
    scans = sound()
    assert len(PATIENT) == 30
    for about, least in NEEDED.items():
        assert len(found_in(scans[about])) >= least, about
    everything = set.union(*map(found_in, [*scans.values(), *broken().values()]), {"file"})
    assert everything == set(TOKENS)
    assert found_in(gzip.compress(PATIENT["PatientName"].upper().encode())) == {"PatientName"}


def test_what_is_sound_is_read_and_what_is_broken_is_refused(leavings: Leavings) -> None:
    states = leavings.heard.states
    assert {about: states[about] for about in sound()} == dict.fromkeys(sound(), "ready")
    assert not [about for about in broken() if states[about] == "ready"]
    assert (states["DICOM zip, by tus"], states["zip, spoilt, by tus"]) == ("ready", "rejected")
    assert sum(states[about] == "rejected" for about in broken()) >= 20


@pytest.mark.parametrize("where", ["files", "http", "logs"])
def test_no_identifier_is_found(leavings: Leavings, where: str) -> None:
    looked_at = {
        "files": leavings.files,
        "http": leavings.heard.said,
        "logs": [("log", leavings.logs.encode())],
    }[where]
    assert sum(len(body) for _, body in looked_at) > 1000
    hits = {about: found for about, body in looked_at if (found := found_in(body) | found_in(about.encode()))}
    assert not hits


def test_nothing_is_left_of_uploads(leavings: Leavings) -> None:
    names = [name for name, _ in leavings.files]
    assert any(name.startswith("catalogue.db") for name in names)
    assert any(name.endswith("dicom.json") for name in names)
    assert any(name.endswith("volume.dicom.zip") for name in names)
    assert not [name for name in names if name.startswith("uploads/")]


def test_nothing_reaches_standard_output(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    scans = {**sound(), **broken()}
    capfd.readouterr()
    with open_house(tmp_path) as house:
        clinic = Clinic(house)
        for about in ("DICOM, text for spacing", "NRRD, doubled", "zip, spoilt", "DICOM zip"):
            clinic.treat(about, scans[about])
    written = "".join(capfd.readouterr())
    assert not found_in(written.encode())


def test_text_in_the_picture_is_warned_of(leavings: Leavings) -> None:
    assert any("burned into the picture" in text for text in leavings.heard.warnings["DICOM zip"])
    assert not any("burned" in text for text in leavings.heard.warnings["NIfTI"])


def test_uids_are_replaced_and_the_same_one_by_the_same(leavings: Leavings) -> None:
    texts = [body.decode() for about, body in leavings.heard.said if about.endswith("zarr/zarr.json")]
    kept = {uid for text in texts for uid in _uids(text)}
    assert len(kept) == 3
    assert all(uid.startswith("2.25.") and len(uid) <= 64 for uid in kept)
    assert not kept & set(UIDS.values())
    assert ELSEWHERE["file"] not in "".join(texts)


def _uids(text: str) -> Iterator[str]:
    for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        at = text.find(f'"{name}": "')
        if at >= 0:
            yield text[at:].split('"')[3]
