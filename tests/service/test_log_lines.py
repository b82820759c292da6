"""The log of a running service: a JSON object a line, each request once, with its id, and no name in it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from house import wait_until

NAME = "Mustermann"
WORKER = """
import logging
from celery.utils.log import get_task_logger
from structlog.contextvars import bound_contextvars
from workers.celery_app import create_app
from workers.settings import WorkerSettings

app = create_app(WorkerSettings(log_format="json"), list)
app.log.setup(loglevel="INFO")
with bound_contextvars(job_id="job_1", attempt=2):
    get_task_logger("celery.task.x").info("from a task")
    logging.getLogger("tomotrain.workers").warning("of %s", "us", exc_info=ValueError("why"))
logging.getLogger("httpx").info("every connection")
print("to standard output")
"""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[httpx.Client, Path]]:
    """uvicorn as operators may run it, its access log not switched off; a client, and its log."""
    tmp_path = tmp_path_factory.mktemp("service")
    environment = {
        "PATH": "/usr/bin:/bin",
        "TOMOTRAIN_DATA_ROOT": str(tmp_path / "var"),
        "TOMOTRAIN_BROKER_URL": "redis://127.0.0.1:1/0",
        "TOMOTRAIN_LOG_FORMAT": "json",
        "TOMOTRAIN_AUTHENTICATION": "false",
    }
    command = [sys.executable, "-m", "uvicorn", "service.app:build", "--factory", "--port", "0"]
    log = tmp_path / "log"
    with log.open("wb") as output:
        child = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
    try:
        wait_until(lambda: "running on" in log.read_text(), 30)
        url = log.read_text().split("running on ")[1].split()[0]
        with httpx.Client(base_url=url, trust_env=False, timeout=60) as client:
            yield client, log
    finally:
        child.terminate()
        child.wait(20)


def lines(log: Path) -> list[dict[str, Any]]:
    """Every line after uvicorn's first words, which it says before the application is there."""
    return [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]


def test_each_request_is_one_line_without_a_name(service: tuple[httpx.Client, Path]) -> None:
    client, log = service
    headers = {"X-Request-Id": "request-1", "User-Agent": NAME, "Referer": f"http://{NAME}"}
    assert client.get(f"/v1/volumes/vol_1?patient={NAME}", headers=headers).status_code == 404
    assert client.get(f"/{NAME}").status_code == 404
    named = {"Content-Disposition": f'attachment; filename="{NAME}.nii"', "X-Request-Id": "request-2"}
    assert client.post(f"/v1/volumes?name={NAME}", content=NAME.encode(), headers=named).status_code == 415
    assert client.get("/livez").status_code == 200
    assert client.get("/readyz", headers={"X-Request-Id": "request-3"}).status_code == 503
    wait_until(lambda: len([line for line in lines(log) if line["logger"] == "tomotrain.access"]) >= 4)
    told = [line for line in lines(log) if line["logger"] == "tomotrain.access"]
    assert [(line["method"], line["route"], line["status"]) for line in told] == [
        ("GET", "/v1/volumes/{volume_id}", 404),
        ("GET", "none", 404),
        ("POST", "/v1/volumes", 415),
        ("GET", "/readyz", 503),
    ]
    assert [told[number]["request_id"] for number in (0, 2, 3)] == ["request-1", "request-2", "request-3"]
    assert told[2]["received"] == len(NAME)
    assert told[0]["sent"] > 0
    for line in lines(log):
        assert set(line) >= {"time", "level", "logger", "message"}
    unformatted = [line for line in log.read_text().splitlines() if not line.startswith("{")]
    assert len(unformatted) <= 3, unformatted
    assert NAME not in log.read_text()


def test_what_is_logged_for_a_request_has_its_id(service: tuple[httpx.Client, Path]) -> None:
    client, log = service
    client.get("/readyz", headers={"X-Request-Id": "request-4"})
    wait_until(lambda: "request-4" in log.read_text())
    told = [line for line in lines(log) if line.get("request_id") == "request-4"]
    assert {line["logger"] for line in told} >= {"tomotrain.access"}


def test_celerys_loggers_write_the_same_lines(tmp_path: Path) -> None:
    environment = {
        "PATH": "/usr/bin:/bin",
        "TOMOTRAIN_DATA_ROOT": str(tmp_path),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    answer = subprocess.run(
        [sys.executable, "-c", WORKER],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
        timeout=60,
    )
    assert answer.stdout == "to standard output\n"
    task, ours = map(json.loads, answer.stderr.splitlines())
    assert (task["message"], task["job_id"], task["attempt"]) == ("from a task", "job_1", 2)
    assert (ours["message"], ours["level"], ours["job_id"]) == ("of us", "warning", "job_1")
    assert "ValueError: why" in ours["exception"]
