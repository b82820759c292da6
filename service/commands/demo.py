"""`tomotrain demo`: a real scan through the whole service, then a model and a prediction; leaves nothing."""

from __future__ import annotations

import importlib.util
import json
import os
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from service import learning
from service.client import Client
from service.cohort_table import Columns, read_table
from service.commands.analyze import (
    Encoder,
    Layout,
    Oversampling,
    Rank,
    Tolerance,
    chosen,
    show_analysis,
)
from service.commands.common import AsJson, embedded, errors
from service.learning_report import prediction_table, training_tables
from service.packing import refuse_missing
from service.phantoms import write_cohort
from service.watcher import Watcher

PATIENTS = 24
_ENCODER = {"steps": 160, "voxels": 64}
TRAINING: dict[str, Any] = {
    "regressor": "auto",
    "candidates": ["voxel_ridge", "random_voxels", "cpic"],
    "settings": {"random_voxels": _ENCODER, "cpic": _ENCODER},
    "preparation": {"intensity": "fixed"},
    "folds": 3,
    "target_name": "share",
}
"""What learns within two minutes on two cores."""


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
    """The main job on a real scan, then a model of made heads and its word on one that it has not seen.

    In a temporary data root; leaves nothing running and nothing on disk.
    """
    sent = scan or example_scan()
    refuse_missing(sent)
    temporary = tempfile.TemporaryDirectory(prefix="tomotrain-demo-")
    with (
        temporary as folder,
        embedded(Path(folder), _environment(Path(folder))) as client,
    ):
        found = show_analysis(
            client, str(sent), chosen(layout, rank, encoder, oversampling, tolerance), as_json
        )
        found |= _learn(client, Path(folder) / "cohort", as_json)
    if as_json:
        print(json.dumps(found, allow_nan=False))


def _environment(folder: Path) -> dict[str, str]:
    """Ours, without an outside broker or database; what torch keeps goes with the folder."""
    outside = ("TOMOTRAIN_BROKER_URL", "TOMOTRAIN_DB_URL")
    kept = {name: value for name, value in os.environ.items() if name not in outside}
    return {**kept, "TORCHINDUCTOR_CACHE_DIR": str(folder / "torch")}


def _learn(client: Client, folder: Path, as_json: bool) -> dict[str, Any]:
    """Train on made heads, and predict one that was not among them, beside the truth."""
    folder.mkdir()
    cohort, unseen, truth = write_cohort(folder, PATIENTS)
    table = read_table(cohort, Columns("share"))
    with Watcher(errors) as watcher:
        trained = learning.run_on_table(client, "train", table, TRAINING, watcher)
        predicted = learning.predict(client, trained.id, str(unseen), {}, watcher)
    if not as_json:
        for part in (*training_tables(trained), prediction_table(predicted)):
            Console().print(part)
        Console().print(f"The truth of this made head: {truth:.4g}. Made heads stand for no patients.")
    return {
        "training": trained.model_dump(mode="json"),
        "prediction": predicted.model_dump(mode="json"),
        "truth": truth,
    }


def example_scan() -> Path:
    """A real scan that comes with an installed package: nibabel's 4-D EPI, 128x96x24, two time points."""
    spec = importlib.util.find_spec("nibabel")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "tests" / "data" / "example4d.nii.gz"
