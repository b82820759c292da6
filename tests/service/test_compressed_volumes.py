"""Compressed volumes that were damaged, or that this version cannot read: what the service says, and does."""

from __future__ import annotations

import io
import json
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import nibabel
import numpy as np
import pytest
from house import House, open_house
from problem_checks import assert_problem
from rich.console import Console
from support.compressed import published

from service.client import Client
from service.fetching import FetchFailed, fetch_artifact, fetch_store
from service.schemas import ArtifactView
from service.watcher import Watcher
from storage.derived import Coding, framed, putt
from storage.jobs import Job, JobState
from storage.putt.zarr_codec import PuttCodec
from storage.records import VolumeRecord, VolumeState
from workers.jobs.decompress import Decompress
from workers.jobs.export import Export
from workers.jobs.ingest import Ingest
from workers.runner import Runner
from workers.settings import WorkerSettings

KINDS = (Ingest(), Decompress(), Export())
SHAPE_XYZ = (24, 20, 66)
SHARD = "0/c/0/0/0"


@dataclass(frozen=True)
class Store:
    """A service, a worker that is run by hand, and a scan that has been read."""

    house: House
    runner: Runner
    source: VolumeRecord

    def compressed(self, coding: Coding = putt(20.0)) -> VolumeRecord:  # noqa: B008
        """The scan, compressed."""
        return published(self.house.catalogue, self.house.root, self.source, "decompress", coding)

    def file(self, volume: VolumeRecord, key: str) -> Path:
        return self.house.root / str(volume.store) / key

    def get(self, volume: VolumeRecord, what: str = "slices/z/3") -> httpx.Response:
        return self.house.http.get(f"/v1/volumes/{volume.id}/{what}")

    def run(self, kind: str, volume: VolumeRecord, **parameters: Any) -> Job:
        """A job that was submitted over HTTP, at its end."""
        body = {"kind": kind, "volume_id": volume.id, "parameters": parameters}
        answer = self.house.http.post("/v1/jobs", json=body)
        assert answer.status_code == 202, answer.text
        ended = self.runner.run(answer.json()["id"])
        assert ended is not None
        return ended

    def check_lives(self) -> None:
        """The service answers, and shows other volumes."""
        assert self.house.http.get("/readyz").status_code == 200
        assert self.get(self.source).status_code == 200
        assert self.get(self.compressed()).status_code == 200


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with open_house(tmp_path_factory.mktemp("store")) as house:
        house.catalogue.announce("worker", [kind.announcement() for kind in KINDS], "cpu")
        settings = WorkerSettings(
            data_root=house.root, device="cpu", memory_budget_bytes=2 << 30, retry_pause_s=0
        )
        runner = Runner(house.catalogue, KINDS, settings, worker="worker", device="cpu")
        accepted = house.send(scan())
        runner.run(accepted["job"]["id"])
        yield Store(house, runner, house.catalogue.volume(accepted["volume"]["id"]))


def scan() -> bytes:
    x, y, z = np.ogrid[tuple(slice(-1, 1, n * 1j) for n in SHAPE_XYZ)]
    body = 1000 * np.exp(-2 * (x**2 + y**2 + z**2)) + np.random.default_rng(0).normal(0, 5, SHAPE_XYZ)
    return bytes(nibabel.Nifti1Image(body.astype(np.int16), np.diag([1, 2, 3, 1])).to_bytes())


# Damage at rest


def flipped(content: bytes) -> bytes:
    return content[:9] + bytes([content[9] ^ 4]) + content[10:]


def halved(content: bytes) -> bytes:
    return content[: len(content) // 2]


def renamed(content: bytes) -> bytes:
    """Sound JSON, of which another digest comes."""
    document = json.loads(content)
    document["objects"][SHARD]["seal"] += 1
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("key", "change", "named"),
    [
        (SHARD, flipped, SHARD),
        (SHARD, halved, SHARD),
        (SHARD, None, SHARD),
        ("manifest.json", renamed, "manifest.json"),
        ("manifest.json", halved, "manifest.json"),
        ("manifest.json", None, "manifest.json"),
        ("0/zarr.json", flipped, "0/zarr.json"),
    ],
)
def test_damage_at_rest_is_told_and_a_job_that_meets_it_closes_the_volume(
    store: Store, key: str, change: Callable[[bytes], bytes] | None, named: str
) -> None:
    volume = store.compressed()
    file = store.file(volume, key)
    content = file.read_bytes()
    file.unlink()
    if change is not None:
        file.write_bytes(change(content))
    answer = store.get(volume)
    body = assert_problem(answer, 500, "corrupt-volume")
    assert body["key"].startswith(named)
    assert str(store.house.root) not in answer.text
    assert store.house.catalogue.volume(volume.id).state is VolumeState.READY

    count = len(store.house.catalogue.volumes())
    job = store.run("decompress", volume)
    assert job.state is JobState.FAILED
    failed = assert_problem(store.house.http.get(f"/v1/jobs/{job.id}/result"), 409, "job-failed")
    assert failed["cause"]["code"] == "corrupt-volume"
    shown = store.house.http.get(f"/v1/volumes/{volume.id}").json()
    assert (shown["state"], shown["error"]["code"]) == ("quarantined", "corrupt-volume")
    assert str(store.house.root) not in json.dumps([failed, shown])
    for what in ("slices/z/3", "zarr/0/zarr.json"):
        assert_problem(store.get(volume, what), 409, "volume-not-ready")
    assert len(store.house.catalogue.volumes()) == count
    store.check_lives()


