"""The doctor finds what is wrong, says what cures it, and changes nothing."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import time
from collections import namedtuple
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from house import House, open_house
from sqlalchemy import update
from typer.testing import CliRunner

from service import machine
from service.cli import app
from service.examination import Verdict, examine, sound, worst
from storage.audit import AuditLog
from storage.ids import new_id
from storage.tables import audit, jobs

Partition = namedtuple("Partition", "mountpoint fstype")


def told(root: Path, *options: str) -> tuple[int, dict[str, dict[str, str]]]:
    """The exit status, and each result by name."""
    if "--port" not in options:
        options = (*options, "--port", "1")
    answer = CliRunner().invoke(app, ["doctor", "--json", "--data-root", str(root), *options])
    document = json.loads(answer.stdout)
    assert document["verdict"] == ("ok", "warning", "fault")[answer.exit_code]
    for result in document["results"]:
        assert bool(result["cure"]) == (result["verdict"] != "ok"), result
    return answer.exit_code, {result["name"]: result for result in document["results"]}


@pytest.fixture
def well(house: House, monkeypatch: pytest.MonkeyPatch) -> House:
    """A service that lacks nothing but a broker."""
    monkeypatch.setattr("service.machine.CeleryQueue", lambda url: house.queue)
    monkeypatch.setenv("TOMOTRAIN_BROKER_URL", "redis://127.0.0.1:1/0")
    monkeypatch.setenv("TOMOTRAIN_DISK_KEPT_SHARE", "0")
    monkeypatch.setenv("TOMOTRAIN_DISK_KEPT_BYTES", "0")
    return house


def test_all_is_well(well: House, nifti: bytes) -> None:
    well.ready(nifti)
    port = str(well.http.base_url.port)
    status, results = told(well.root, "--port", port)
    assert status == 0, [result for result in results.values() if result["cure"]]
    assert set(results) >= {"python", "libraries", "clock", "data root", "disk", "file system", "secrets"}
    assert set(results) >= {"broker", "port", "gpu", "catalogue file", "catalogue", "audit log", "orphans"}
    assert results["volumes"]["found"] == "1 ready, none quarantined"
    assert results["port"]["found"].endswith("a service answers")


def test_a_place_without_anything_is_a_fault(tmp_path: Path) -> None:
    status, results = told(tmp_path / "nowhere")
    assert status == 2
    assert "is not there" in results["data root"]["found"]
    assert not (tmp_path / "nowhere").exists()


def test_rows_that_want_looking_after_are_told(well: House, nifti: bytes) -> None:
    volume_id = well.ready(nifti)
    well.catalogue.quarantine(volume_id, {"code": "corrupt-volume", "detail": "x", "retryable": False})
    well.catalogue.submit("embed", {})
    with well.catalogue.database.writing() as connection:
        connection.execute(update(jobs).where(jobs.c.state == "queued").values(created_at=time.time() - 9000))
        connection.exec_driver_sql("UPDATE workers SET last_seen = 0")
    orphan = well.root / "artifacts" / new_id("job")
    orphan.mkdir(parents=True)
    os.utime(orphan, (0, 0))
    status, results = told(well.root)
    assert status == 1
    assert results["volumes"]["verdict"] == "warning"
    assert "batch: 2.5 h" in results["queued jobs"]["found"]
    assert results["workers"]["found"] == "none is alive"
    assert results["orphans"]["found"].startswith("1 orphans")
    assert orphan.is_dir()


def test_a_lease_that_nobody_takes_back_is_told(well: House) -> None:
    well.catalogue.claim(well.catalogue.submit("embed", {}).id, "worker", -1)
    assert "1 have lost their workers" in told(well.root)[1]["running jobs"]["found"]


def test_a_changed_audit_log_is_a_fault(well: House) -> None:
    for number in range(3):
        AuditLog(well.catalogue.database).append(
            actor="a", action="b", subject=f"{number}", outcome=200, request_id="r", project_id=None
        )
    with well.catalogue.database.writing() as connection:
        connection.execute(update(audit).where(audit.c.sequence == 2).values(actor="somebody else"))
    status, results = told(well.root)
    assert status == 2
    assert results["audit log"]["found"].startswith("record 2 was changed")


def test_a_damaged_catalogue_is_a_fault(tmp_path: Path) -> None:
    with open_house(tmp_path) as house:
        for _ in range(50):
            house.catalogue.submit("embed", {"rank": 3})
    path = tmp_path / "catalogue.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    content = bytearray(path.read_bytes())
    content[4096 * 2 :] = bytes(len(content) - 4096 * 2)
    path.write_bytes(content)
    status, results = told(tmp_path)
    assert status == 2
    assert results["catalogue file"]["verdict"] == "fault"


@pytest.mark.parametrize(("step", "verdict"), [("0001", "warning"), ("9999", "fault")])
def test_a_schema_of_another_release_is_told_and_left(well: House, step: str, verdict: str) -> None:
    with well.catalogue.database.writing() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = ?", (step,))
    results = told(well.root)[1]
    assert results["catalogue"]["verdict"] == verdict
    with well.catalogue.database.reading() as connection:
        assert connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar() == step


def test_a_disk_without_room_is_told(well: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOMOTRAIN_DISK_KEPT_SHARE", "0.9999999")
    assert "uploads are refused" in told(well.root)[1]["disk"]["found"]


def test_a_key_that_others_can_read_is_a_fault(well: House) -> None:
    key = well.root / "run" / "key"
    key.parent.mkdir(exist_ok=True)
    key.write_text("tt_")
    key.chmod(0o644)
    assert told(well.root)[1]["secrets"]["verdict"] == "fault"
    key.chmod(0o600)
    assert told(well.root)[1]["secrets"]["verdict"] == "ok"


def test_sqlite_on_a_network_is_a_fault(well: House, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = [Partition("/", "ext4"), Partition(str(well.root.resolve()), "nfs4")]
    monkeypatch.setattr(machine.psutil, "disk_partitions", lambda all: mounts)  # noqa: A006 - psutil's name
    assert told(well.root)[1]["file system"]["verdict"] == "fault"


def test_a_broker_and_a_port_that_are_not_ours_are_told(well: House) -> None:
    well.queue.down = True
    with socket.create_server(("127.0.0.1", 0)) as other:
        status, results = told(well.root, "--port", str(other.getsockname()[1]))
    assert status == 2
    assert results["broker"]["verdict"] == "fault"
    assert results["port"]["verdict"] == "warning"


def test_libraries_of_another_version_are_told(well: House, monkeypatch: pytest.MonkeyPatch) -> None:
    known = machine._version
    changed = {"zarr": "2.18.0", "celery": None}
    monkeypatch.setattr(machine, "_version", lambda name: changed.get(name, known(name)))
    found = told(well.root)[1]["libraries"]["found"]
    assert found == "zarr 2.18.0 is not >=3.1.6; celery is missing"


@pytest.mark.parametrize(("status", "verdict"), [(0, "ok"), (9, "warning")])
def test_the_driver_is_asked_for_its_gpus(
    well: House, tmp_path_factory: Any, monkeypatch: pytest.MonkeyPatch, status: int, verdict: str
) -> None:
    tool = tmp_path_factory.mktemp("bin") / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\necho 'GPU, 1000 MiB'\nexit {status}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tool.parent), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert told(well.root)[1]["gpu"]["verdict"] == verdict


def test_a_look_that_fails_does_not_end_the_examination() -> None:
    def broken() -> Iterator[Any]:
        yield sound("first", "fine")
        raise OSError("no disk")

    results = list(examine([("broken", broken), ("next", lambda: iter([sound("next", "fine")]))]))
    assert [(result.name, result.verdict) for result in results] == [
        ("first", Verdict.OK),
        ("broken", Verdict.FAULT),
        ("next", Verdict.OK),
    ]
    assert "OSError: no disk" in results[1].found
    assert worst(results) is Verdict.FAULT
    assert worst([]) is Verdict.OK


def test_people_see_a_table(well: House) -> None:
    answer = CliRunner().invoke(app, ["doctor", "--data-root", str(well.root)])
    assert "data root" in answer.stdout
    assert answer.exit_code in (0, 1)
