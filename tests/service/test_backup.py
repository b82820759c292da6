"""A backup of a service at work, and a service made anew from it: the same results, digests and audit log."""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from house import House, open_house

from storage import backup as backups
from storage.arriving import Arrival
from storage.artifacts import ArtifactStore
from storage.audit import AuditLog
from storage.backup import back_up, verify
from storage.backup_manifest import Backup, BackupError, KeptFile
from storage.catalogue import Catalogue
from storage.jobs import Job, JobState
from storage.recovery import restore
from storage.sent_objects import SentObject
from storage.upload_sessions import UploadKind, UploadSessions, UploadState


def url(root: Path) -> str:
    return f"sqlite:///{root / 'catalogue.db'}"


def finished(house: House, volume_id: str) -> Job:
    """A job with a result and an artifact."""
    job = house.catalogue.submit("embed", {"rank": 3}, volume_id=volume_id)
    claimed = house.catalogue.claim(job.id, "worker", 60)
    assert claimed is not None
    writer = ArtifactStore(house.root / "artifacts").writer(job.id, claimed.attempt)
    artifact = writer.write_json("cores.json", {"of": job.id})
    return house.catalogue.finish(job.id, claimed.attempt, {"rank": 3}, artifacts=[artifact])


def told(house: House, volume_id: str, job_id: str) -> dict[str, Any]:
    """What clients see of a volume and a job, byte for byte."""
    volume = house.http.get(f"/v1/volumes/{volume_id}").json()
    zarr = house.http.get(f"/v1/volumes/{volume_id}/zarr/0/c/0/0/0")
    assert zarr.status_code == 200
    artifact = house.http.get(f"/v1/jobs/{job_id}/artifacts/cores.json")
    assert artifact.status_code == 200
    return {
        "volume": volume,
        "slice": house.http.get(f"/v1/volumes/{volume_id}/slices/z/3").content,
        "zarr": zarr.content,
        "result": house.http.get(f"/v1/jobs/{job_id}/result").json(),
        "artifact": artifact.content,
    }


def test_a_service_made_anew_is_the_one_that_was(house: House, nifti: bytes, tmp_path_factory: Any) -> None:
    place = tmp_path_factory.mktemp("elsewhere")
    volume_id = house.ready(nifti)
    job = finished(house, volume_id)
    running = house.catalogue.submit("embed", {}, volume_id=volume_id)
    attempt = house.catalogue.claim(running.id, "worker", 60)
    assert attempt is not None
    leaving = house.catalogue.submit("embed", {}, volume_id=volume_id)
    house.catalogue.claim(leaving.id, "worker", 60)
    house.catalogue.request_cancel(leaving.id)
    sent = house.send(nifti)
    waiting = house.catalogue.submit("embed", {}, volume_id=sent["volume"]["id"])
    before, log = told(house, volume_id, job.id), AuditLog(house.catalogue.database).records(limit=1000)

    made = back_up(url(house.root), house.root, place / "copy")
    house.finish(house.catalogue.submit("embed", {}).id, {})
    assert made.left_out == ()
    assert verify(place / "copy") == []
    _, mended = restore(place / "copy", place / "new")
    assert (mended.queued, mended.cancelled, mended.quarantined) == (1, 1, ())

    with open_house(place / "new") as again:
        assert told(again, volume_id, job.id) == before
        audit = AuditLog(again.catalogue.database)
        assert audit.verify() is None
        assert audit.records(limit=1000)[-len(log) :] == log
        assert "restore-backup" in [record.action for record in audit.records(limit=10)]
        states = {each.id: each.state for each in again.catalogue.jobs(limit=100)}
        assert states[running.id] is JobState.QUEUED
        assert states[leaving.id] is JobState.CANCELLED
        assert states[waiting.id] is JobState.WAITING
        again.work(sent["job"]["id"])
        assert again.catalogue.job(waiting.id).state is JobState.QUEUED
        taken = again.catalogue.claim(running.id, "worker", 60)
        assert taken is not None
        assert taken.attempt == attempt.attempt + 1
        again.catalogue.finish(taken.id, taken.attempt, {})


