"""`tomotrain demo`: a real scan through the whole service, then a model and a prediction; leaves nothing."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from service.client import Client
from service.commands.analyze import (
    Encoder,
    Layout,
    Oversampling,
    Rank,
    Tolerance,
    chosen,
    refuse_missing,
    show_analysis,
)
from service.commands.common import AsJson, embedded


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
    sent = scan or example_scan()
    refuse_missing(sent)
    outside = ("TOMOTRAIN_BROKER_URL", "TOMOTRAIN_DB_URL")
    environment = {name: value for name, value in os.environ.items() if name not in outside}
    temporary = tempfile.TemporaryDirectory(prefix="tomotrain-demo-")
    with temporary as folder, embedded(Path(folder), environment) as address, Client(address) as client:
        show_analysis(client, sent, chosen(layout, rank, encoder, oversampling, tolerance), as_json)


def example_scan() -> Path:
    """A real scan that comes with an installed package: nibabel's 4-D EPI, 128x96x24, two time points."""
    spec = importlib.util.find_spec("nibabel")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "tests" / "data" / "example4d.nii.gz"
