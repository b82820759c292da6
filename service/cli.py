"""The command `tomotrain`. Answers go to standard output, everything else to standard error."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from service.analysis import Watcher, analyze_scan
from service.client import Client, ServiceProblem, ServiceUnreachable
from service.packing import NothingToSend
from service.report import document, table
from service.settings import ServiceSettings
from service.stack import LOOPBACK, Stack, StackError

DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 8000
BAD_INPUT, FAILED = 2, 1

errors = Console(stderr=True)
app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Tensor trains of medical volumes too big for memory, with a certificate.",
)

DataRoot = Annotated[
    Path | None,
    typer.Option(help="Folder that holds everything; by default TOMOTRAIN_DATA_ROOT, else ./var."),
]
Layout = Annotated[
    str | None, typer.Option(help="Layout of the tensor train, tt or qtt; by default the service's.")
]
Rank = Annotated[int | None, typer.Option(help="Highest rank of the train; by default the service's.")]
Encoder = Annotated[
    str | None, typer.Option(help="Name of the encoder (/v1/kinds lists them); by default the service's.")
]
Oversampling = Annotated[
    float | None,
    typer.Option(
        help="Fibres looked at over the rank, 1 to 8: more read more and err less; by default the service's."
    ),
]
Tolerance = Annotated[
    float | None,
    typer.Option(
        help="Find the ranks for this error, --rank being the most; for smooth features, not noise."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]


def main() -> None:
    """Entry point: run the command; an error is one line on standard error."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    logging.basicConfig(format="tomotrain: %(message)s", level=logging.WARNING)
    try:
        app()
    except ServiceProblem as error:
        _end(str(error), FAILED if error.problem.status >= 500 else BAD_INPUT)
    except (NothingToSend, ServiceUnreachable, StackError) as error:
        _end(str(error), BAD_INPUT)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    """Leave by way of every `with`, so that nothing is left running."""
    sys.exit(128 + number)


@app.command(short_help="Run broker, workers, API and dashboard until Ctrl-C.")
def up(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = DEFAULT_HOST,
    port: Annotated[
        int, typer.Option(help="Port to listen on; 0 takes a free one.", max=65535)
    ] = DEFAULT_PORT,
    data_root: DataRoot = None,
) -> None:
    """Run the embedded stack, until Ctrl-C: broker, workers, API and dashboard."""
    root = _data_root(data_root)
    if host not in LOOPBACK:
        errors.print(f"Careful: {host} can be reached by others, and nobody is asked for a password.")
    with ExitStack() as cleanup:
        with errors.status("Starting broker, workers and API"):
            stack = cleanup.enter_context(Stack(root, host=host, port=port))
        errors.print(f"Ready: {stack.url} (data in {root}; Ctrl-C stops it)", highlight=False)
        stack.wait()


@app.command(short_help="Send a scan and print what was found.")
def analyze(
    scan: Annotated[Path, typer.Argument(help="A .nii[.gz], .nrrd, DICOM folder or zip, or OME-Zarr.")],
    url: Annotated[
        str | None,
        typer.Option(help="Address of a running service; by default the one on port 8000, or a new one."),
    ] = None,
    layout: Layout = None,
    rank: Rank = None,
    encoder: Encoder = None,
    oversampling: Oversampling = None,
    tolerance: Tolerance = None,
    as_json: AsJson = False,
) -> None:
    """Send a scan, wait until it is read and embedded, and print what was found."""
    if not scan.exists():
        raise NothingToSend(f"{scan}: no such file or folder; give the path of a scan")
    with _service(url) as address:
        _analyze(address, scan, _parameters(layout, rank, encoder, oversampling, tolerance), as_json)


@app.command(short_help="Try it on a real scan; leaves nothing behind.")
def demo(
    scan: Annotated[
        Path | None, typer.Option(help="A scan of your own; by default a real one that nibabel brings.")
    ] = None,
    layout: Layout = None,
    rank: Rank = None,
    encoder: Encoder = None,
    oversampling: Oversampling = None,
    tolerance: Tolerance = None,
    as_json: AsJson = False,
) -> None:
    """The main job on a real scan, in a temporary data root; leaves nothing running and nothing on disk."""
    chosen = scan or example_scan()
    if not chosen.exists():
        raise NothingToSend(f"{chosen}: no such file or folder; give the path of a scan")
    outside = ("TOMOTRAIN_BROKER_URL", "TOMOTRAIN_DB_URL")
    environment = {name: value for name, value in os.environ.items() if name not in outside}
    temporary = tempfile.TemporaryDirectory(prefix="tomotrain-demo-")
    with temporary as folder, _embedded(Path(folder), environment) as address:
        _analyze(address, chosen, _parameters(layout, rank, encoder, oversampling, tolerance), as_json)


def example_scan() -> Path:
    """A real scan that comes with an installed package: nibabel's 4-D EPI, 128x96x24, two time points."""
    spec = importlib.util.find_spec("nibabel")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "tests" / "data" / "example4d.nii.gz"


def _analyze(address: str, scan: Path, parameters: dict[str, Any], as_json: bool) -> None:
    with Client(address) as client:
        with Watcher(errors) as watcher:
            found = analyze_scan(client, scan, parameters, watcher)
        if as_json:
            print(json.dumps(document(found), allow_nan=False))
        else:
            Console().print(table(found))


def _parameters(
    layout: str | None,
    rank: int | None,
    encoder: str | None,
    oversampling: float | None,
    tolerance: float | None,
) -> dict[str, Any]:
    """What was chosen; the rest is for the kind's own defaults."""
    chosen = {
        "layout": layout,
        "rank": rank,
        "encoder": encoder,
        "oversampling": oversampling,
        "tolerance": tolerance,
    }
    return {name: value for name, value in chosen.items() if value is not None}


@contextmanager
def _service(url: str | None) -> Iterator[str]:
    """The address of a service: the one given, the one that runs here, or one of our own for the time."""
    default = f"http://{DEFAULT_HOST}:{DEFAULT_PORT}"
    if url is not None:
        yield url
    elif _runs(default):
        yield default
    else:
        root = _data_root(None)
        errors.print(f"Nothing runs at {default}: starting a stack on {root} for this scan.", highlight=False)
        with _embedded(root, None) as address:
            yield address


@contextmanager
def _embedded(root: Path, environment: dict[str, str] | None) -> Iterator[str]:
    """A stack of our own on a free port, for as long as it is needed."""
    with ExitStack() as cleanup:
        with errors.status("Starting broker, workers and API"):
            stack = cleanup.enter_context(Stack(root, port=0, environment=environment))
        yield stack.url


def _runs(url: str) -> bool:
    with Client(url) as client:
        return client.alive()


def _data_root(chosen: Path | None) -> Path:
    return (chosen or ServiceSettings().data_root).absolute()


def _end(message: str, status: int) -> NoReturn:
    print(f"tomotrain: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(status)
