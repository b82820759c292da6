"""The jobs `denoise` and `complete`, from an upload to the volume that they make."""

from __future__ import annotations

import gzip
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray
from support.scans import upload

from storage.catalogue import Catalogue
from storage.derived import Box
from storage.errors import JobCancelled, StorageFull
from storage.ids import derived_id
from storage.jobs import Job, JobState, Progress
from storage.records import VolumeState
from storage.volume import Volume
from workers.jobs import KINDS
from workers.jobs.complete import Complete
from workers.lease import Lease
from workers.restoring.completing import Completing
from workers.restoring.denoising import Denoising
from workers.restoring.overview import Overview
from workers.runner import Runner
from workers.settings import WorkerSettings
from workers.windows import Windows, within

Array = NDArray[Any]
PHASES = {"denoise": "denoising", "complete": "completing"}
SHAPE = (72, 40, 34)
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


def test_what_gives_nothing_to_denoise_is_left_as_it_is(bench: Bench) -> None:
    flat = np.full((20, 18, 17), 7.5, np.float32)
    result = bench.result("denoise", bench.taken_in(flat), sigma=2.0)
    np.testing.assert_array_equal(bench.voxels(result["volume_id"]), flat)
    assert (result["changed"], result["noise"]["median"]) == (0, None)
    voxels = phantom((20, 18, 17))
    exact = bench.result("denoise", bench.taken_in(voxels), sigma=0)
    np.testing.assert_array_equal(bench.voxels(exact["volume_id"]), voxels)


@pytest.mark.parametrize("shape", [(16, 16, 16), (12, 9, 1)])
def test_noise_whose_square_no_float_holds_is_as_any_that_drowns_all(
    bench: Bench, shape: tuple[int, int, int]
) -> None:
    source = bench.taken_in(phantom(shape))
    drowned, beyond = (bench.result("denoise", source, sigma=sigma) for sigma in (1e9, 1e200))
    assert (beyond["mean_rank"], beyond["max_rank"]) == (1, 1)
    np.testing.assert_array_equal(bench.voxels(beyond["volume_id"]), bench.voxels(drowned["volume_id"]))


def test_denoising_keeps_gaps_and_what_stands_in_for_them(bench: Bench) -> None:
    voxels = phantom((24, 20, 22)) + normal((24, 20, 22), 25.0) + 1000
    voxels[5:9, 3:8, 4:10] = np.nan
    scan = bench.taken_in(voxels)
    result = bench.result("denoise", scan)
    assert result["sigma"] == pytest.approx(25, rel=0.15)
    gaps, before = np.isnan(voxels), bench.voxels(scan)
    made = bench.volume(result["volume_id"])
    kept = made.gaps()
    assert kept is not None
    np.testing.assert_array_equal(kept.box((0, 0, 0), voxels.shape), gaps)
    np.testing.assert_array_equal(bench.voxels(result["volume_id"])[gaps], before[gaps])
    assert made.stored.statistics.replaced == gaps.sum()


def punched(kind: str) -> tuple[Array, Array, Array]:
    """The phantom, the same with gaps as NaN, and where they are."""
    truth = phantom() + 100
    gaps = np.zeros(SHAPE, bool)
    if kind == "half":
        gaps = np.random.default_rng(1).random(SHAPE) < 0.5
    else:
        gaps[20:34, 12:26, 10:24] = True
    return truth, np.where(gaps, np.float32(np.nan), truth), gaps


@pytest.mark.parametrize(("kind", "least_db"), [("half", 40), ("block", 15)])
def test_a_scan_with_nan_becomes_a_whole_one(bench: Bench, kind: str, least_db: float) -> None:
    truth, voxels, gaps = punched(kind)
    scan = bench.taken_in(voxels)
    result = bench.result("complete", scan, tile=32)
    made = bench.volume(result["volume_id"])
    found = bench.voxels(result["volume_id"])
    np.testing.assert_array_equal(found[~gaps], truth[~gaps])
    by_mean = truth[~gaps].mean() - truth[gaps]
    assert gain_db(by_mean, found[gaps] - truth[gaps]) > least_db
    assert (result["gaps"], result["share"]) == (gaps.sum(), pytest.approx(gaps.mean()))
    assert made.gaps() is None
    assert made.stored.statistics.replaced == 0
    assert made.stored.derived is not None
    assert (made.stored.derived.volume_id, made.stored.derived.kind) == (scan, "complete")
    assert result["scattered"]["voxels"] > 30
    if kind == "half":
        error = rms(found[gaps] - truth[gaps])
        assert 0.5 * error < result["scattered"]["rmse"] < 2 * error
        assert result["blocks"]["rmse"] > error


