"""`compress` and `decompress` through the runner: targets that are met, measured on what is decoded."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray
from support.cohorts import School

from storage.compressors.report import reported
from storage.derived_coding import Coding
from storage.derived_draft import Draft
from storage.errors import StorageFull
from storage.ids import derived_id
from storage.jobs import Job, JobState
from storage.records import VolumeState
from storage.volume import Volume

Array = NDArray[Any]
VOLATILE = {"seconds", "mb_s", "peak_memory_bytes", "volume_id", "tiles_coded", "tiles_kept"}


@pytest.fixture(scope="module")
def clinic(tmp_path_factory: pytest.TempPathFactory) -> Iterator[School]:
    """A worker of all kinds, without patients."""
    opened = School.of(tmp_path_factory.mktemp("clinic"), 0)
    yield opened
    opened.catalogue.close()


def body(shape: tuple[int, ...], dtype: Any, seed: int = 0) -> Array:
    """(x, y, z) or (x, y, z, t): smooth, an organ, and noise."""
    x, y, z = np.ogrid[tuple(slice(-1, 1, max(2, side) * 1j) for side in shape[:3])]
    field = 100 * np.exp(-2 * (x**2 + y**2 + z**2)) + 60 * ((x > 0) & (abs(y) < 0.5) & (abs(z) < 0.5)) + 20
    field = field[tuple(map(slice, shape[:3]))]
    if len(shape) == 4:
        field = field[..., None] * np.linspace(1, 1.2, shape[3])
    return (field + np.random.default_rng(seed).normal(0, 1.5, shape)).astype(dtype)


def scan(voxels: Array) -> bytes:
    image = nibabel.Nifti1Image(voxels, np.diag([2, 2, 3, 1]), dtype=voxels.dtype)
    return gzip.compress(image.to_bytes(), compresslevel=1, mtime=0)


@pytest.fixture(scope="module")
def ct(clinic: School) -> str:
    """A scan of int16, (18, 22, 68)."""
    return clinic.ingested(scan(body((68, 22, 18), np.int16)))


def opened(clinic: School, volume_id: str) -> Volume:
    record = clinic.catalogue.volume(volume_id)
    assert record.stored is not None
    assert record.store is not None
    return Volume.open(clinic.root / record.store, record.stored.digest)


def result_of(job: Job) -> dict[str, Any]:
    assert job.result is not None, job.error
    return job.result


def told_of(job: Job) -> str:
    assert job.error is not None
    return str(job.error["detail"])


@pytest.fixture(scope="module")
def small(clinic: School, ct: str) -> Job:
    return clinic.run("compress", {"ratio": 8}, ct)


def test_a_ratio_is_met_and_all_is_measured_on_the_decoded_file(clinic: School, ct: str, small: Job) -> None:
    result = result_of(small)
    jsonschema.validate(result, clinic.catalogue.kind("compress").result_schema)
    source, made = opened(clinic, ct), opened(clinic, result["volume_id"])
    made.verify()
    truth = reported(source.array(0)[...], made.array(0)[...], result["coded_bytes"])
    assert 8 <= result["ratio"] <= 8 * 1.06
    assert result["ratio"] == pytest.approx(truth.ratio)
    assert result["level0_ratio"] > result["ratio"] > result["stored_ratio"]
    assert result["psnr"] == pytest.approx(truth.psnr)
    assert (result["peak"], result["max_error"]) == (truth.peak, truth.max_error)
    assert result["ssim"] == pytest.approx(truth.ssim)
    assert result["stored_bytes"] == made.stored.stored_bytes == made.manifest.size
    shards = [made.manifest.objects[key].size for key in made.manifest.seals]
    assert result["coded_bytes"] == sum(shards) == sum(result["level_bytes"])
    assert (result["compressor"], list(result["setting"])) == ("putt", ["step"])
    assert result["target"] == "a ratio of 8"
    assert result["tiles_coded"] == 3
    assert json.loads(clinic.artifact(small, "report.json").read_text()) == result


def test_it_is_a_volume_of_its_own(clinic: School, ct: str, small: Job) -> None:
    record, source = clinic.catalogue.volume(derived_id(small.id)), clinic.catalogue.volume(ct)
    assert record.state is VolumeState.READY
    assert record.ingest_job == small.id
    assert record.name.startswith(f"{source.name}, putt 8")
    assert record.stored is not None
    assert source.stored is not None
    derived = record.stored.derived
    assert derived is not None
    assert (derived.volume_id, derived.kind) == (ct, "compress")
    assert derived.digest == source.stored.digest == result_of(small)["source_digest"]
    assert derived.settings["setting"] == result_of(small)["setting"]
    assert record.stored.grid == source.stored.grid
    codecs = str(json.loads((clinic.root / str(record.store) / "0" / "zarr.json").read_text())["codecs"])
    assert "tomotrain.putt" in codecs
    plane = opened(clinic, record.id).plane("y", 11)
    assert (
        np.abs(plane - opened(clinic, ct).plane("y", 11).astype(float)).max() <= result_of(small)["max_error"]
    )
    assert not (clinic.root / "checkpoints" / small.id).exists()


def test_same_scan_same_settings_same_volume(clinic: School, ct: str, small: Job) -> None:
    again = clinic.run("compress", {"ratio": 8}, ct)
    first, second = result_of(small), result_of(again)
    assert {k: v for k, v in first.items() if k not in VOLATILE} == {
        k: v for k, v in second.items() if k not in VOLATILE
    }


def test_a_compressed_volume_is_decompressed_and_compressed_again(clinic: School, small: Job) -> None:
    volume_id = derived_id(small.id)
    decoded = opened(clinic, volume_id)
    plain = clinic.run("decompress", {}, volume_id)
    jsonschema.validate(result_of(plain), clinic.catalogue.kind("decompress").result_schema)
    made = opened(clinic, derived_id(plain.id))
    made.verify()
    for level in range(decoded.stored.levels):
        np.testing.assert_array_equal(made.array(level)[...], decoded.array(level)[...])
    assert made.stored.statistics.maximum == decoded.stored.statistics.maximum
    assert made.stored.statistics.std == pytest.approx(decoded.stored.statistics.std)
    assert made.array(0).chunks == (32, 32, 32)
    twice = result_of(clinic.run("compress", {"bound": 0}, volume_id))
    assert (twice["psnr"], twice["max_error"], twice["ssim"]) == (None, 0, 1)
    np.testing.assert_array_equal(opened(clinic, twice["volume_id"]).array(0)[...], decoded.array(0)[...])


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((20, 24, 16), np.float32),
        ((20, 24, 16), np.uint8),
        ((20, 24, 16), np.uint16),
        ((12, 10, 8), np.int32),
        ((12, 10, 8), np.float64),
        ((1, 30, 1), np.float32),
        ((9, 10, 8, 3), np.int16),
    ],
)
def test_a_psnr_is_met_for_every_dtype_and_shape(clinic: School, shape: Any, dtype: Any) -> None:
    source = clinic.ingested(scan(body(shape, dtype)))
    job = clinic.run("compress", {"psnr": 40}, source)
    result = result_of(job)
    values, told = (opened(clinic, name).array(0)[...] for name in (source, result["volume_id"]))
    truth = reported(values, told, result["coded_bytes"])
    assert told.dtype == dtype
    assert result["psnr"] is None or 40 <= result["psnr"] == pytest.approx(truth.psnr)
    assert truth.psnr >= 40


@pytest.mark.parametrize(
    ("dtype", "bound", "compressor"),
    [
        (np.int16, 3, "bounded"),
        (np.int16, 0, "bounded"),
        (np.float32, 0, "blosc"),
        (np.float32, 2.5, "putt"),
        (np.int16, 1e308, "bounded"),
        (np.float32, 1e308, "putt"),
    ],
)
def test_a_bound_holds_on_every_voxel(clinic: School, dtype: Any, bound: float, compressor: str) -> None:
    source = clinic.ingested(scan(body((20, 24, 16), dtype, seed=3)))
    result = result_of(clinic.run("compress", {"bound": bound}, source))
    values, told = (opened(clinic, name).array(0)[...] for name in (source, result["volume_id"]))
    largest = np.abs(values.astype(float) - told).max()
    assert largest <= bound
    assert result["max_error"] == largest
    assert result["compressor"] == compressor
    assert (result["psnr"] is None) == (largest == 0)


@pytest.mark.parametrize(
    "voxels",
    [
        np.full((1, 1, 1), 7, np.int16),
        np.full((9, 8, 7), -3.5, np.float32),
        np.random.default_rng(0).normal(0, 1e37, (9, 8, 7)).astype(np.float32),
    ],
    ids=["one voxel", "constant", "huge"],
)
def test_odd_volumes(clinic: School, voxels: Array) -> None:
    source = clinic.ingested(scan(voxels))
    for wanted in ({"bound": 0}, {"psnr": 60}):
        result = result_of(clinic.run("compress", wanted, source))
        told = opened(clinic, result["volume_id"]).array(0)[...]
        if wanted == {"bound": 0} or result["peak"] == 0:
            np.testing.assert_array_equal(told, voxels.T)
            assert (result["psnr"], result["max_error"]) == (None, 0)


def test_the_largest_numbers_of_a_dtype_stay_finite(clinic: School) -> None:
    most = np.finfo(np.float32).max
    voxels = np.clip((body((24, 20, 16), np.float64) - 60) / 40, -1, 1) * most
    source = clinic.ingested(scan(voxels.astype(np.float32)))
    result = result_of(clinic.run("compress", {"ratio": 20}, source))
    told = opened(clinic, result["volume_id"]).array(0)[...]
    assert result["max_error"] > 0
    assert told.max() == most


def test_gaps_stay_known(clinic: School) -> None:
    voxels = body((12, 10, 8), np.float32)
    voxels[3, 4, 5] = np.nan
    result = result_of(clinic.run("compress", {"psnr": 50}, clinic.ingested(scan(voxels))))
    gaps = opened(clinic, result["volume_id"]).gaps()
    assert gaps is not None
    np.testing.assert_array_equal(gaps.box((0, 0, 0), (8, 10, 12)), np.isnan(voxels.T))


def test_auto_takes_what_is_smallest_and_meets_the_target(clinic: School, ct: str) -> None:
    chosen = result_of(clinic.run("compress", {"bound": 0, "compressor": "auto"}, ct))
    for name in ("blosc", "zstd"):
        other = result_of(clinic.run("compress", {"bound": 0, "compressor": name}, ct))
        assert (other["compressor"], other["setting"], other["max_error"]) == (name, {}, 0)
        assert chosen["coded_bytes"] <= other["coded_bytes"]


def test_a_peer_by_name(clinic: School, ct: str) -> None:
    pytest.importorskip("imagecodecs")
    result = result_of(clinic.run("compress", {"psnr": 45, "compressor": "zfp"}, ct))
    assert (result["compressor"], list(result["setting"])) == ("zfp", ["tolerance"])
    assert 45 <= result["psnr"] <= 46


def test_wavelets_meet_a_target_and_are_chosen_where_they_are_best(clinic: School, ct: str) -> None:
    result = result_of(clinic.run("compress", {"psnr": 42, "compressor": "wavelet"}, ct))
    assert (result["compressor"], list(result["setting"])) == ("wavelet", ["step"])
    values, told = (opened(clinic, name).array(0)[...] for name in (ct, result["volume_id"]))
    assert 42 <= result["psnr"] == pytest.approx(reported(values, told, result["coded_bytes"]).psnr)
    assert result["psnr"] <= 43
    chosen = result_of(clinic.run("compress", {"psnr": 42, "compressor": "auto"}, ct))
    assert chosen["compressor"] == "wavelet"
    assert chosen["coded_bytes"] == pytest.approx(result["coded_bytes"], rel=0.02)


# What cannot be had


def published(clinic: School, job: Job) -> list[Path]:
    return [*clinic.root.glob(f"volumes/{derived_id(job.id)}/*"), *clinic.root.glob(f"*/{job.id}/*")]


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"ratio": 1e7}, ["putt cannot reach a ratio of 1e+07", "the nearest has ratio = ", "smaller ratio"]),
        ({"ratio": 50, "compressor": "zstd"}, ["zstd cannot reach a ratio of 50", "ratio = "]),
        (
            {"bound": 0, "compressor": "tt_svd"},
            ["an error of at most 0 on every voxel", "without loss: blosc"],
        ),
    ],
)
def test_a_target_out_of_reach_says_what_can_be_had(
    clinic: School, ct: str, wanted: dict[str, Any], words: list[str]
) -> None:
    job = clinic.run("compress", wanted, ct)
    assert job.error is not None
    assert (job.state, job.error["code"]) == (JobState.FAILED, "unreachable-target")
    for word in words:
        assert word in told_of(job)
    assert published(clinic, job) == []


def test_a_psnr_out_of_reach_says_what_can_be_had(clinic: School) -> None:
    source = clinic.ingested(scan(body((12, 10, 8), np.float32)))
    job = clinic.run("compress", {"psnr": 299, "compressor": "tt_svd"}, source)
    assert job.error is not None
    assert job.error["code"] == "unreachable-target"
    assert "tt_svd cannot reach 299 dB" in told_of(job)
    assert 80 < job.error["best"]["psnr"] < 299
    assert published(clinic, job) == []


def test_values_that_a_compressor_cannot_take(clinic: School) -> None:
    pytest.importorskip("imagecodecs")
    job = clinic.run(
        "compress", {"compressor": "jpeg2000"}, clinic.ingested(scan(body((9, 8, 7), np.float32)))
    )
    assert job.error is not None
    assert job.error["code"] == "unsuitable-compressor"
    assert "use putt or zfp" in told_of(job)


@pytest.mark.parametrize(
    ("parameters", "word"),
    [
        ({"ratio": 5, "psnr": 40}, "ratio and psnr"),
        ({"ratio": 1}, "greater than 1"),
        ({"bound": -1}, "greater than or equal to 0"),
        ({"compressor": "rar"}, "known are putt"),
    ],
)
def test_parameters_that_make_no_sense(
    clinic: School, ct: str, parameters: dict[str, Any], word: str
) -> None:
    job = clinic.run("compress", parameters, ct)
    assert job.error is not None
    assert job.error["code"] == "invalid-parameters"
    assert word in told_of(job)


def test_damage_of_the_source_quarantines_it(clinic: School) -> None:
    source = clinic.ingested(scan(body((12, 10, 8), np.int16)))
    record = clinic.catalogue.volume(source)
    shard = clinic.root / str(record.store) / "0" / "c" / "0" / "0" / "0"
    content = bytearray(shard.read_bytes())
    content[20] ^= 1
    shard.write_bytes(content)
    job = clinic.run("compress", {"psnr": 40}, source)
    assert job.error is not None
    assert job.error["code"] == "corrupt-volume"
    assert clinic.catalogue.volume(source).state is VolumeState.QUARANTINED
    assert published(clinic, job) == []


# Attempts


def test_the_next_attempt_goes_on_and_comes_to_the_same_volume(
    clinic: School, ct: str, small: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    add, encoded, calls = Draft.add, Coding.encoded, []

    def full(draft: Draft, key: str, content: bytes, **facts: Any) -> Any:
        if key.startswith("1/") and draft.drafts.attempt == 1:
            raise StorageFull("the volume could not be written: for a test")
        return add(draft, key, content, **facts)

    def counted(coding: Coding, *arguments: Any) -> bytes:
        calls.append(coding)
        return encoded(coding, *arguments)

    monkeypatch.setattr(Draft, "add", full)
    monkeypatch.setattr(Coding, "encoded", counted)
    first = clinic.run("compress", {"ratio": 8}, ct)
    assert (first.state, first.attempt) == (JobState.QUEUED, 1)
    calls.clear()
    ended = clinic.runner.run(first.id)
    assert ended is not None
    result = result_of(ended)
    assert ended.attempt == 2
    assert result["volume_digest"] == result_of(small)["volume_digest"]
    assert (result["tiles_kept"], result["tiles_coded"]) == (2, 1)
    assert not (clinic.root / "checkpoints" / first.id).exists()


def test_a_cancelled_job_leaves_nothing(clinic: School, ct: str, monkeypatch: pytest.MonkeyPatch) -> None:
    job = clinic.catalogue.submit("compress", {"ratio": 8}, volume_id=ct)
    encoded = Coding.encoded

    def told_to_stop(coding: Coding, *arguments: Any) -> bytes:
        clinic.catalogue.request_cancel(job.id)
        return encoded(coding, *arguments)

    monkeypatch.setattr(Coding, "encoded", told_to_stop)
    monkeypatch.setattr("workers.lease.LONGEST_PAUSE_S", 0.001)
    monkeypatch.setattr("storage.derived_compressed.MOST_PASSES", 1)
    ended = clinic.runner.run(job.id)
    assert ended is not None
    assert ended.state is JobState.CANCELLED
    assert published(clinic, job) == []


def test_a_compressed_scan_is_embedded_from_the_chunks_that_it_has(
    clinic: School, ct: str, small: Job
) -> None:
    """All 2 tiles of 64^3, of which each is decoded once, where the original has 3 chunks of 32^3."""
    asked = {"rank": 3, "held_out": 50}
    plain, packed = (result_of(clinic.run("embed", asked, volume)) for volume in (ct, derived_id(small.id)))
    assert (plain["chunks_read"], plain["chunk_share_read"]) == (3, 1.0)
    assert (packed["chunks_read"], packed["chunk_share_read"]) == (2, 1.0)
    assert packed["bytes_read"] < plain["bytes_read"]
    assert packed["volume_digest"] == opened(clinic, derived_id(small.id)).stored.digest
