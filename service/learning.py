"""Training, prediction and judgement from a client's side: send scans, wait until they are read, submit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from service.client import Client, ServiceProblem
from service.cohort_table import BadTable, CohortTable
from service.packing import NothingToSend
from service.schemas import JobView, VolumeView
from service.sending import ready, ready_volume, sent
from service.watcher import Watcher


def run_on_table(
    client: Client, kind: str, table: CohortTable, parameters: Mapping[str, Any], watcher: Watcher
) -> JobView:
    """Have a job done on a table's rows, once its scans are there.

    Raises BadTable, naming every scan that is refused, and ServiceProblem when the job fails.
    """
    volume_ids = send_scans(client, table, watcher)
    rows: Any = table.parameters(volume_ids)
    job = client.submit(kind, {**parameters, "rows": rows})
    return client.wait(job.id, on_change=watcher.job)


def predict(
    client: Client, model: str, scan: str, covariates: Mapping[str, float], watcher: Watcher
) -> JobView:
    """What a model says of a scan: a path, or the id of a volume."""
    volume_id = ready_volume(client, scan, watcher)
    job = client.submit("predict", {"model": model, "covariates": dict(covariates)}, volume_id=volume_id)
    return client.wait(job.id, on_change=watcher.job)


def send_scans(client: Client, table: CohortTable, watcher: Watcher) -> dict[str, str]:
    """The volume of each scan of a table. Files that the service has not are sent, and waited for."""
    lines = table.lines_of_scans
    files = {scan: path for scan in lines if (path := table.file_of(scan)) is not None}
    volumes: dict[str, VolumeView] = {}
    problems: list[str] = []
    for done, (scan, path) in enumerate(files.items()):
        watcher.step("upload", done, len(files), "scans")
        try:
            volumes[scan] = sent(client, path)
        except (ServiceProblem, NothingToSend) as error:
            problems.append(f"line {lines[scan]}, {scan}: {error}")
    watcher.step("upload", len(files), len(files), "scans")
    for done, (scan, volume) in enumerate(volumes.items()):
        watcher.step("ingest", done, len(volumes), "scans")
        try:
            ready(client, volume)
        except ServiceProblem as error:
            problems.append(f"line {lines[scan]}, {scan}: {error}")
    watcher.step("ingest", len(volumes), len(volumes), "scans")
    if problems:
        raise BadTable(table.path, problems)
    return {scan: volumes[scan].id if scan in volumes else scan for scan in lines}
