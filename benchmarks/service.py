"""The service under load, on one machine with its whole stack: broker, workers, API, API keys and audit log.

`upload`: a sound NIfTI scan of random voxels, 2 GiB, sent as one body from another process, against a raw
copy of the file that is hashed (SHA-256) and synced; each twice, in turn, the faster.

    upload_mb_s, raw_copy_mb_s          megabytes a second
    upload_ratio                        the first over the second
    api_rss_mib_during_2gb_upload       most memory that the API's process had meanwhile
    api_rss_growth_mib                  how much more than before
    api_rss_growth_256mb_mib            the same for a scan of 256 MB: flat if no less

`jobs`: JOBS embeds of a small scan are submitted over one connection, while POLLERS ask once a second for one
of the jobs each with its entity tag, and as often a bare FastAPI route (one dictionary, no database) in a
process of its own.

    submit_p50_ms, submit_p99_ms        of one POST /v1/jobs
    poll_p50_ms, poll_p99_ms            of one GET /v1/jobs/{id}
    bare_fastapi_p50_ms, _p99_ms        of the bare route, in the same seconds
    poll_ratio                          of the p99s
    not_modified                        share of polls that were answered by 304
    jobs_per_s                          from the first submission to the end of the last job
    lost, doubled                       jobs that did not succeed; jobs of more than one attempt or result
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

from benchmarks.service_pollers import Polled, Polling
from benchmarks.targets import Target, judged, number, show_targets
from service.client import Client
from service.stack import Stack

CASES = ("upload", "jobs")
LARGE, SMALL = (1024, 1024, 1024), (512, 512, 512)
"""Of int16: 2 GiB and 256 MiB."""
PIECE = 1 << 20
MB, MIB = 1e6, float(1 << 20)
JOBS, POLLERS = 1000, 200
SIDE = 24
EMBED = {"rank": 2}
LONGEST_S = 1800.0
ROUNDS = 2
TARGETS = (
    Target("upload_ratio", 0.5, at_least=True),
    Target("api_rss_growth_mib", 64),
    Target("poll_ratio", 3),
    Target("lost", 0),
    Target("doubled", 0),
)
Row = dict[str, Any]


def run(only: Sequence[str] | None = None) -> Row:
    """Both cases, or those named."""
    if unknown := sorted(set(only or ()) - set(CASES)):
        raise SystemExit(f"no case {', '.join(unknown)}: there are {', '.join(CASES)}")
    cases = only or CASES
    found: Row = {}
    with tempfile.TemporaryDirectory(prefix="tomotrain-service-") as folder:
        if "upload" in cases:
            found |= of_uploads(Path(folder) / "uploads")
        if "jobs" in cases:
            found |= of_jobs(Path(folder) / "jobs")
    return {**found, "targets": judged(found, TARGETS)}


# Uploads


def of_uploads(folder: Path) -> Row:
    """A large scan and a small one, against a raw copy."""
    folder.mkdir()
    large, small = folder / "large.nii", folder / "small.nii"
    write_scan(large, LARGE, seed=0)
    write_scan(small, SMALL, seed=1)
    size = large.stat().st_size
    uploads, copies = [], []
    with stack(folder / "root") as running, Client(running.url, key=running.key) as client:
        with watched_rss(api_process()) as modest:
            upload(client, small)
        for _ in range(ROUNDS):
            copies.append(copied_and_hashed(large, folder / "copy"))
            with watched_rss(api_process()) as memory:
                uploads.append(upload(client, large))
    speed, raw = size / MB / min(uploads), size / MB / min(copies)
    return {
        "upload_mb_s": speed,
        "raw_copy_mb_s": raw,
        "upload_ratio": speed / raw,
        "api_rss_mib_during_2gb_upload": memory["most"],
        "api_rss_growth_mib": memory["most"] - memory["before"],
        "api_rss_growth_256mb_mib": modest["most"] - modest["before"],
    }


def write_scan(path: Path, shape: tuple[int, int, int], *, seed: int) -> None:
    """A sound NIfTI-1 file of random voxels, which no file system makes smaller."""
    from nibabel.nifti1 import Nifti1Header

    header = Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape(shape)
    header.set_zooms((1.0, 1.0, 1.0))
    header["vox_offset"], header["magic"] = 352, b"n+1"
    draw = np.random.default_rng(seed)
    with path.open("wb") as file:
        file.write(header.binaryblock + bytes(4))
        for _ in range(shape[2]):
            file.write(draw.integers(-1024, 3072, shape[:2], dtype=np.int16).tobytes())


def upload(client: Client, path: Path) -> float:
    """Seconds until the answer; the job that would read the scan is cancelled."""
    began = time.perf_counter()
    with path.open("rb") as file:
        answer = httpx.post(
            f"{client.url}/v1/volumes",
            content=iter(lambda: file.read(PIECE), b""),
            headers={"Content-Length": str(path.stat().st_size), **client.authorization},
            timeout=LONGEST_S,
            trust_env=False,
        )
    seconds = time.perf_counter() - began
    answer.raise_for_status()
    client.cancel(answer.json()["job"]["id"])
    return seconds


def copied_and_hashed(source: Path, target: Path) -> float:
    """Seconds of a copy in pieces, hashed and synced; the copy is removed."""
    began = time.perf_counter()
    digest = hashlib.sha256()
    with source.open("rb") as here, target.open("wb") as there:
        while piece := here.read(PIECE):
            digest.update(piece)
            there.write(piece)
        there.flush()
        os.fsync(there.fileno())
    seconds = time.perf_counter() - began
    target.unlink()
    return seconds


@contextmanager
def watched_rss(process: psutil.Process) -> Iterator[dict[str, float]]:
    """`before` and `most`, MiB, of a process while the block runs."""
    memory = {"before": process.memory_info().rss / MIB, "most": 0.0}
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.02):
            memory["most"] = max(memory["most"], process.memory_info().rss / MIB)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield memory
    finally:
        ended.set()
        thread.join()


# Jobs


def of_jobs(folder: Path) -> Row:
    """Submissions, polls and work at the same time."""
    folder.mkdir()
    scan = folder / "scan.nii"
    write_scan(scan, (SIDE, SIDE, SIDE), seed=2)
    with stack(folder / "root") as running, Client(running.url, key=running.key) as client, bare() as other:
        accepted = client.upload(scan)
        client.wait(accepted.job.id)
        volume = accepted.volume.id
        first = [client.submit("embed", EMBED, volume_id=volume).id for _ in range(POLLERS)]
        url = httpx.URL(running.url)
        service = Polled(
            url.host, url.port or 80, tuple(f"/v1/jobs/{job}" for job in first), client.authorization
        )
        began = time.perf_counter()
        with polled({"service": service, "bare": other}) as heard:
            latencies, jobs = submitted(client, volume, JOBS - len(first))
            ended = all_ended(client, [*first, *jobs])
            seconds = time.perf_counter() - began
    polls, bare_polls = heard["service"], heard["bare"]
    statuses = {int(status): count for status, count in polls["statuses"].items()}
    return {
        "submit_p50_ms": percentile(latencies, 50),
        "submit_p99_ms": percentile(latencies, 99),
        "poll_p50_ms": percentile(polls["seconds"], 50),
        "poll_p99_ms": percentile(polls["seconds"], 99),
        "bare_fastapi_p50_ms": percentile(bare_polls["seconds"], 50),
        "bare_fastapi_p99_ms": percentile(bare_polls["seconds"], 99),
        "poll_ratio": percentile(polls["seconds"], 99) / percentile(bare_polls["seconds"], 99),
        "polls": len(polls["seconds"]),
        "not_modified": statuses.get(304, 0) / len(polls["seconds"]),
        "refused_polls": sum(count for status, count in statuses.items() if status not in (200, 304)),
        "jobs_per_s": JOBS / seconds,
        "lost": sum(row["state"] != "succeeded" for row in ended),
        "doubled": sum(row["attempt"] != 1 for row in ended) + len(ended) - len({row["id"] for row in ended}),
    }


def submitted(client: Client, volume: str, count: int) -> tuple[list[float], list[str]]:
    """Seconds of each submission, and the jobs' ids."""
    seconds, ids = [], []
    with httpx.Client(base_url=client.url, headers=client.authorization, trust_env=False, timeout=60) as http:
        for _ in range(count):
            body = {"kind": "embed", "volume_id": volume, "parameters": EMBED}
            began = time.perf_counter()
            answer = http.post("/v1/jobs", json=body)
            seconds.append(time.perf_counter() - began)
            answer.raise_for_status()
            ids.append(answer.json()["id"])
    return seconds, ids


