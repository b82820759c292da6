"""Gaps: their places outlast ingest, verified as the voxels are, and cost nothing where there are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

from storage.errors import CorruptVolume
from storage.gaps import NAME
from storage.ingest import ingest
from storage.records import StoredVolume
from storage.volume import Volume
from tests.storage.scans import ArrayScan

SHAPE = (70, 40, 530)
"""Three rows of shards, two shards in a row, the last ones short."""


def punctured(shape: tuple[int, ...], seed: int = 0) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Noise of which some voxels are NaN or infinite, and which ones."""
    rng = np.random.default_rng(seed)
    voxels = rng.normal(5, 1, shape).astype(np.float32)
    missing = rng.random(shape) < 0.01
    missing[..., 32:64, :, :] = False
    voxels[missing] = rng.choice([np.nan, np.inf, -np.inf], int(missing.sum()))
    return voxels, missing


def ingested(path: Path, voxels: NDArray[Any], axis: str = "t") -> Volume:
    return Volume.open(path, ingest(ArrayScan(voxels, axis=axis), path).digest)


def test_gaps_are_where_the_scan_was_not_finite(tmp_path: Path) -> None:
    voxels, missing = punctured(SHAPE)
    volume = ingested(tmp_path / "v", voxels)
    gaps = volume.gaps()
    assert gaps is not None
    np.testing.assert_array_equal(gaps.box((0, 0, 0), SHAPE), missing)
    np.testing.assert_array_equal(gaps.box((30, 3, 500), (66, 9, 520)), missing[30:66, 3:9, 500:520])
    assert volume.stored.statistics.replaced == missing.sum()
    kept = np.asarray(volume.array(0)[...])
    np.testing.assert_array_equal(kept[~missing], voxels[~missing])
    assert (kept[missing] == voxels[~missing].min()).all()
    volume.verify()


@pytest.mark.parametrize("axis", ["t", "c"])
def test_every_frame_has_gaps_of_its_own(tmp_path: Path, axis: str) -> None:
    voxels, missing = punctured((3, 40, 20, 30))
    missing[1], voxels[1] = False, 1
    volume = ingested(tmp_path / "v", voxels, axis)
    gaps = volume.gaps()
    assert gaps is not None
    np.testing.assert_array_equal(gaps.box((0, 0, 0, 0), missing.shape), missing)
    array = zarr.open_array(tmp_path / "v" / NAME, mode="r")
    assert array.metadata.to_dict()["dimension_names"] == (axis, "z", "y", "x")


def test_a_finite_scan_has_no_such_array(tmp_path: Path) -> None:
    volume = ingested(tmp_path / "v", np.ones((4, 5, 6), np.float32))
    assert volume.gaps() is None
    assert not volume.stored.gaps
    assert not [key for key in volume.manifest.objects if key.startswith(NAME)]


def test_facts_from_before_there_were_gaps_are_read_as_without(tmp_path: Path) -> None:
    facts = ingest(ArrayScan(np.ones((4, 5, 6), np.float32)), tmp_path / "v")
    old = {key: value for key, value in json.loads(json.dumps(facts.to_json())).items() if key != "gaps"}
    assert StoredVolume.from_json(old) == facts


def test_only_the_places_make_two_volumes_differ(tmp_path: Path) -> None:
    """The value that stands in for a gap may be a measured one elsewhere."""
    voxels = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    other = voxels.copy()
    other[1, 2, 3] = 0
    punched = other.copy()
    punched[1, 2, 3] = np.nan
    measured, missing = ingested(tmp_path / "a", other), ingested(tmp_path / "b", punched)
    np.testing.assert_array_equal(measured.array(0)[...], missing.array(0)[...])
    assert measured.stored.digest != missing.stored.digest


def test_gaps_that_were_altered_are_found(tmp_path: Path) -> None:
    volume = ingested(tmp_path / "v", punctured(SHAPE)[0])
    gaps = volume.gaps()
    assert gaps is not None
    shards = sorted(path for path in (tmp_path / "v" / NAME / "c").rglob("*") if path.is_file())
    content = shards[0].read_bytes()
    damaged = bytearray(content)
    damaged[3] ^= 1
    shards[0].write_bytes(damaged)
    with pytest.raises(CorruptVolume):
        gaps.box((0, 0, 0), (4, 4, 4))
    shards[0].write_bytes(shards[-1].read_bytes())
    reopened = Volume.open(tmp_path / "v", volume.stored.digest).gaps()
    assert reopened is not None
    with pytest.raises(CorruptVolume, match="that the manifest names"):
        reopened.box((0, 0, 0), (4, 4, 4))
    shards[0].write_bytes(content)
    metadata = tmp_path / "v" / NAME / "zarr.json"
    metadata.write_text(metadata.read_text().replace("bool", "int8"))
    with pytest.raises(CorruptVolume, match=r"gaps/zarr\.json"):
        Volume.open(tmp_path / "v", volume.stored.digest)
