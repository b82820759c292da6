"""`tomotrain analyze`: send a scan, have it embedded, print what was found."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.console import Console

from service.analysis import analyze_scan
from service.client import Client
from service.commands.common import AsJson, Scan, Url, connected, errors
from service.report import document, table
from service.sending import refuse_unknown
from service.watcher import Watcher

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


def analyze(
    scan: Scan,
    url: Url = None,
    layout: Layout = None,
    rank: Rank = None,
    encoder: Encoder = None,
    oversampling: Oversampling = None,
    tolerance: Tolerance = None,
    as_json: AsJson = False,
) -> None:
    """Send a scan, wait until it is read and embedded, and print what was found."""
    refuse_unknown(scan)
    with connected(url) as client:
        found = show_analysis(client, scan, chosen(layout, rank, encoder, oversampling, tolerance), as_json)
        if as_json:
            print(json.dumps(found, allow_nan=False))


def show_analysis(client: Client, scan: str, parameters: dict[str, Any], as_json: bool) -> dict[str, Any]:
    """Send a scan and have it embedded; everything that was found, which is printed as a table too."""
    with Watcher(errors) as watcher:
        found = analyze_scan(client, scan, parameters, watcher)
    if not as_json:
        Console().print(table(found))
    return document(found)


def chosen(
    layout: str | None,
    rank: int | None,
    encoder: str | None,
    oversampling: float | None,
    tolerance: float | None,
) -> dict[str, Any]:
    """What was chosen; the rest is for the kind's own defaults."""
    options = {
        "layout": layout,
        "rank": rank,
        "encoder": encoder,
        "oversampling": oversampling,
        "tolerance": tolerance,
    }
    return {name: value for name, value in options.items() if value is not None}
