"""`tomotrain submit`: jobs from a file, one a line, in batches that are done once."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from service.client import Client, ServiceProblem
from service.commands.common import AsJson, BadOption, Url, connected, errors
from service.schemas import JobList, JobView
from service.terminal import words

MOST_JOBS, MOST_BYTES = 1000, 3 << 20
"""Of one batch, which is submitted whole or not at all."""


def submit(
    jobs: Annotated[
        Path,
        typer.Argument(
            help='A file with a job a line: {"kind": "embed", "volume_id": "vol_...", "parameters": {}}.'
        ),
    ],
    wait: Annotated[bool, typer.Option("--wait", help="Wait until all have ended.")] = False,
    again: Annotated[
        bool, typer.Option("--again", help="Do them anew, also if this very file was submitted this week.")
    ] = False,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Submit the jobs of a file; where it was submitted before, those that it made are told, and no more."""
    lines = wanted_jobs(jobs)
    key = uuid.uuid4().hex if again else hashlib.sha256(jobs.read_bytes()).hexdigest()
    with connected(url) as client:
        made = [job for batch in send(client, lines, key) for job in batch]
        shown = [ended(client, job) for job in made] if wait else made
    show(shown, as_json)
    if wait and any(job.state != "succeeded" for job in shown):
        raise typer.Exit(1)


def wanted_jobs(path: Path) -> list[dict[str, Any]]:
    """The jobs of a file. Raises BadOption with the line that is none."""
    found = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadOption(f"{path}: cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        try:
            job = json.loads(line) if line.strip() else None
        except ValueError as error:
            raise BadOption(f"{path}: line {number} is no JSON: {error}") from error
        if job is not None and not isinstance(job, dict):
            raise BadOption(f'{path}: line {number} is no job: write {{"kind": ...}}')
        found += [] if job is None else [job]
    if not found:
        raise BadOption(f"{path}: there is no job in it")
    return found


def send(client: Client, wanted: Sequence[dict[str, Any]], key: str) -> Iterator[list[JobView]]:
    """Submit batch after batch. Raises ServiceProblem; those before it have been submitted."""
    for number, batch in enumerate(batches(wanted)):
        headers = {"Idempotency-Key": f"{key}.{number}"}
        answer = client.request("POST", "/v1/jobs:batch", json={"jobs": batch}, headers=headers)
        yield JobList.model_validate_json(answer.content).jobs


def batches(wanted: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """The jobs, in their order, in pieces that the service takes."""
    batch: list[dict[str, Any]] = []
    size = 0
    for job in wanted:
        more = len(json.dumps(job)) + 2
        if batch and (len(batch) == MOST_JOBS or size + more > MOST_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(job)
        size += more
    yield batch


def ended(client: Client, job: JobView) -> JobView:
    """The job when it has ended, well or not."""
    with errors.status(words(f"{job.kind} {job.id}")):
        try:
            return client.wait(job.id)
        except ServiceProblem:
            return client.job(job.id)


def show(jobs: Sequence[JobView], as_json: bool) -> None:
    """Print the jobs: one line each, `id kind state`; what went wrong on standard error."""
    if as_json:
        print(JobList(jobs=list(jobs)).model_dump_json())
        return
    for job in jobs:
        print(words(f"{job.id} {job.kind} {job.state}"))
        if job.error is not None:
            errors.print(words(f"{job.id}: {job.error.detail}"))
