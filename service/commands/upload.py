"""`tomotrain upload`: send scans in parts, so that a lost connection costs what was under way alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from service.client import Client
from service.commands.common import AsJson, BadOption, Url, connected, errors
from service.packing import NothingToSend, refuse_missing, sendable
from service.schemas import Accepted
from service.watcher import Watcher

Paths = Annotated[
    list[Path], typer.Argument(help="Scans: .nii[.gz], .nrrd, a DICOM folder or zip, or an OME-Zarr.")
]
Name = Annotated[str | None, typer.Option("--name", help="What to call the scan; for one scan alone.")]
Resume = Annotated[
    bool, typer.Option("--resume/--no-resume", help="Go on with an upload that broke off, if there is one.")
]


def upload(
    paths: Paths, url: Url = None, name: Name = None, resume: Resume = True, as_json: AsJson = False
) -> None:
    """Send scans and print the id of each one's volume; a service reads them when it has the time."""
    if name is not None and len(paths) > 1:
        raise BadOption(f"--name {name}: is for one scan; send the {len(paths)} one by one")
    for path in paths:
        refuse_missing(path)
    with connected(url) as client:
        for path in paths:
            accepted = _sent(client, path, name, resume)
            print(_line(path, accepted, as_json))


def _sent(client: Client, path: Path, name: str | None, resume: bool) -> Accepted:
    """Send a Zarr object by object where that can be done, anything else as one file."""
    with Watcher(errors) as watcher:
        if (path / "zarr.json").is_file():
            with suppress(NothingToSend):
                heard = _heard(watcher, sum(file.stat().st_size for file in path.rglob("*")))
                return client.upload_zarr(path, name=name, resume=resume, on_sent=heard)
        with sendable(path) as file:
            heard = _heard(watcher, file.stat().st_size)
            return client.upload_resumable(file, name=name, resume=resume, on_sent=heard)


def _heard(watcher: Watcher, size: int) -> Callable[[int], None]:
    return lambda done: watcher.sent(done, size)


def _line(path: Path, accepted: Accepted, as_json: bool) -> str:
    volume = accepted.volume
    if as_json:
        return json.dumps({"path": str(path), "volume_id": volume.id, "job_id": accepted.job.id})
    return f"{volume.id}  {path}"