def test_it_is_one_moment_while_jobs_come_and_end(house: House, nifti: bytes, tmp_path_factory: Any) -> None:
    place = tmp_path_factory.mktemp("elsewhere")
    volume_id = house.ready(nifti)
    stop, done = threading.Event(), []

    def work() -> None:
        while not stop.is_set():
            done.append(finished(house, volume_id).id)
            if len(done) % 2:
                shutil.rmtree(house.root / "artifacts" / done[-1])
                with house.catalogue.database.writing() as connection:
                    connection.exec_driver_sql("DELETE FROM jobs WHERE id = ?", (done[-1],))

    worker = threading.Thread(target=work)
    worker.start()
    try:
        for number in range(4):
            made = back_up(url(house.root), house.root, place / str(number))
            with Catalogue.open(url(place / str(number))) as kept:
                named = {
                    f"artifacts/{job.id}/{job.attempt}/{artifact.name}"
                    for job in kept.jobs(state=JobState.SUCCEEDED, limit=10_000)
                    for artifact in job.artifacts
                }
            have = {path for path in made.files if path.startswith("artifacts/")}
            lacking = {each.path for each in made.left_out}
            assert {path for path in named if path not in have} == {
                path for path in named if str(Path(path).parent) in lacking
            }
            assert have <= named
            present = {
                path.relative_to(place / str(number)).as_posix()
                for path in (place / str(number) / "artifacts").rglob("*.json")
            }
            assert present == have
    finally:
        stop.set()
        worker.join()
    assert len(done) > 4


