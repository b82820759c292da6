"""What belongs to nobody is found and removed, and nothing else, whatever the service is doing."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from house import House
from typer.testing import CliRunner

from service.cli import app
from storage.artifacts import ArtifactStore
from storage.checkpoints import checkpoint_folder
from storage.garbage import DAY_S, collect, find
from storage.ids import derived_id, new_id
from storage.jobs import Job
from storage.tidy import tidy, upload_path
from storage.upload_sessions import UploadKind, UploadSessions


def put(path: Path, content: bytes = b"bytes", age_s: float = 2 * DAY_S) -> Path:
    """A file that was last touched so long ago, and its folders with it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    for each in (path, *path.parents[:3]):
        os.utime(each, (time.time() - age_s,) * 2)
    return path


def aged(root: Path) -> None:
    """Make everything look as if nobody had touched it for two days."""
    for path in root.rglob("*"):
        os.utime(path, (time.time() - 2 * DAY_S,) * 2)


def artifact(house: House, job: Job) -> Path:
    folder = house.root / "artifacts" / job.id / str(job.attempt)
    ArtifactStore(house.root / "artifacts").writer(job.id, job.attempt).write_bytes("a.json", b"{}", "x/y")
    return folder


def everything(root: Path) -> dict[str, bytes]:
    places = ("volumes", "artifacts", "checkpoints", "uploads", "arriving", "logs")
    return {
        str(path): path.read_bytes()
        for place in places
        for path in (root / place).rglob("*")
        if path.is_file()
    }


def claimed(house: House) -> Job:
    job = house.catalogue.claim(house.catalogue.submit("embed", {}).id, "worker", 600)
    assert job is not None
    return job


def litter(house: House, volume_id: str, done: Job) -> list[str]:
    """One orphan of each kind; their paths."""
    root = house.root
    store = house.catalogue.volume(volume_id).store
    assert store is not None
    paths = [
        put(root / "volumes" / new_id("vol") / "1.zarr" / "zarr.json").parents[1],
        put(root / "volumes" / volume_id / "9.zarr" / "0" / "c").parents[1],
        put(root / "artifacts" / new_id("job") / "1" / "a.json").parents[1],
        put(root / "artifacts" / done.id / "7" / "a.json").parent,
        put(root / "artifacts" / done.id / str(done.attempt) / "a.json.part"),
        put(checkpoint_folder(root, new_id("job")) / "state.safetensors").parent,
        put(checkpoint_folder(root, done.id) / "state.safetensors").parent,
        put(root / "logs" / f"{new_id('job')}.jsonl"),
        put(root / "uploads" / new_id("vol")),
        put(root / "uploads" / f"{new_id('vol')}.part"),
        put(root / "uploads" / volume_id),
        put(root / "arriving" / new_id("upl") / "data").parent,
    ]
    aged(root)
    return sorted(path.relative_to(root).as_posix() for path in paths)


def test_each_kind_of_orphan_is_found_and_removed_and_the_rest_is_left(house: House, nifti: bytes) -> None:
    volume_id, done = house.ready(nifti), claimed(house)
    artifact(house, done)
    house.catalogue.finish(done.id, done.attempt, {})
    tidy(house.root, house.catalogue)
    aged(house.root)
    before = everything(house.root)
    assert find(house.root, house.catalogue) == []
    paths = litter(house, volume_id, done)
    found = find(house.root, house.catalogue)
    assert [orphan.path for orphan in found] == paths
    assert all(orphan.reason and orphan.size == 5 and orphan.age_s > DAY_S for orphan in found)
    assert [orphan.path for orphan in collect(house.root, house.catalogue)] == paths
    assert everything(house.root) == before
    assert collect(house.root, house.catalogue) == []


def test_what_is_new_is_left_alone(house: House) -> None:
    put(house.root / "volumes" / new_id("vol") / "1.zarr" / "zarr.json", age_s=3600)
    assert find(house.root, house.catalogue) == []
    assert len(find(house.root, house.catalogue, older_than_s=1800)) == 1


def test_what_somebody_works_on_is_left_alone_however_old(house: House, nifti: bytes) -> None:
    root, running = house.root, claimed(house)
    ingest = house.catalogue.claim(house.send(nifti)["job"]["id"], "worker", 600)
    assert ingest is not None
    assert ingest.volume_id is not None
    session = UploadSessions(house.catalogue.database).open(
        UploadKind.TUS, project_id="default", name="scan", length=5
    )
    kept = [
        put(root / "volumes" / derived_id(running.id) / "1.zarr" / "zarr.json"),
        put(root / "volumes" / ingest.volume_id / "1.zarr" / "zarr.json"),
        put(root / "artifacts" / running.id / "1" / "a.json"),
        put(checkpoint_folder(root, running.id) / "drafts" / "state.safetensors"),
        put(root / "logs" / f"{running.id}.jsonl"),
        put(root / "arriving" / session.id / "data"),
        put(root / "lost+found" / "important"),
        put(root / "volumes" / "notes.txt"),
    ]
    coming = put(root / "uploads" / session.future_volume)
    aged(root)
    assert find(root, house.catalogue) == []
    coming.unlink()
    assert collect(root, house.catalogue) == []
    assert all(path.is_file() for path in kept)
    assert upload_path(root, ingest.volume_id).is_file()


def test_it_is_safe_while_volumes_are_made_and_jobs_end(house: House, nifti: bytes) -> None:
    stop, made = threading.Event(), []

    def work() -> None:
        while not stop.is_set():
            volume_id, job = house.ready(nifti), claimed(house)
            artifact(house, job)
            house.catalogue.finish(job.id, job.attempt, {})
            made.append((volume_id, job))

    worker = threading.Thread(target=work)
    worker.start()
    try:
        for _ in range(30):
            found = find(house.root, house.catalogue, older_than_s=-1)
            assert {orphan.path.split("/")[0] for orphan in found} <= {"uploads"}
            assert collect(house.root, house.catalogue) == []
    finally:
        stop.set()
        worker.join()
    assert made
    for volume_id, job in made:
        assert house.http.get(f"/v1/volumes/{volume_id}/slices/z/1").status_code == 200
        assert (house.root / "artifacts" / job.id / "1" / "a.json").is_file()


def test_a_link_is_removed_and_not_followed(house: House, tmp_path_factory: Any) -> None:
    outside = put(tmp_path_factory.mktemp("outside") / "kept")
    (house.root / "artifacts").mkdir()
    link = house.root / "artifacts" / new_id("job")
    link.symlink_to(outside.parent)
    collect(house.root, house.catalogue, older_than_s=-1)
    assert outside.is_file()


@pytest.mark.parametrize("dry", [True, False])
def test_by_command(house: House, dry: bool) -> None:
    orphan = put(house.root / "artifacts" / new_id("job") / "1" / "a.json")
    arguments = ["gc", "--data-root", str(house.root), "--json", *(["--dry-run"] if dry else [])]
    answer = CliRunner().invoke(app, arguments)
    assert answer.exit_code == 0, answer.output
    told = json.loads(answer.stdout)
    assert (told["removed"], told["count"], told["bytes"]) == (not dry, 1, 5)
    assert orphan.exists() is dry


def test_a_place_without_a_catalogue_is_refused(tmp_path: Path) -> None:
    answer = CliRunner().invoke(app, ["gc", "--data-root", str(tmp_path)])
    assert "no catalogue.db" in str(answer.exception)
    assert not list(tmp_path.iterdir())
