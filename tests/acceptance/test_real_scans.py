"""Real scans through the whole service: each becomes the volume that its manifest describes."""

from __future__ import annotations

from pathlib import Path

import httpx
import numpy as np
import pytest

from service.client import Client, ServiceProblem
from service.packing import sendable
from storage.volume import Volume
from tests.readers.test_dev import DEPARTURES, REFUSED, ROWS, expected_shape

SCANS = [row for row in ROWS if not row["file"].startswith("cohort_")]


@pytest.mark.parametrize(
    "row", [row for row in SCANS if row["file"] not in REFUSED], ids=lambda row: row["file"]
)
def test_a_scan_arrives_whole(
    client: Client, data_root: Path, shared_data: Path, row: dict[str, str]
) -> None:
    row = {**row, **DEPARTURES.get(row["file"], {})}
    with sendable(shared_data / "dev" / row["file"]) as file:
        accepted = client.upload(file)
    client.wait(accepted.job.id)
    view = client.volume(accepted.volume.id)
    assert view.statistics is not None
    assert view.array_shape is not None
    frames = [] if len(view.array_shape) == 3 else [view.array_shape[0]]
    assert (*reversed(view.array_shape[-3:]), *frames) == expected_shape(row["shape"])
    for name, value in (
        ("min", view.statistics.minimum),
        ("max", view.statistics.maximum),
        ("mean", view.statistics.mean),
    ):
        assert value == pytest.approx(float(row[name]), rel=2e-6, abs=1e-6), name
    if row["affine_ras_3x4"]:
        affine = [float(value) for value in row["affine_ras_3x4"].split(",")]
        np.testing.assert_allclose(np.ravel(view.affine)[:12], affine, rtol=1e-5, atol=1e-6)
    [store] = (data_root / "volumes" / view.id).iterdir()
    Volume.open(store, view.digest).verify()
    slices = f"{client.url}/v1/volumes/{view.id}/slices/z/0"
    picture = httpx.get(slices, headers=client.authorization, trust_env=False)
    assert picture.headers["content-type"] == "image/png"


@pytest.mark.parametrize("file", REFUSED)
def test_what_is_no_scalar_volume_is_refused_politely(client: Client, shared_data: Path, file: str) -> None:
    with pytest.raises(ServiceProblem) as refusal:
        client.wait(client.upload(shared_data / "dev" / file).job.id)
    assert refusal.value.problem.status == 415
