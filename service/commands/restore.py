"""`tomotrain denoise` and `tomotrain complete`: a scan becomes one without its noise, or without gaps."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from service.client import Client
from service.commands.common import AsJson, BadOption, Scan, Url, connected, errors
from service.restoring import Restored, restore
from service.restoring_report import completion_table, denoising_table
from service.sending import ready_volume, refuse_unknown
from service.watcher import Watcher

Tile = Annotated[
    int | None, typer.Option(help="Side of a window, a power of two up to 64; by default the service's.")
]


def denoise(
    scan: Scan,
    sigma: Annotated[
        float | None,
        typer.Option(help="Standard deviation of the noise, in the scan's units; by default estimated."),
    ] = None,
    tile: Tile = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Make a volume of a scan without its noise, and print what was taken away."""
    if sigma is not None and not 0 <= sigma < math.inf:
        raise BadOption(f"--sigma {sigma:g}: must be a number of at least 0")
    refuse_unknown(scan)
    with connected(url) as client:
        with Watcher(errors) as watcher:
            done = restore(client, "denoise", scan, _given(sigma=sigma, tile=tile), watcher)
        _show(done, denoising_table, as_json)


def complete(
    scan: Scan,
    mask: Annotated[
        str | None,
        typer.Option(
            help="Scan of the same shape, or a volume's id: not 0 where the scan was measured; by default "
            "where it is finite."
        ),
    ] = None,
    tile: Tile = None,
    seed: Annotated[int | None, typer.Option(help="Of what is hidden to measure errors by.")] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Make a volume of a scan with its gaps filled, and print what errors to expect there."""
    refuse_unknown(scan)
    if mask is not None:
        refuse_unknown(mask)
    with connected(url) as client:
        with Watcher(errors) as watcher:
            parameters = _given(mask_volume_id=_sent(client, mask, watcher), tile=tile, seed=seed)
            done = restore(client, "complete", scan, parameters, watcher)
        _show(done, completion_table, as_json)


def _sent(client: Client, mask: str | None, watcher: Watcher) -> str | None:
    return None if mask is None else ready_volume(client, mask, watcher)


def _given(**options: Any) -> dict[str, Any]:
    """What was chosen; the rest is for the kind's own defaults."""
    return {name: value for name, value in options.items() if value is not None}


def _show(done: Restored, table: Callable[[Restored], Table], as_json: bool) -> None:
    if as_json:
        views = {"source": done.source, "volume": done.volume, "job": done.job}
        told = {name: view.model_dump(mode="json") for name, view in views.items()}
        print(json.dumps(told, allow_nan=False))
    else:
        Console().print(table(done))
