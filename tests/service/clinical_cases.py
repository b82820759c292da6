"""Predictions to be told in clinical forms: results as `predict` writes them, and a scan that they are of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from service.clinical.prediction import Report, report_of
from storage.grid import VoxelGrid
from storage.ingest import ingest
from storage.jobs import Job, JobKind, JobState, Queue
from storage.records import Statistics, StoredVolume
from storage.volume import Volume
from tests.storage.scans import ArrayScan

if TYPE_CHECKING:
    from house import House

JOB = "job_019aa000-0000-7000-8000-00000000000a"
VOLUME = "vol_019aa000-0000-7000-8000-00000000000b"
MODEL = "job_019aa000-0000-7000-8000-00000000000c"
DIGEST, MODEL_DIGEST = "cd" * 32, "ab" * 32
ENDED_AT = 1795330000.125
"""2026-11-22T06:46:40.125Z"""
NOTICE = "For research. Not a medical device."

PREDICT = JobKind(
    name="predict",
    version="1",
    title="Predict",
    description="For tests",
    queue=Queue.INTERACTIVE,
    parameters_schema={"type": "object"},
    result_schema={"type": "object"},
)

_COMMON: dict[str, Any] = {
    "notice": NOTICE,
    "target_name": "lung age",
    "target_unit": "years",
    "value": None,
    "class_name": None,
    "intervals": [],
    "quantiles": [],
    "probabilities": [],
    "guarantee": "covers a row of a new patient with this probability at least",
    "distance": 3.25,
    "distance_percentile": 97.30000000000001,
    "verdict": "hardly: farther from the training's scans than 97 % of them",
    "certificate": {"held_out": 64, "confidence": 0.95, "overall": {"upper_bound": 0.125}, "features": [1]},
    "warnings": [
        {"code": "modality-other", "text": "modality MR: the training's is CT"},
        {"code": "unlike-training", "text": "hardly <like> the training's & others"},
    ],
    "voxels": 900,
    "cubes_read": 12,
    "share_read": 0.01,
    "chunks_read": 4,
    "chunk_share_read": 0.5,
    "bytes_read": 4096,
    "seconds": 0.5,
    "peak_memory_bytes": 1 << 20,
    "model": MODEL,
    "model_digest": MODEL_DIGEST,
    "regressor": "cpic",
    "volume_digest": DIGEST,
    "covariates": {"age": 61.5},
    "packages": {"python": "3.11.9", "tomotrain": "0.1.0", "torch": "2.13.0"},
    "device": "cpu",
}
NUMBER: dict[str, Any] = {
    **_COMMON,
    "value": 61.300000000000004,
    "intervals": [
        {"level": 0.8, "low": 55.10000000000001, "high": 67.4},
        {"level": 0.9, "low": -1e-7, "high": 1 / 3},
        {"level": 0.95, "low": None, "high": None},
    ],
}
QUANTILES: dict[str, Any] = {
    **NUMBER,
    "target_name": "vital capacity",
    "target_unit": "L",
    "quantiles": [
        {"level": 0.2, "value": 2.1},
        {"level": 0.5, "value": 61.300000000000004},
        {"level": 0.8, "value": 2 / 3 * 100},
    ],
}
CLASSES: dict[str, Any] = {
    **_COMMON,
    "target_name": "stage",
    "target_unit": "",
    "class_name": "early",
    "probabilities": [
        {"name": "none", "value": 0.1, "sets": [0.95]},
        {"name": "early", "value": 0.7000000000000001, "sets": [0.8, 0.9, 0.95]},
        {"name": "late", "value": 0.2, "sets": [0.9, 0.95]},
    ],
    "covariates": {},
    "certificate": None,
    "distance": None,
    "distance_percentile": None,
    "warnings": [],
}
WITHHELD: dict[str, Any] = {**_COMMON, "target_unit": "points of a score"}
CASES = {"number": NUMBER, "quantiles": QUANTILES, "classes": CLASSES, "withheld": WITHHELD}

HOSTILE_NAME = 'a\x00\x1b<script>&"\\^ é漢\u2028\uffff' + "long " * 15
HOSTILE: dict[str, Any] = {
    **CLASSES,
    "target_name": HOSTILE_NAME,
    "target_unit": " \x07]]>\\ ",
    "class_name": HOSTILE_NAME,
    "probabilities": [
        {"name": HOSTILE_NAME, "value": 5e-324, "sets": [0.8]},
        {"name": "\n", "value": 1 - 5e-17, "sets": []},
    ],
    "covariates": {HOSTILE_NAME: -1.7976931348623157e308},
    "warnings": [{"code": "x\n", "text": HOSTILE_NAME}],
    "verdict": HOSTILE_NAME,
}

AFFINE = ((-0.7, 0, 0, 10), (0, -0.8, 0, 20), (0, 0, 1.25, -30), (0, 0, 0, 1))
"""In RAS+ mm: x and y grow to the left and to the back, as a scanner's columns and rows do."""
CT_HEADER = {"Modality": "CT", "SliceThickness": 1.5}
CT = StoredVolume(
    grid=VoxelGrid.from_affine((4, 16, 20), AFFINE),
    axes=("z", "y", "x"),
    array_shape=(4, 16, 20),
    dtype="int16",
    levels=1,
    digest=DIGEST,
    statistics=Statistics(0, 1, 0.5, 0.1),
    stored_bytes=10,
    source_format="dicom",
    metadata=CT_HEADER,
)
"""The facts of a scan of 20 x 16 voxels and 4 slices."""


def job_with(result: dict[str, Any], **changed: Any) -> Job:
    """A prediction that has succeeded."""
    facts = {
        "id": JOB,
        "kind": "predict",
        "state": JobState.SUCCEEDED,
        "attempt": 1,
        "max_attempts": 3,
        "parameters": {},
        "volume_id": VOLUME,
        "queue": Queue.INTERACTIVE,
        "created_at": 1.0,
        "ended_at": ENDED_AT,
        "result": result,
    }
    return Job(**{**facts, **changed})


def report_with(result: dict[str, Any], stored: StoredVolume | None = CT) -> Report:
    """The facts that both forms say."""
    return report_of(job_with(result), stored)


def scan_in(folder: Path, header: dict[str, Any], affine: Any = AFFINE) -> Volume:
    """A scan of 20 x 16 voxels and 4 slices with such a header; without an affine nobody knows its place."""
    voxels = np.arange(4 * 16 * 20, dtype=np.int16).reshape(4, 16, 20)
    scan = ArrayScan(voxels, affine=None if affine is None else np.array(affine))
    scan.header = replace(scan.header, metadata=header)
    return Volume.open(folder, ingest(scan, folder).digest)


def predicted(house: House, volume_id: str, result: dict[str, Any], **labels: str) -> str:
    """The address of the result of a job that a service holds."""
    house.catalogue.announce("predictor", [PREDICT], "cpu")
    body = {"kind": "predict", "volume_id": volume_id, "labels": labels}
    job_id = house.http.post("/v1/jobs", json=body).json()["id"]
    house.finish(job_id, result)
    return f"/v1/jobs/{job_id}/result"
