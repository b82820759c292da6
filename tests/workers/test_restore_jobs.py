"""The jobs `denoise` and `complete`, from an upload to the volume that they make."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray
from support.scans import upload

from storage.catalogue import Catalogue
from storage.jobs import Job, JobState
from storage.volume import Volume
from workers.jobs import KINDS
from workers.runner import Runner
from workers.windows import Windows, within

Array = NDArray[Any]
SHAPE = (72, 52, 44)
"""(z, y, x), of several windows along each axis, none of them a multiple, and of two shards along z."""


@dataclass(frozen=True)
class Bench:
    """A data root, and a runner of all kinds."""

    root: Path
    catalogue: Catalogue
    runner: Runner

    def taken_in(self, voxels: Array) -> str:
        """The id of a volume with these voxels, (z, y, x) or (t, z, y, x), sent as a NIfTI file."""
        image = nibabel.Nifti1Image(voxels.T, np.eye(4))
        record, job = upload(self.catalogue, self.root, gzip.compress(image.to_bytes(), compresslevel=1))
        ended = self.runner.run(job.id)
        assert ended is not None
        assert ended.state is JobState.SUCCEEDED, ended.error
        return record.id

    def run(self, kind: str, volume_id: str, **parameters: Any) -> Job:
        """A job, to its end."""
        ended = self.runner.run(self.catalogue.submit(kind, parameters, volume_id=volume_id).id)
        assert ended is not None
        return ended

    def result(self, kind: str, volume_id: str, **parameters: Any) -> dict[str, Any]:
        """Of a job that succeeds."""
        ended = self.run(kind, volume_id, **parameters)
        assert ended.result is not None, ended.error
        return ended.result

    def error(self, kind: str, volume_id: str, **parameters: Any) -> dict[str, Any]:
        """Of a job that fails."""
        ended = self.run(kind, volume_id, **parameters)
        assert ended.state is JobState.FAILED
        assert ended.error is not None
        return dict(ended.error)

    def volume(self, volume_id: str) -> Volume:
        """Verified as a whole."""
        record = self.catalogue.volume(volume_id)
        assert record.stored is not None
        volume = Volume.open(self.root / str(record.store), record.stored.digest)
        volume.verify()
        return volume

    def voxels(self, volume_id: str) -> Array:
        """Of level 0."""
        return np.asarray(self.volume(volume_id).array(0)[...])


@pytest.fixture
def bench(catalogue: Catalogue, make_runner: Callable[..., Runner], tmp_path: Path) -> Bench:
    return Bench(tmp_path, catalogue, make_runner(*KINDS))


def phantom(shape: tuple[int, ...] = SHAPE) -> Array:
    """Smooth, of a range of about 1000."""
    z, y, x = np.ogrid[tuple(slice(-1, 1, size * 1j) for size in shape)]
    body = 1000 * np.exp(-2 * (x**2 + y**2 + z**2)) + 80 * np.sin(6 * x * y + 2 * z) * np.cos(5 * z - x)
    made: Array = body.astype(np.float32)
    return made


def normal(shape: tuple[int, ...], sigma: float, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(0, sigma, shape).astype(np.float32)


def rms(errors: Array) -> float:
    return float(np.sqrt(np.mean(np.square(errors, dtype=np.float64))))


def gain_db(before: Array, after: Array) -> float:
    return 20 * float(np.log10(rms(before) / rms(after)))


@pytest.mark.parametrize(
    ("shape", "sides", "share"),
    [((72, 80, 65), (32, 32, 32), 0.5), ((1, 2, 70), (1, 2, 64), 0.7), ((40, 33, 32), (32, 16, 32), 0)],
)
def test_the_weights_of_all_windows_add_up_to_one_in_any_box(
    shape: tuple[int, int, int], sides: tuple[int, int, int], share: float
) -> None:
    windows = Windows.over(shape, sides, share)
    whole = tuple(slice(0, length) for length in shape)
    sums, seen = np.zeros(shape), 0
    for window in windows.touching(whole):  # type: ignore[arg-type]
        sums[window.box] += window.weight(window.box)
        seen += 1
    np.testing.assert_allclose(sums, 1, rtol=1e-12)
    assert seen == len(windows)
    box = tuple(slice(length // 3, length // 3 + 1) for length in shape)
    around = windows.around(box)  # type: ignore[arg-type]
    touching = list(windows.touching(box))  # type: ignore[arg-type]
    weights = [w.weight(box).item() for w in touching]  # type: ignore[arg-type]
    assert sum(weights) == pytest.approx(1)
    assert all(part.start >= 0 for w in touching for part in within(w.box, around))


def test_noise_is_found_and_taken_away_without_seams(bench: Bench) -> None:
    truth, noise = phantom(), normal(SHAPE, 25.0)
    result = bench.result("denoise", bench.taken_in(truth + noise))
    found = bench.voxels(result["volume_id"])
    assert result["estimated"]
    assert result["sigma"] == pytest.approx(25, rel=0.05)
    assert result["noise"]["low"] <= result["noise"]["median"] <= result["noise"]["high"]
    errors = found - truth
    assert gain_db(noise, errors) > 10
    assert result["removed"] == pytest.approx(rms(found - truth - noise), rel=1e-3)
    assert result["changed"] > 0.99


def rises(errors: Array, origins: tuple[int, ...], side: int) -> tuple[float, float]:
    """Across z, at faces of windows and shards over elsewhere: how large errors are, and their steps."""
    level = np.sqrt(np.mean(errors**2, axis=(1, 2)))
    step = np.sqrt(np.mean(np.diff(errors, axis=0) ** 2, axis=(1, 2)))
    faces = {64, *origins[1:], *(origin + side for origin in origins[:-1])}
    inside = range(8, len(errors) - 8)
    at = [z for z in inside if z in faces]
    away = [z for z in inside if not faces & {z - 1, z, z + 1}]
    return rms(level[at]) / rms(level[away]), rms(step[np.array(at) - 1]) / rms(step[np.array(away) - 1])


def test_windows_and_shards_leave_no_seams(bench: Bench) -> None:
    truth = phantom()
    scan = bench.taken_in(truth + normal(SHAPE, 25.0))
    beside = bench.result("denoise", scan, tile=32, overlap=0)
    hard = rises(bench.voxels(beside["volume_id"]) - truth, (0, 32, 40), 32)
    assert hard[1] > 1.5
    blended = bench.result("denoise", scan, tile=32)
    soft = rises(bench.voxels(blended["volume_id"]) - truth, (0, 11, 22, 33, 40), 32)
    assert max(soft) < 1.1


@pytest.mark.parametrize("shape", [(1, 40, 44), (20, 33, 7), (1, 1, 1), (3, 1, 50)])
def test_integers_of_any_shape_stay_integers(bench: Bench, shape: tuple[int, int, int]) -> None:
    voxels = np.rint(phantom(shape) + normal(shape, 25.0)).astype(np.int16)
    result = bench.result("denoise", bench.taken_in(voxels))
    found = bench.voxels(result["volume_id"])
    assert (found.dtype, found.shape) == (voxels.dtype, shape)
    if result["sigma"] > 0 and max(shape) > 7:
        assert rms(found - phantom(shape)) < rms(voxels - phantom(shape))
    assert result["changed"] == pytest.approx(np.mean(found != voxels))
