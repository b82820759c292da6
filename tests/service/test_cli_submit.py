"""`tomotrain submit`: a file of jobs, submitted once."""

from __future__ import annotations

import json
from pathlib import Path
from threading import Thread

import pytest
from errands import fail, listed
from house import House, wait_until
from typer.testing import CliRunner

from service.cli import app
from service.client import ServiceProblem
from service.commands.submit import MOST_BYTES, batches

RUNNER = CliRunner()


def jobs_file(path: Path, *jobs: object) -> str:
    path.write_text("\n".join(json.dumps(job) for job in jobs) + "\n\n")
    return str(path)


def test_a_file_is_submitted_once_and_anew_where_that_is_wanted(office: House, tmp_path: Path) -> None:
    wanted = [{"kind": "errand", "parameters": {"rank": rank}} for rank in range(1, 1003)]
    file, url = jobs_file(tmp_path / "jobs.jsonl", *wanted), str(office.http.base_url)
    first, second = (RUNNER.invoke(app, ["submit", file, "--url", url]) for _ in range(2))
    assert first.exit_code == 0, first.output
    assert first.stdout == second.stdout
    ids = [line.split()[0] for line in first.stdout.splitlines()]
    assert [office.catalogue.job(job_id).parameters["rank"] for job_id in ids[-2:]] == [1001, 1002]
    assert len(office.catalogue.jobs(limit=5000)) == 1002
    anew = RUNNER.invoke(app, ["submit", file, "--url", url, "--again", "--json"])
    assert len(json.loads(anew.stdout)["jobs"]) == 1002
    assert len(office.catalogue.jobs(limit=5000)) == 2004


def test_waiting_tells_how_each_ended(office: House, tmp_path: Path) -> None:
    file = jobs_file(tmp_path / "jobs.jsonl", {"kind": "errand"}, {"kind": "errand"})

    def work() -> None:
        wait_until(lambda: len(listed(office)) == 2)
        last, first = listed(office)
        office.finish(first, {})
        fail(office, last)

    worker = Thread(target=work)
    worker.start()
    answer = RUNNER.invoke(app, ["submit", file, "--wait", "--url", str(office.http.base_url)])
    worker.join()
    assert answer.exit_code == 1
    assert [line.split()[2] for line in answer.stdout.splitlines()] == ["succeeded", "failed"]
    assert "too large" in answer.stderr


def test_a_job_that_does_not_fit_is_told_and_nothing_is_submitted(office: House, tmp_path: Path) -> None:
    file = jobs_file(tmp_path / "jobs.jsonl", {"kind": "errand"}, {"kind": "paint"})
    answer = RUNNER.invoke(app, ["submit", file, "--url", str(office.http.base_url)])
    assert isinstance(answer.exception, ServiceProblem)
    assert "/jobs/1/kind" in str(answer.exception)
    assert listed(office) == []


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "no job"),
        (b"\n \n", "no job"),
        (b'{"kind": "x"}\n{', "line 2"),
        (b"[1]", "line 1"),
        (b"\xff", "read"),
    ],
)
def test_a_file_that_holds_no_jobs(tmp_path: Path, content: bytes, told: str) -> None:
    file = tmp_path / "jobs.jsonl"
    file.write_bytes(content)
    answer = RUNNER.invoke(app, ["submit", str(file), "--url", "http://127.0.0.1:9"])
    assert told in str(answer.exception)


def test_batches_are_as_large_as_the_service_takes() -> None:
    long = {"kind": "x" * (MOST_BYTES // 3)}
    assert [len(batch) for batch in batches([{}] * 2001)] == [1000, 1000, 1]
    assert [len(batch) for batch in batches([long] * 5)] == [2, 2, 1]
    assert [job for batch in batches([long, {}, long]) for job in batch] == [long, {}, long]