def test_files_on_the_same_disk_are_named_twice_and_others_are_copied(
    house: House, nifti: bytes, tmp_path_factory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path_factory.mktemp("elsewhere")
    volume_id = house.ready(nifti)
    store = house.catalogue.volume(volume_id).store
    shard = f"{store}/0/c/0/0/0"
    linked = back_up(url(house.root), house.root, place / "linked")
    assert (place / "linked" / shard).samefile(house.root / shard)

    def other_disk(self: Path, target: Path) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(Path, "hardlink_to", other_disk)
    copied = back_up(url(house.root), house.root, place / "copied")
    assert not (place / "copied" / shard).samefile(house.root / shard)
    assert copied.files[shard] == linked.files[shard]


def test_what_is_damaged_is_left_out_told_and_quarantined(
    house: House, nifti: bytes, tmp_path_factory: Any
) -> None:
    place = tmp_path_factory.mktemp("elsewhere")
    sound, damaged = house.ready(nifti), house.ready(nifti)
    store = house.catalogue.volume(damaged).store
    assert store is not None
    shard = house.root / store / "0/c/0/0/0"
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    job = finished(house, sound)
    (house.root / "artifacts" / job.id / "1" / "cores.json").write_text("{}")
    made = back_up(url(house.root), house.root, place / "copy")
    assert [each.path for each in made.left_out] == [f"artifacts/{job.id}/1", store]
    assert not any(path.startswith((store, "artifacts")) for path in made.files)
    assert verify(place / "copy") == []
    _, mended = restore(place / "copy", place / "new")
    assert mended.quarantined == (damaged,)
    with open_house(place / "new") as again:
        assert again.http.get(f"/v1/volumes/{damaged}").json()["state"] == "quarantined"
        assert again.http.get(f"/v1/volumes/{sound}/slices/z/1").status_code == 200


def test_every_changed_byte_of_a_backup_is_found(house: House, nifti: bytes, tmp_path_factory: Any) -> None:
    place = tmp_path_factory.mktemp("elsewhere")
    finished(house, house.ready(nifti))
    copy = place / "copy"
    made = back_up(url(house.root), house.root, copy)
    for path in made.files:
        content = (copy / path).read_bytes()
        (copy / path).unlink()
        (copy / path).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert [line.split(":")[0] for line in verify(copy)] == [path]
        with pytest.raises(BackupError, match=r"damaged|lacks"):
            restore(copy, place / "new")
        assert not any((place / "new").iterdir())
        (copy / path).write_bytes(content)
    assert verify(copy) == []
    document = json.loads((copy / "backup.json").read_text())
    document["files"].popitem()
    (copy / "backup.json").write_text(json.dumps(document))
    with pytest.raises(BackupError, match="was changed"):
        restore(copy, place / "new")


@pytest.mark.parametrize("path", ["../outside", "/etc/passwd", "volumes/../../outside", ""])
def test_a_backup_that_names_files_elsewhere_is_refused(tmp_path: Path, path: str) -> None:
    tmp_path.joinpath("copy").mkdir()
    kept = {path: KeptFile(0, "0" * 64)}
    Backup("2026-01-01T00:00:00+00:00", kept).write(tmp_path / "copy")
    with pytest.raises(BackupError, match="cannot be read"):
        restore(tmp_path / "copy", tmp_path / "new")


def test_what_has_arrived_of_an_upload_goes_along(house: House, tmp_path_factory: Any) -> None:
    place = tmp_path_factory.mktemp("elsewhere")
    sessions = UploadSessions(house.catalogue.database)
    ours: dict[str, Any] = {"project_id": "default", "name": "scan", "length": None}
    whole, growing = sessions.open(UploadKind.ZARR, **ours), sessions.open(UploadKind.TUS, **ours)
    for session in (whole, growing):
        Arrival(house.root, session.id).make()
    content = b"{}"
    sent = SentObject(len(content), hashlib.sha256(content).hexdigest())
    target = Arrival(house.root, whole.id).objects / "zarr.json"
    sessions.keep_object(whole.id, "zarr.json", sent, lambda: target.write_bytes(content) and None)
    Arrival(house.root, growing.id).data.write_bytes(b"half")
    assert back_up(url(house.root), house.root, place / "copy").left_out == ()
    _, mended = restore(place / "copy", place / "new")
    assert mended.uploads == 1
    with Catalogue.open(url(place / "new")) as catalogue:
        again = UploadSessions(catalogue.database)
        assert again.session(whole.id).state is UploadState.OPEN
        assert again.objects(whole.id) == {"zarr.json": sent}
        assert again.session(growing.id).state is UploadState.EXPIRED
    arrival = Arrival(place / "new", whole.id)
    assert (arrival.objects / "zarr.json").read_bytes() == content
    assert arrival.parts.is_dir()


def test_secrets_go_along_and_stay_secret(house: House, tmp_path_factory: Any) -> None:
    place = tmp_path_factory.mktemp("elsewhere")
    secret = house.root / "secrets" / "dicom-uids"
    secret.parent.mkdir(exist_ok=True)
    secret.write_bytes(b"of 32 bytes")
    back_up(url(house.root), house.root, place / "copy")
    restore(place / "copy", place / "new")
    for root in (place / "copy", place / "new"):
        brought = root / "secrets" / "dicom-uids"
        assert brought.read_bytes() == b"of 32 bytes"
        assert brought.stat().st_mode & 0o077 == 0
        assert not brought.samefile(secret)
    assert (place / "new" / "secrets").stat().st_mode & 0o077 == 0


def test_nothing_is_left_of_a_backup_that_did_not_end(
    house: House, nifti: bytes, tmp_path_factory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path_factory.mktemp("elsewhere")
    house.ready(nifti)
    monkeypatch.setattr(backups, "hashed", lambda path: (place / "nowhere").stat())
    with pytest.raises(OSError, match="nowhere"):
        backups._copy(url(house.root), house.root, place)
    with pytest.raises(OSError, match="nowhere"):
        back_up(url(house.root), house.root, place / "copy")
    assert not (place / "copy").exists()
    assert not (place / "copy.part").exists()


def test_the_catalogue_in_a_backup_is_one_sound_file(house: House, tmp_path_factory: Any) -> None:
    copy = tmp_path_factory.mktemp("elsewhere") / "copy"
    back_up(url(house.root), house.root, copy)
    assert {path.name for path in copy.iterdir()} == {"catalogue.db", "backup.json"}
    assert copy.stat().st_mode & 0o077 == 0
    with closing(sqlite3.connect(copy / "catalogue.db")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