def all_ended(client: Client, ids: Sequence[str]) -> list[Row]:
    """The rows of jobs once they have ended; those that never end are as they are."""
    deadline = time.monotonic() + LONGEST_S
    waiting, ended = list(ids), []
    with httpx.Client(base_url=client.url, headers=client.authorization, trust_env=False, timeout=60) as http:
        while waiting:
            row = http.get(f"/v1/jobs/{waiting[0]}", params={"brief": "true"}).json()
            if row["state"] in ("succeeded", "failed", "cancelled") or time.monotonic() > deadline:
                ended.append(row)
                waiting.pop(0)
            else:
                time.sleep(0.25)
    return ended


@contextmanager
def polled(targets: dict[str, Polled]) -> Iterator[dict[str, Any]]:
    """Pollers of all targets in a process of their own while the block runs; what they heard after it."""
    heard: dict[str, Any] = {}
    polling = Polling(LONGEST_S, POLLERS, 1.0, targets)
    command = [sys.executable, "-m", "benchmarks.service_pollers", polling.to_json()]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield heard
        out, _ = process.communicate("stop\n", timeout=60)
        heard |= json.loads(out)
    finally:
        process.kill()
        process.wait()


@contextmanager
def bare() -> Iterator[Polled]:
    """A FastAPI application of one route, in a process of its own, on a free port."""
    command = [
        sys.executable,
        "-m",
        "uvicorn",
        "benchmarks.service_bare:app",
        "--port",
        "0",
        "--no-access-log",
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        port = next(
            int(line.split("127.0.0.1:")[1].split()[0]) for line in process.stderr if "127.0.0.1:" in line
        )
        drain = threading.Thread(target=process.stderr.read, daemon=True)
        drain.start()
        yield Polled("127.0.0.1", port, ("/",))
    finally:
        process.terminate()
        process.wait()


# Both


@contextmanager
def stack(root: Path) -> Iterator[Stack]:
    """The embedded stack as `tomotrain up` starts it, but for the limits of a sender."""
    environment = {
        **os.environ,
        "TOMOTRAIN_REQUESTS_PER_S": "100000",
        "TOMOTRAIN_REQUESTS_AT_ONCE": "100000",
    }
    with Stack(root, port=0, environment=environment) as running:
        yield running


def api_process() -> psutil.Process:
    """The API's process, a child of this one."""
    for child in psutil.Process().children(recursive=True):
        command = child.cmdline()
        if "service.app:build" in command and not any("leash" in word for word in command):
            return child
    raise RuntimeError("the API does not run")


def percentile(seconds: Sequence[float], share: float) -> float:
    """In milliseconds."""
    return float(np.percentile(seconds, share)) * 1e3


def show(result: Row) -> None:
    """One line for each figure, and the targets."""
    for key, value in result.items():
        if key != "targets":
            print(f"{key:<32}{number(value):>10}")
    show_targets(result["targets"])
