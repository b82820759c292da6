"""What commands share: options, where messages go, and a service to talk to."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer
from rich.console import Console

from service.client import KEY_VARIABLE, Client
from service.first_key import kept_key
from service.settings import ServiceSettings
from service.stack import LOOPBACK, Stack
from service.terminal import words

DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 8000

errors = Console(stderr=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]
DataRoot = Annotated[
    Path | None,
    typer.Option(
        "--data-root", help="Folder that holds everything; by default TOMOTRAIN_DATA_ROOT, else ./var."
    ),
]
Scan = Annotated[
    str,
    typer.Argument(
        help="A .nii[.gz], .nrrd, DICOM folder or zip, or OME-Zarr; or the id of a volume: vol_..."
    ),
]
Url = Annotated[
    str | None,
    typer.Option(help="Address of a running service; by default the one on port 8000, or a new one."),
]


class BadOption(Exception):
    """An option's value that cannot be used. `str(error)` names the cause and the cure."""


def refuse_taken(path: Path) -> None:
    """Raise BadOption for a place to write to that is taken, or where there is no folder around it."""
    if path.exists():
        raise BadOption(f"--output {path}: is there already; give another name, or remove it")
    if not path.absolute().parent.is_dir():
        raise BadOption(f"--output {path}: there is no folder {path.absolute().parent}; make it first")


@contextmanager
def connected(url: str | None) -> Iterator[Client]:
    """A client of the service at `url`; of the one that runs here, or of one of our own for the time."""
    default = f"http://{DEFAULT_HOST}:{DEFAULT_PORT}"
    if url is not None or _runs(default):
        with Client(url or default, key=_key_for(url or default)) as client:
            yield client
        return
    root = data_root(None)
    errors.print(words(f"Nothing runs at {default}: starting a stack on {root} for this time."))
    with embedded(root) as client:
        yield client


@contextmanager
def embedded(root: Path, environment: Mapping[str, str] | None = None) -> Iterator[Client]:
    """A client of a stack of our own on a free port, for as long as it is needed."""
    with ExitStack() as cleanup:
        with errors.status("Starting broker, workers and API"):
            stack = cleanup.enter_context(Stack(root, port=0, environment=environment))
        yield cleanup.enter_context(Client(stack.url, key=stack.key))


def data_root(chosen: Path | None) -> Path:
    """The folder of all that persists."""
    return (chosen or ServiceSettings().data_root).absolute()


def _key_for(url: str) -> str | None:
    """The environment's key; for a service of this machine else the one that its data root keeps."""
    here = urlsplit(url).hostname in LOOPBACK
    return os.environ.get(KEY_VARIABLE) or (kept_key(data_root(None)) if here else None)


def _runs(url: str) -> bool:
    with Client(url) as client:
        return client.alive()