def test_a_mask_says_what_was_observed(bench: Bench) -> None:
    shape = (2, 24, 28, 26)
    truth = np.stack([phantom(shape[1:]), 2000 - phantom(shape[1:])])
    whole = np.rint(truth).astype(np.int16)
    mask = (np.random.default_rng(2).random(shape[1:]) < 0.6).astype(np.uint8)
    scan, observed = bench.taken_in(whole), bench.taken_in(mask)
    result = bench.result("complete", scan, mask_volume_id=observed)
    found = bench.voxels(result["volume_id"])
    assert found.dtype == whole.dtype
    gaps = np.broadcast_to(mask == 0, shape)
    np.testing.assert_array_equal(found[~gaps], whole[~gaps])
    for frame in range(2):
        errors = (found[frame] - truth[frame])[gaps[frame]]
        by_mean = (whole[frame] - whole[frame].mean())[gaps[frame]]
        assert gain_db(by_mean, errors) > 20
    again = bench.result("complete", scan, mask_volume_id=observed)
    assert again["volume_digest"] == result["volume_digest"]


def test_a_gap_wider_than_windows_is_filled_from_afar(bench: Bench) -> None:
    """And nothing that is filled lies beyond what was observed."""
    truth = phantom()
    voxels = truth.copy()
    voxels[:60] = np.nan
    result = bench.result("complete", bench.taken_in(voxels), tile=16)
    found = bench.voxels(result["volume_id"])
    assert result["windows"]["overview"] > 0
    assert np.isfinite(found).all()
    assert truth[60:].min() <= found.min() <= found.max() <= truth[60:].max()


@pytest.mark.parametrize(("shape", "least_db"), [((1, 40, 44), 15), ((3, 1, 50), 3)])
def test_thin_volumes_are_completed(bench: Bench, shape: tuple[int, int, int], least_db: float) -> None:
    truth = phantom(shape)
    voxels, gaps = truth.copy(), np.random.default_rng(3).random(shape) < 0.2
    voxels[gaps] = np.nan
    found = bench.voxels(bench.result("complete", bench.taken_in(voxels))["volume_id"])
    np.testing.assert_array_equal(found[~gaps], truth[~gaps])
    assert gain_db((truth - truth.mean())[gaps], (found - truth)[gaps]) > least_db


def test_what_cannot_be_completed_is_told_with_the_cure(bench: Bench) -> None:
    scan = bench.taken_in(phantom((8, 9, 10)))
    nothing = bench.error("complete", scan)
    assert nothing["code"] == "invalid-parameters"
    assert "there are no gaps, every voxel of the scan was finite: name a volume" in nothing["detail"]
    other = bench.taken_in(np.ones((8, 9, 11), np.uint8))
    assert "its shape is (8, 9, 11)" in bench.error("complete", scan, mask_volume_id=other)["detail"]
    empty = bench.taken_in(np.zeros((8, 9, 10), np.uint8))
    assert (
        "no voxel of the volume was observed" in bench.error("complete", scan, mask_volume_id=empty)["detail"]
    )
    assert bench.error("complete", scan, mask_volume_id="vol_none")["code"] == "volume-not-found"
    wrong = bench.error("denoise", scan, tile=16, overlap=13)
    assert (wrong["code"], wrong["problems"][0][0]) == ("invalid-parameters", "/overlap")


def test_damage_closes_the_volume_that_has_it(bench: Bench) -> None:
    scan, observed = (bench.taken_in(v) for v in (phantom((8, 9, 10)), np.ones((8, 9, 10), np.uint8)))
    store = bench.root / str(bench.catalogue.volume(observed).store)
    shard = next(path for path in (store / "0" / "c").rglob("*") if path.is_file())
    shard.write_bytes(shard.read_bytes()[:-9] + bytes(9))
    assert bench.error("complete", scan, mask_volume_id=observed)["code"] == "corrupt-volume"
    assert bench.catalogue.volume(observed).state is VolumeState.QUARANTINED
    assert bench.catalogue.volume(scan).state is VolumeState.READY


