"""Ingest: the same voxels and geometry, a valid OME-Zarr, bounded memory, and nothing after a failure."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

from storage.errors import (
    CorruptVolume,
    InvalidParameters,
    InvalidScan,
    JobCancelled,
    MissingKey,
    StorageFull,
)
from storage.grid import VoxelGrid
from storage.ingest import Moments, ingest
from storage.jobs import Progress
from storage.layout import plan_levels
from storage.pyramid import downsample
from storage.records import StoredVolume
from storage.volume import Volume
from tests.storage.scans import OBLIQUE, ArrayScan


@pytest.fixture
def voxels() -> NDArray[Any]:
    rng = np.random.default_rng(0)
    return (rng.normal(100, 30, (70, 150, 90)) + 500 * np.sin(np.arange(90) / 9)).astype(np.int16)


def test_voxels_geometry_and_facts_come_back_exactly(tmp_path: Path, voxels: NDArray[Any]) -> None:
    facts = ingest(ArrayScan(voxels), tmp_path / "v")
    volume = Volume.open(tmp_path / "v", facts.digest)
    np.testing.assert_array_equal(volume.array(0)[...], voxels)
    assert volume.stored == facts
    assert StoredVolume.from_json(json.loads(json.dumps(facts.to_json()))) == facts
    np.testing.assert_array_equal(facts.grid.matrix, OBLIQUE)
    assert facts.statistics.minimum == voxels.min()
    assert facts.statistics.mean == pytest.approx(voxels.mean(dtype=np.float64), rel=1e-12)
    assert facts.statistics.std == pytest.approx(voxels.std(dtype=np.float64), rel=1e-12)
    assert facts.warnings == ("made by a test",)
    volume.verify()


def test_empty_regions_are_stored_and_read_like_any_other(tmp_path: Path) -> None:
    voxels = np.zeros((40, 100, 600), np.int16)
    voxels[20, 50, 50] = 5
    ingest(ArrayScan(voxels), tmp_path / "v")
    reader = Volume.open(tmp_path / "v").cube_reader()
    everywhere = np.stack(np.meshgrid([0, 31], [0, 60, 91], [0, 300, 591], indexing="ij"), -1).reshape(-1, 3)
    assert reader.cubes(everywhere, 9).max() == 0
    assert reader.cubes(np.array([[20, 50, 50]]), 1).item() == 5


def test_the_digest_depends_on_the_scan_alone(tmp_path: Path, voxels: NDArray[Any]) -> None:
    digests = {ingest(ArrayScan(voxels), tmp_path / name).digest for name in ("a", "b")}
    other = voxels.copy()
    other[3, 4, 5] += 1
    digests.add(ingest(ArrayScan(other), tmp_path / "c").digest)
    assert len(digests) == 2


@pytest.mark.parametrize("axis", ["t", "c"])
def test_four_axes_are_kept(tmp_path: Path, axis: str) -> None:
    voxels = np.random.default_rng(1).random((3, 40, 30, 80)).astype(np.float32)
    facts = ingest(ArrayScan(voxels, axis=axis), tmp_path / "v")
    volume = Volume.open(tmp_path / "v")
    np.testing.assert_array_equal(volume.array(0)[...], voxels)
    assert facts.axes == (axis, "z", "y", "x")
    np.testing.assert_array_equal(volume.plane("y", 7, frame=2), voxels[2, :, 7])
    assert volume.cube_reader().channels == 3


@pytest.mark.parametrize("frames", [None, "t", "c"])
@pytest.mark.parametrize("affine", [OBLIQUE, None])
def test_independent_readers_accept_the_store(tmp_path: Path, frames: str | None, affine: Any) -> None:
    ngff_zarr = pytest.importorskip("ngff_zarr")
    from ome_zarr_models.v05.image import Image

    voxels = np.random.default_rng(1).integers(0, 99, (2, 40, 90, 80)).astype(np.uint8)
    facts = ingest(ArrayScan(voxels if frames else voxels[0], axis=frames, affine=affine), tmp_path / "v")
    Image.from_zarr(zarr.open_group(tmp_path / "v", mode="r"))
    read = ngff_zarr.from_ngff_zarr(str(tmp_path / "v"), validate=True)
    assert len(read.images) == facts.levels
    finest = read.images[0]
    np.testing.assert_array_equal(np.asarray(finest.data), voxels if frames else voxels[0])
    if affine is not None:
        assert [finest.scale[a] for a in "zyx"] == pytest.approx(facts.grid.spacing)
        assert finest.axes_units["z"] == "millimeter"


def test_tensorstore_reads_the_store(tmp_path: Path, voxels: NDArray[Any]) -> None:
    tensorstore = pytest.importorskip("tensorstore")
    ingest(ArrayScan(voxels), tmp_path / "v")
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{tmp_path}/v/0/"}}
    np.testing.assert_array_equal(tensorstore.open(spec).result().read().result(), voxels)


def test_every_level_is_the_mean_of_the_one_before(tmp_path: Path, voxels: NDArray[Any]) -> None:
    ingest(ArrayScan(voxels, affine=None), tmp_path / "v")
    volume = Volume.open(tmp_path / "v")
    assert [level.shape for level in volume.levels] == [(70, 150, 90), (35, 75, 45), (18, 38, 23)]
    level = voxels
    for number in (1, 2):
        level = downsample(level, (2, 2, 2))
        np.testing.assert_array_equal(volume.array(number)[...], level)
    np.testing.assert_array_equal(volume.lazy(1).compute(scheduler="sync"), volume.array(1)[...])


def test_downsample_is_the_mean_of_the_voxels_spanned() -> None:
    voxels = np.arange(5 * 4 * 3, dtype=np.int16).reshape(5, 4, 3)
    coarse = downsample(voxels, (2, 2, 1))
    assert coarse.shape == (3, 2, 3)
    assert coarse[0, 0, 0] == np.rint(np.mean(voxels[:2, :2, 0]))
    assert coarse[2, 1, 2] == np.rint(np.mean(voxels[4:, 2:, 2]))
    huge = np.full((2, 2, 2), 3e38, np.float32)
    assert downsample(huge, (2, 2, 2))[0, 0, 0] == np.float32(3e38)


def test_thick_slices_are_not_halved_before_the_planes_catch_up() -> None:
    grid = VoxelGrid((30, 512, 512), (8.0, 0.65, 0.65))
    assert [level.factor for level in plan_levels(grid)] == [(1, 1, 1), (1, 2, 2), (1, 4, 4), (1, 8, 8)]
    assert plan_levels(VoxelGrid((1, 1, 1)))[-1].shape == (1, 1, 1)
    assert plan_levels(VoxelGrid((1, 5000, 1)))[-1].shape == (1, 40, 1)


def test_non_finite_voxels_are_replaced_counted_and_warned_about(tmp_path: Path) -> None:
    voxels = np.random.default_rng(2).normal(5, 1, (70, 40, 30)).astype(np.float32)
    expected = voxels.copy()
    for place, value in [((3, 4, 5), np.nan), ((40, 0, 0), np.inf), ((69, 39, 29), -np.inf)]:
        voxels[place] = value
        expected[place] = np.inf
    expected[np.isinf(expected)] = expected.min()
    facts = ingest(ArrayScan(voxels), tmp_path / "v")
    np.testing.assert_array_equal(Volume.open(tmp_path / "v").array(0)[...], expected)
    assert facts.statistics.replaced == 3
    assert facts.statistics.mean == pytest.approx(expected.mean(dtype=np.float64), rel=1e-12)
    assert facts.statistics.std == pytest.approx(expected.std(dtype=np.float64), rel=1e-9)
    assert "3 voxels were NaN or infinite" in facts.warnings[1]
    assert np.isfinite(Volume.open(tmp_path / "v").array(1)[...]).all()


def test_values_without_meaning_are_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidScan, match="no finite voxel"):
        ingest(ArrayScan(np.full((4, 4, 4), np.nan, np.float32)), tmp_path / "v")
    assert not (tmp_path / "v").exists()
    constant = ingest(ArrayScan(np.full((4, 4, 4), 7, np.int16)), tmp_path / "c")
    assert constant.statistics.std == 0
    assert any("no contrast" in warning for warning in constant.warnings)
    odd = np.ones((4, 4, 4), np.float32)
    odd[0, 0, 0] = 3e38
    huge = ingest(ArrayScan(odd), tmp_path / "h")
    assert any("no scanner" in warning for warning in huge.warnings)
    double = np.ones((4, 4, 4), np.float64)
    double[0, 0, 0] = 1e300
    assert ingest(ArrayScan(double), tmp_path / "d").statistics.replaced == 1


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (InvalidScan("cut off"), InvalidScan),
        (JobCancelled("job_1"), JobCancelled),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (OSError(errno.ENOSPC, "No space left on device"), StorageFull),
        (None, InvalidScan),
    ],
)
def test_nothing_is_left_of_a_failed_ingest(
    tmp_path: Path, voxels: NDArray[Any], error: BaseException | None, expected: type[BaseException]
) -> None:
    with pytest.raises(expected):
        ingest(ArrayScan(voxels, fail_after=2, error=error), tmp_path / "v")
    assert list(tmp_path.iterdir()) == []


def test_progress_is_reported_in_planes_and_shards(tmp_path: Path, voxels: NDArray[Any]) -> None:
    seen: list[Progress] = []
    ingest(ArrayScan(voxels), tmp_path / "v", report=seen.append)
    assert [p.done for p in seen if p.phase == "reading"] == [0, 32, 64]
    assert {p.phase for p in seen} == {"reading", "pyramid", "manifest"}
    assert all(p.total is None or p.done <= p.total for p in seen)


def test_a_volume_opens_only_as_the_one_that_was_published(tmp_path: Path, voxels: NDArray[Any]) -> None:
    facts = ingest(ArrayScan(voxels), tmp_path / "v")
    with pytest.raises(CorruptVolume, match="digest"):
        Volume.open(tmp_path / "v", "sha256:" + "0" * 64)
    metadata = tmp_path / "v" / "0" / "zarr.json"
    metadata.write_text(metadata.read_text().replace("int16", "int32"))
    with pytest.raises(CorruptVolume, match=r"0/zarr\.json"):
        Volume.open(tmp_path / "v", facts.digest)
    (tmp_path / "v" / "manifest.json").write_text('{"objects": 3}')
    with pytest.raises(CorruptVolume, match="manifest"):
        Volume.open(tmp_path / "v")


def test_bad_places_in_a_volume_are_named(tmp_path: Path, voxels: NDArray[Any]) -> None:
    ingest(ArrayScan(voxels), tmp_path / "v")
    volume = Volume.open(tmp_path / "v")
    for call in (
        lambda: volume.plane("z", 70),
        lambda: volume.plane("x", -1),
        lambda: volume.plane("z", 0, level=9),
        lambda: volume.plane("z", 0, frame=1),
    ):
        with pytest.raises(InvalidParameters, match="from 0 to"):
            call()
    for key in ("../secret", "/etc/passwd", "0/c/9/9/9", "", "0", "0/../manifest.json"):
        with pytest.raises(MissingKey):
            volume.key_path(key)
    assert volume.key_path("0/zarr.json").is_file()


def test_moments_merge_as_if_taken_at_once() -> None:
    values = np.random.default_rng(3).normal(1e6, 1, 5000)
    merged = Moments()
    for part in np.array_split(values, 7):
        merged = merged.merge(Moments.of(part))
    assert merged.statistics(0).std == pytest.approx(values.std(), rel=1e-9)
    assert Moments().merge(Moments()) == Moments()


ROOT = Path(__file__).parents[2]
PEAK = """
    import sys
    from pathlib import Path
    import numpy as np
    from benchmarks.memory import peak_rss_mib
    from tests.storage.scans import ArrayScan
    from storage.ingest import ingest
    from storage.volume import Volume

    class Endless:
        def __init__(self, planes): self.shape = (planes, 256, 256)
        ndim, dtype = 3, np.dtype(np.int16)
        def __getitem__(self, part):
            if part is None: return [self]
            return np.full((min(part.stop, self.shape[0]) - part.start, 256, 256), part.start, np.int16)
        def __len__(self): return self.shape[0]

    ingest(ArrayScan(Endless(int(sys.argv[2]))), Path(sys.argv[1]))
    print(peak_rss_mib())
"""


def test_peak_memory_does_not_grow_with_the_scan(tmp_path: Path) -> None:
    """Four times the planes (512 MiB after 128): the peak may differ by a few slabs, no more."""
    peaks = []
    for planes in (1024, 4096):
        command = [sys.executable, "-c", textwrap.dedent(PEAK), str(tmp_path / str(planes)), str(planes)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=250, cwd=ROOT)
        peaks.append(float(done.stdout))
    assert peaks[1] - peaks[0] < 40
