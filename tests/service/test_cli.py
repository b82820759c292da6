"""The command `tomotrain`, as a process; and what it sends."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from typing import Any

import pytest
from house import House, wait_until

from service.analysis import Found
from service.client import Client, ServiceProblem, ServiceUnreachable
from service.commands.demo import example_scan
from service.packing import NothingToSend, sendable
from service.report import rows
from service.schemas import JobView, VolumeView

COMMAND = [sys.executable, "-c", "from service.cli import main; main()"]
RESULT: dict[str, Any] = {
    "samples": 11590,
    "unique_samples": 4080,
    "unique_cubes": 2616,
    "cube_size": 9,
    "share_read": 0.125,
    "chunks_read": 24,
    "chunk_share_read": 1.0,
    "bytes_read": 340_000,
    "ranks": [3, 9, 10],
    "sampling": "block",
    "oversampling": 2.0,
    "sweeps": 1,
    "tolerance": None,
    "converged": None,
    "set_sizes": [3, 9, 20],
    "seconds": 5.3,
    "peak_memory_bytes": 422 << 20,
    "certificate": {
        "held_out": 1000,
        "confidence": 0.95,
        "overall": {"centred_error": 0.25, "upper_bound": 0.5, "note": None},
    },
}


def run(*arguments: str, timeout: float = 90, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, **options)


def assert_one_line(answer: subprocess.CompletedProcess[str], *words: str) -> None:
    assert answer.returncode == 2
    assert answer.stdout == ""
    (line,) = [line for line in answer.stderr.splitlines() if line.startswith("tomotrain: ")]
    assert answer.stderr.endswith(f"{line}\n")
    for word in words:
        assert word in line


def test_a_scan_that_is_not_there(tmp_path: Path) -> None:
    assert_one_line(run("analyze", str(tmp_path / "no.nii")), "no.nii", "give the path of a scan")
    assert_one_line(run("demo", "--scan", str(tmp_path / "no.nii")), "no.nii", "give the path of a scan")


def test_a_service_that_is_not_there(tmp_path: Path, nifti: bytes) -> None:
    scan = tmp_path / "a.nii"
    scan.write_bytes(nifti)
    answer = run("analyze", str(scan), "--url", "http://127.0.0.1:1")
    assert_one_line(answer, "http://127.0.0.1:1", "is the service running?")
    assert_one_line(run("analyze", str(scan), "--url", "not a url"), "no answer")


def test_what_is_refused_is_said_with_cause_and_cure(house: House, tmp_path: Path) -> None:
    url = str(house.http.base_url)
    scan = tmp_path / "notes.nii"
    scan.write_text("no scan at all " * 50)
    assert_one_line(run("analyze", str(scan), "--url", url), "none of the formats", "NIfTI")
    scan.write_bytes(b"")
    assert_one_line(run("analyze", str(scan), "--url", url), "empty")
    folder = tmp_path / "nothing"
    folder.mkdir()
    assert_one_line(run("analyze", str(folder), "--url", url), "the folder is empty")


def test_wrong_usage_ends_with_2() -> None:
    answer = run("analyze")
    assert answer.returncode == 2
    assert "Missing argument 'scan'" in answer.stderr
    assert run("up", "--port", "99999").returncode == 2


def worker_for(house: House, result: dict[str, Any]) -> threading.Thread:
    """Ingests the next scan, then finishes the next job with a result."""

    def work() -> None:
        wait_until(lambda: house.catalogue.jobs() != [], 60)
        house.work(house.catalogue.jobs()[0].id)
        wait_until(lambda: len(house.catalogue.jobs()) == 2, 60)
        house.finish(house.catalogue.jobs()[0].id, result)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_analyze_prints_the_numbers(house: House, tmp_path: Path, nifti: bytes) -> None:
    scan = tmp_path / "head.nii"
    scan.write_bytes(nifti)
    worker = worker_for(house, RESULT)
    answer = run("analyze", str(scan), "--url", str(house.http.base_url), "--rank", "7", "--layout", "tt")
    worker.join()
    assert answer.returncode == 0, answer.stderr
    words = " ".join(answer.stdout.replace("│", " ").split())
    for part in [
        "head.nii",
        "12 x 16 x 20 (z, y, x)",
        "3 x 2 x 1 mm",
        "11,590 entries looked at (4,080 unique)",
        "2,616 of 9³ voxels",
        "12.50%",
        "24 (100% of the finest level), 0.34 MB",
        "3, 9, 10",
        "up to 20 per bond (2 times the rank, 1 sweep); sampling by block",
        "centred error 0.25",
        "at most 0.5 at 95%",
        "5.30 s",
        "422 MiB",
    ]:
        assert part in words
    assert house.catalogue.jobs()[0].parameters == {"rank": 7, "layout": "tt"}


def test_analyze_prints_json_and_nothing_else(house: House, tmp_path: Path, nifti: bytes) -> None:
    scan = tmp_path / "head.nii"
    scan.write_bytes(nifti)
    worker = worker_for(house, RESULT)
    answer = run("analyze", str(scan), "--url", str(house.http.base_url), "--json")
    worker.join()
    document = json.loads(answer.stdout)
    assert document["result"] == RESULT
    assert document["volume"]["shape"] == [12, 16, 20]


def reported(result: dict[str, Any]) -> dict[str, str]:
    """The rows of a report on a result."""
    volume = VolumeView.model_construct(
        name="a.nii", spacing=None, array_shape=[2, 2, 2], axes=["z", "y", "x"]
    )
    return dict(rows(Found(volume, JobView.model_construct(id="job_1", result=result))))


def test_the_report_says_how_fibres_were_chosen() -> None:
    adapted = {
        "oversampling": None,
        "sweeps": None,
        "tolerance": 0.02,
        "converged": True,
        "sampling": "scalar",
    }
    assert reported(RESULT | adapted)["fibres chosen"] == (
        "up to 20 per bond (ranks found for a tolerance of 0.02); sampling by scalar"
    )
    missed = reported(RESULT | {"tolerance": 0.02, "converged": False})["fibres chosen"]
    assert "2 times the rank, 1 sweep; no ranks found for a tolerance of 0.02" in missed
    assert "2 sweeps" in reported(RESULT | {"sweeps": 2})["fibres chosen"]


def test_a_result_of_an_earlier_version_is_reported_without_what_it_lacks() -> None:
    newer = {"sampling", "oversampling", "sweeps", "tolerance", "converged", "set_sizes"}
    told = reported({name: value for name, value in RESULT.items() if name not in newer})
    assert set(reported(RESULT)) - set(told) == {"fibres chosen"}


def test_flags_become_parameters_and_the_rest_is_left_to_the_service(
    house: House, tmp_path: Path, nifti: bytes
) -> None:
    scan = tmp_path / "a.nii"
    scan.write_bytes(nifti)
    worker = worker_for(house, RESULT)
    answer = run(
        "analyze", str(scan), "--url", str(house.http.base_url), "--oversampling", "1.5", "--tolerance", "0.1"
    )
    worker.join()
    assert answer.returncode == 0, answer.stderr
    parameters = house.catalogue.jobs()[0].parameters
    assert (parameters["oversampling"], parameters["tolerance"]) == (1.5, 0.1)


def test_parameters_that_do_not_fit(house: House, tmp_path: Path, nifti: bytes) -> None:
    scan = tmp_path / "head.nii"
    scan.write_bytes(nifti)
    worker = threading.Thread(
        target=lambda: (
            wait_until(lambda: house.catalogue.jobs() != [], 60),
            house.work(house.catalogue.jobs()[0].id),
        )
    )
    worker.start()
    answer = run("analyze", str(scan), "--url", str(house.http.base_url), "--layout", "ring")
    worker.join()
    assert_one_line(answer, "/layout", "'ring' is not one of")


def test_a_failed_job_ends_with_its_reason(house: House, nifti: bytes, tmp_path: Path) -> None:
    scan = tmp_path / "a.nii"
    scan.write_bytes(nifti)
    with Client(str(house.http.base_url)) as client:
        accepted = client.upload(scan)
        job = house.catalogue.claim(accepted.job.id, "worker", 60)
        assert job is not None
        error = {"code": "invalid-scan", "detail": "cut short", "retryable": False}
        house.catalogue.fail(job.id, job.attempt, error)
        with pytest.raises(ServiceProblem, match="cut short") as refusal:
            client.wait(accepted.job.id)
        assert refusal.value.problem.status == 422
        again = client.upload(scan)
        assert client.cancel(again.job.id).state == "cancelled"
        with pytest.raises(ServiceProblem, match="without a result"):
            client.wait(again.job.id)


def test_the_client_announces_name_and_digest_and_counts_bytes(
    house: House, nifti: bytes, tmp_path: Path
) -> None:
    scan, sent = tmp_path / "kopf 'ü'.nii", []
    scan.write_bytes(nifti)
    with Client(str(house.http.base_url)) as client:
        assert client.alive()
        accepted = client.upload(scan, on_sent=sent.append)
        labelled = client.upload(scan, name="kopf 'ü'")
    assert (accepted.volume.name, labelled.volume.name) == ("scan.nii", "kopf 'ü'")
    assert sent[-1] == len(nifti)


def test_what_is_no_tomotrain_service() -> None:
    with Client("http://127.0.0.1:1") as client:
        assert not client.alive()
        with pytest.raises(ServiceUnreachable):
            client.job("job_1")


def test_a_folder_travels_as_a_stored_zip(tmp_path: Path) -> None:
    folder = tmp_path / "scan.zarr"
    (folder / "c" / "0").mkdir(parents=True)
    (folder / "zarr.json").write_text("{}")
    (folder / "c" / "0" / "0").write_bytes(b"\0" * 1000)
    (folder / "link").symlink_to("/etc/passwd")
    with sendable(folder) as packed:
        assert packed.name == "scan.zarr.zip"
        with zipfile.ZipFile(packed) as archive:
            assert archive.namelist() == ["c/0/0", "zarr.json"]
            assert {member.compress_type for member in archive.infolist()} == {zipfile.ZIP_STORED}
            assert archive.testzip() is None
    assert not packed.exists()
    with pytest.raises(NothingToSend), sendable(tmp_path / "none"):
        pass


def test_the_example_ships_with_an_installed_package() -> None:
    assert example_scan().stat().st_size > 100_000


@pytest.mark.slow
def test_the_demo_ends_with_a_prediction_and_leaves_nothing(tmp_path: Path) -> None:
    environment = {"PATH": "/usr/bin:/bin", "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    answer = run("demo", "--json", env=environment, timeout=600)
    assert answer.returncode == 0, answer.stderr
    document = json.loads(answer.stdout)
    assert document["result"]["shape"] == [24, 96, 128]
    training, prediction = (document[name]["result"] for name in ("training", "prediction"))
    assert training["regressor"] in ("random_voxels", "cpic")
    assert training["metrics"]["r2"]["low"] > 0
    assert prediction["value"] == pytest.approx(document["truth"], abs=0.3)
    assert prediction["notice"] == "For research. Not a medical device."
    assert list(tmp_path.iterdir()) == []
