"""`tomotrain compress`: a scan becomes a smaller volume that can be read anywhere without unpacking."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from service.commands.common import AsJson, BadOption, Scan, Url, connected, errors, refuse_taken
from service.compression import Compressed
from service.compression import compress as compress_scan
from service.compression_report import compression_table
from service.fetching import fetch_store
from service.sending import refuse_unknown
from service.watcher import Watcher

LIMITS: dict[str, tuple[Callable[[float], bool], str]] = {
    "ratio": (lambda value: value > 1, "above 1"),
    "psnr": (lambda value: value > 0, "above 0"),
    "bound": (lambda value: value >= 0, "of at least 0"),
}


def compress(
    scan: Scan,
    ratio: Annotated[
        float | None,
        typer.Option(help="Bytes of the voxels for each byte of the compressed volume, all levels counted."),
    ] = None,
    psnr: Annotated[float | None, typer.Option(help="Quality to reach, dB for the scan's range.")] = None,
    bound: Annotated[
        float | None, typer.Option(help="Largest error of any voxel, in the scan's units; 0: without loss.")
    ] = None,
    compressor: Annotated[
        str | None,
        typer.Option(help="putt, a peer (/v1/kinds lists them), or auto; by default the service's."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder to fetch the compressed OME-Zarr to; not there yet.")
    ] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Compress a scan for a ratio, a PSNR or a bound, and print what became of it, as it decodes."""
    parameters = {**target(ratio, psnr, bound), **({} if compressor is None else {"compressor": compressor})}
    refuse_unknown(scan)
    if output is not None:
        refuse_taken(output)
    with connected(url) as client:
        with Watcher(errors) as watcher:
            done = compress_scan(client, scan, parameters, watcher)
            if output is not None:
                fetch_store(client, done.volume, output, watcher)
        show(done, as_json)


def target(ratio: float | None, psnr: float | None, bound: float | None) -> dict[str, Any]:
    """The one that was chosen; none of them leaves it to the service. Raises BadOption."""
    options = {"ratio": ratio, "psnr": psnr, "bound": bound}
    given = {name: value for name, value in options.items() if value is not None}
    if len(given) > 1:
        told = " and ".join(f"--{name}" for name in given)
        raise BadOption(f"{told}: one of --ratio, --psnr and --bound is the target; give one of them")
    for name, value in given.items():
        enough, said = LIMITS[name]
        if not (math.isfinite(value) and enough(value)):
            raise BadOption(f"--{name} {value:g}: must be a number {said}")
    return given


def show(done: Compressed, as_json: bool) -> None:
    """Print what a compression came to."""
    if as_json:
        views = {"source": done.source, "volume": done.volume, "job": done.job}
        told = {name: view.model_dump(mode="json") for name, view in views.items()}
        print(json.dumps(told, allow_nan=False))
    else:
        Console().print(compression_table(done))