@pytest.mark.parametrize("kind", ["denoise", "complete"])
def test_an_attempt_goes_on_where_the_last_one_ended(
    bench: Bench, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker dies after the first shard; another makes the rest only, and the same volume and numbers."""
    voxels = phantom() + normal(SHAPE, 25.0)
    if kind == "complete":
        voxels[[10, 11, 67], 8:12, 9:14] = np.nan
    scan = bench.taken_in(voxels)
    parameters = {"tile": 32, "overlap": 0} if kind == "denoise" else {"tile": 16}
    undisturbed = bench.result(kind, scan, **parameters)
    boxes: list[Box] = []
    restorer: Any = Denoising if kind == "denoise" else Completing
    make = restorer.__call__

    def dying(self: Any, frame: int | None, box: Box) -> Any:
        boxes.append(box)
        if len(boxes) == 2:
            raise StorageFull("no room")
        return make(self, frame, box)

    job = bench.catalogue.submit(kind, parameters, volume_id=scan)
    monkeypatch.setattr(restorer, "__call__", dying)
    assert bench.runner.run(job.id).state is JobState.QUEUED  # type: ignore[union-attr]
    ended = bench.runner.run(job.id)
    assert ended is not None
    assert ended.attempt == 2
    assert ended.result is not None, ended.error
    assert [box[0].start for box in boxes] == [0, 64, 64]
    own = {"volume_id", "seconds", "peak_memory_bytes"}
    assert {name: told for name, told in ended.result.items() if name not in own} == {
        name: told for name, told in undisturbed.items() if name not in own
    }


@pytest.mark.parametrize("kind", ["denoise", "complete"])
def test_a_job_is_cancelled_between_windows(bench: Bench, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scan, told = bench.taken_in(punched("half")[1]), []
    job = bench.catalogue.submit(kind, {"tile": 16}, volume_id=scan)

    def report(lease: Lease, progress: Progress) -> None:
        told.append(progress.phase)
        if told.count(PHASES[kind]) == 30:
            bench.catalogue.request_cancel(job.id)
            raise JobCancelled(job.id)

    monkeypatch.setattr(Lease, "report", report)
    ended = bench.runner.run(job.id)
    assert ended is not None
    assert ended.state is JobState.CANCELLED
    assert told.count(PHASES[kind]) == 30
    assert not (bench.root / "volumes" / derived_id(job.id)).exists()


def test_observed_voxels_become_what_the_train_says_only_if_asked_to(bench: Bench) -> None:
    """Of rank 1 it says little of a scan; and without gaps there is something to do then."""
    truth = phantom((20, 18, 22))
    scan = bench.taken_in(truth)
    loose = bench.voxels(bench.result("complete", scan, keep_observed=False, rank=1)["volume_id"])
    near = bench.voxels(bench.result("complete", scan, keep_observed=False, rank=64)["volume_id"])
    assert rms(loose - truth) > 3 * rms(near - truth) > 0
    assert rms(loose - truth) < truth.std()


def test_the_overview_goes_on_where_cells_hold_nothing() -> None:
    """A slope across a gap of half of the cells along each axis stays one."""
    shape = (128, 128, 128)
    slope = np.indices(shape, dtype=np.float32).sum(axis=0)
    seen = np.ones(shape, bool)
    gap = (slice(24, 88),) * 3
    seen[gap] = False
    overview = Overview.of(shape, lambda box: (slope[box], seen[box]), "cpu")
    assert overview is not None
    assert (overview.low, overview.high) == (slope[seen].min(), slope[seen].max())
    assert rms(overview.at(gap) - slope[gap]) < 1e-3 * slope[gap].std()


LONG = (64, 64, 1040)
"""Of cells that are few, and of a cube around them that is large."""


def memory_of(root: Path) -> tuple[int, int]:
    """What a completion asks for, and the most that its process held; in a process of its own."""
    settings = WorkerSettings(data_root=root, device="cpu", memory_budget_bytes=4 << 30)
    asked = []
    with Catalogue.open(settings.catalogue_url) as catalogue:
        catalogue.announce("w", [kind.announcement() for kind in KINDS], "cpu")
        bench = Bench(root, catalogue, Runner(catalogue, KINDS, settings, worker="w", device="cpu"))
        voxels = phantom(LONG) + normal(LONG, 9.0)
        voxels[5:9, 6:9, 7:30] = np.nan
        scan = bench.taken_in(voxels)
        estimate = Complete.memory_bytes

        def counted(*given: Any) -> int:
            asked.append(estimate(*given))
            return asked[0]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Complete, "memory_bytes", counted)
            result = bench.result("complete", scan, tile=32)
    return asked[0], int(result["peak_memory_bytes"])


@pytest.mark.slow
def test_a_completion_takes_the_memory_that_it_asks_for(tmp_path: Path) -> None:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        asked, peak = pool.submit(memory_of, tmp_path).result(timeout=300)
    assert peak < asked < 1.3 * peak