# What this version cannot read


@pytest.mark.parametrize("lacks", ["version", "library"])
def test_what_cannot_be_decoded_here_is_told_with_the_cure_and_stays_open(
    store: Store, monkeypatch: pytest.MonkeyPatch, lacks: str
) -> None:
    if lacks == "version":
        volume, cure = store.compressed(), "use a newer one"
        monkeypatch.setattr(PuttCodec, "newest", 0)
    else:
        pytest.importorskip("imagecodecs")
        volume, cure = store.compressed(framed("zfp", {"tolerance": 4.0})), "pip install 'tomotrain[peers]'"
        monkeypatch.setitem(sys.modules, "imagecodecs", None)
    answer = store.get(volume)
    assert cure in assert_problem(answer, 501, "unreadable-volume")["detail"]
    job = store.run("decompress", volume)
    assert job.error is not None
    assert (job.state, job.error["code"], job.error["retryable"]) == (
        JobState.FAILED,
        "unreadable-volume",
        False,
    )
    assert cure in job.error["detail"]
    monkeypatch.undo()
    assert store.get(volume).status_code == 200
    assert store.run("decompress", volume).state is JobState.SUCCEEDED


# Sent to us


@pytest.fixture(scope="module")
def ours(store: Store) -> dict[str, bytes]:
    """The files of a compressed volume as the job `export` gives them."""
    job = store.run("export", store.compressed(), format="ome-zarr", keep_codecs=True)
    answer = store.house.http.get(f"/v1/jobs/{job.id}/artifacts/{job.artifacts[0].name}")
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def sent(store: Store, files: dict[str, bytes]) -> VolumeRecord:
    """A volume, when its ingest has ended."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    accepted = store.house.send(packed.getvalue())
    store.runner.run(accepted["job"]["id"])
    return store.house.catalogue.volume(accepted["volume"]["id"])


def newer(content: bytes) -> bytes:
    changed = content.replace(b'"version": 1', b'"version": 2')
    assert changed != content
    return changed


@pytest.mark.parametrize(
    ("key", "change", "code", "words"),
    [
        (SHARD, flipped, "invalid-scan", ("corrupt chunk", "c/0/0/0")),
        (SHARD, halved, "invalid-scan", ("corrupt chunk", "c/0/0/0")),
        ("0/zarr.json", newer, "unsupported-scan", ("version 2", "use a newer one")),
    ],
)
def test_a_compressed_store_that_is_sent_damaged_or_too_new_is_refused(
    store: Store,
    ours: dict[str, bytes],
    key: str,
    change: Callable[[bytes], bytes],
    code: str,
    words: tuple[str, ...],
) -> None:
    assert sent(store, ours).state is VolumeState.READY
    record = sent(store, {**ours, key: change(ours[key])})
    shown = store.house.http.get(f"/v1/volumes/{record.id}").json()
    assert (shown["state"], shown["error"]["code"]) == ("rejected", code)
    for word in words:
        assert word in shown["error"]["detail"]
    assert str(store.house.root) not in json.dumps(shown)
    assert_problem(store.get(record), 409, "volume-not-ready")
    assert not (store.house.root / "volumes" / record.id).exists()
    store.check_lives()


# Fetched from a service that sends more than it should


def inflating(transport: httpx.BaseTransport, key: str, size: int) -> httpx.MockTransport:
    """A way to a service on which one object becomes longer."""

    def answer(request: httpx.Request) -> httpx.Response:
        found = transport.handle_request(request)
        content = found.read()
        if request.url.path.endswith(key):
            content += b" " * (size - len(content))
        return httpx.Response(found.status_code, content=content)

    return httpx.MockTransport(answer)


@pytest.fixture
def quiet() -> Iterator[Watcher]:
    with Watcher(Console(file=io.StringIO())) as watcher:
        yield watcher


def test_no_more_is_fetched_than_was_announced(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quiet: Watcher
) -> None:
    monkeypatch.setattr("service.fetching.MOST_MANIFEST_BYTES", 100_000)
    volume = store.compressed()
    entry = json.loads(store.file(volume, "manifest.json").read_text())["objects"][SHARD]
    for key, size, most in [
        ("manifest.json", 100_001, 100_000),
        (SHARD, entry["size"] + 1, entry["size"]),
    ]:
        with (
            httpx.HTTPTransport() as transport,
            Client(str(store.house.http.base_url), transport=inflating(transport, key, size)) as client,
            pytest.raises(FetchFailed, match=f"{key} has more than {most:,} bytes"),
        ):
            fetch_store(client, client.volume(volume.id), tmp_path / "a.zarr", quiet)
        assert list(tmp_path.iterdir()) == []


def test_an_artifact_is_fetched_no_further_than_its_size(
    store: Store, tmp_path: Path, quiet: Watcher
) -> None:
    job = store.run("export", store.source)
    with Client(str(store.house.http.base_url)) as client:
        (told,) = client.job(job.id).artifacts
        for size, more in ((told.size, False), (told.size - 1, True)):
            announced = ArtifactView(**{**told.model_dump(), "size": size})
            if more:
                with pytest.raises(FetchFailed, match=f"has more than {size:,} bytes"):
                    fetch_artifact(client, announced, tmp_path / "b.nii.gz", quiet)
            else:
                fetch_artifact(client, announced, tmp_path / "a.nii.gz", quiet)
    assert [path.name for path in tmp_path.iterdir()] == ["a.nii.gz"]
