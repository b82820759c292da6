"""`export`: a volume becomes a file, or nothing is left."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from support.compressed import published
from support.scans import files_below, upload
from test_full_disk import LIMIT, no_file_above, noise

from storage.catalogue import Catalogue
from storage.errors import JobCancelled
from storage.jobs import Job, JobState, Progress
from storage.readers import open_scan
from storage.records import VolumeRecord
from storage.volume import Volume
from workers.jobs.export import HELD, Export
from workers.jobs.ingest import Ingest
from workers.lease import Lease
from workers.memory import BASE_BYTES

VOXELS = (500 * np.random.default_rng(0).random((60, 50, 40))).astype(np.int16)
AFFINE = np.diag([1.0, 2.0, 3.0, 1.0])


@pytest.fixture
def volume(catalogue: Catalogue, make_runner: Any, tmp_path: Path) -> VolumeRecord:
    """A scan that has been read."""
    record, job = upload(catalogue, tmp_path, nibabel.Nifti1Image(VOXELS, AFFINE).to_bytes())
    assert make_runner(Ingest()).run(job.id).state is JobState.SUCCEEDED
    return catalogue.volume(record.id)


def exported(catalogue: Catalogue, runner: Any, volume: VolumeRecord, **parameters: Any) -> Job:
    ended: Job = runner.run(catalogue.submit("export", parameters, volume_id=volume.id).id)
    return ended


def artifact(root: Path, job: Job) -> Path:
    return root / "artifacts" / job.id / str(job.attempt) / job.artifacts[0].name


def test_a_scan_goes_out_as_it_came_in(
    catalogue: Catalogue, make_runner: Any, tmp_path: Path, volume: VolumeRecord
) -> None:
    runner = make_runner(Export())
    job = exported(catalogue, runner, volume)
    assert job.state is JobState.SUCCEEDED, job.error
    result, path = job.result, artifact(tmp_path, job)
    assert result is not None
    assert (path.name, result["version"], result["codecs"], result["notes"]) == ("volume.nii.gz", "1", [], [])
    assert (result["stored_bytes"], result["sha256"]) == (path.stat().st_size, job.artifacts[0].sha256)
    assert result["volume_digest"] == volume.stored.digest  # type: ignore[union-attr]
    image = nibabel.load(path)
    np.testing.assert_array_equal(np.asarray(image.dataobj), VOXELS)
    np.testing.assert_array_equal(image.affine, AFFINE)

    job = exported(catalogue, runner, volume, format="ome-zarr")
    assert job.result is not None
    assert job.result["codecs"] == ["bytes", "crc32c", "zstd"]
    with open_scan(artifact(tmp_path, job)) as scan:
        (slab,) = scan.slabs(40)
        np.testing.assert_array_equal(slab.voxels, VOXELS.T)


def test_a_compressed_volume_is_exported_like_any_other(
    catalogue: Catalogue, make_runner: Any, tmp_path: Path, volume: VolumeRecord
) -> None:
    runner = make_runner(Export())
    small = published(catalogue, tmp_path, volume, "export")
    manifest = Volume.open(tmp_path / str(small.store)).manifest
    job = exported(catalogue, runner, small, format="ome-zarr", keep_codecs=True)
    assert job.result is not None, job.error
    assert job.result["codecs"] == ["crc32c", "tomotrain.putt"]
    assert len(job.result["notes"]) == 2
    with zipfile.ZipFile(artifact(tmp_path, job)) as archive:
        assert set(archive.namelist()) == {*manifest.objects, "manifest.json"}


@pytest.mark.parametrize(
    ("parameters", "pointer"),
    [
        ({"format": "analyze"}, "/format"),
        ({"format": "nifti", "keep_codecs": True}, "/keep_codecs"),
        ({"format": "dicom", "keep_codecs": True}, "/keep_codecs"),
        ({"level": 1}, "/level"),
    ],
)
def test_what_cannot_be_is_refused_with_its_place(
    catalogue: Catalogue,
    make_runner: Any,
    tmp_path: Path,
    volume: VolumeRecord,
    parameters: dict[str, Any],
    pointer: str,
) -> None:
    job = exported(catalogue, make_runner(Export()), volume, **parameters)
    assert job.error is not None
    assert (job.error["code"], job.error["problems"][0][0]) == ("invalid-parameters", pointer)
    assert files_below(tmp_path / "artifacts", "*/*") == []


def test_a_volume_goes_out_as_dicom(
    catalogue: Catalogue, make_runner: Any, tmp_path: Path, volume: VolumeRecord
) -> None:
    runner = make_runner(Ingest(), Export())
    job = exported(catalogue, runner, volume, format="dicom")
    assert job.result is not None
    path = artifact(tmp_path, job)
    assert (path.name, job.artifacts[0].media_type) == ("volume.dicom.zip", "application/zip")
    assert job.result["notes"] == [
        "instances are Secondary Captures: the volume has not all that its modality's class asks for"
    ]
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.comment == b""
        assert len(archive.namelist()) == VOXELS.shape[2]
    record, sent = upload(catalogue, tmp_path, path.read_bytes())
    assert runner.run(sent.id).state is JobState.SUCCEEDED
    again = Volume.open(tmp_path / str(catalogue.volume(record.id).store))
    np.testing.assert_array_equal(again.array(0)[...], VOXELS.T)
    np.testing.assert_allclose(again.stored.grid.matrix, AFFINE, atol=1e-6)


def test_dicom_tells_what_rounding_cost_and_refuses_what_it_cannot_say(
    catalogue: Catalogue, make_runner: Any, tmp_path: Path
) -> None:
    runner = make_runner(Ingest(), Export())
    voxels = np.random.default_rng(0).standard_normal((40, 30, 20)).astype(np.float32)
    record, sent = upload(catalogue, tmp_path, nibabel.Nifti1Image(voxels, AFFINE).to_bytes())
    runner.run(sent.id)
    job = exported(catalogue, runner, catalogue.volume(record.id), format="dicom")
    assert job.result is not None
    assert "rounded to 16 bits, by " in job.result["notes"][0]

    leaning = AFFINE.copy()
    leaning[0, 1] = 0.3
    record, sent = upload(catalogue, tmp_path, nibabel.Nifti1Image(voxels, leaning).to_bytes())
    runner.run(sent.id)
    job = exported(catalogue, runner, catalogue.volume(record.id), format="dicom")
    assert job.error is not None
    assert (job.error["code"], job.error["problems"][0][0]) == ("invalid-parameters", "/format")


def test_an_export_is_cancelled_between_slabs(
    catalogue: Catalogue,
    make_runner: Any,
    tmp_path: Path,
    volume: VolumeRecord,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runner = make_runner(Export())
    job = catalogue.submit("export", {}, volume_id=volume.id)

    def stop(self: Lease, progress: Progress) -> None:
        assert (progress.phase, progress.unit) == ("writing", "planes")
        assert files_below(tmp_path / "artifacts", "*/*/*") == [f"{job.id}/1/volume.nii.gz.part"]
        catalogue.request_cancel(job.id)
        raise JobCancelled(job.id)

    monkeypatch.setattr(Lease, "report", stop)
    ended = runner.run(job.id)
    assert (ended.state, ended.artifacts) == (JobState.CANCELLED, ())
    assert files_below(tmp_path / "artifacts", "*/*") == []


@pytest.mark.parametrize("form", ["nifti", "ome-zarr"])
def test_a_full_disk_leaves_nothing_and_the_job_is_tried_again(
    catalogue: Catalogue, make_runner: Any, tmp_path: Path, form: str
) -> None:
    runner = make_runner(Ingest(), Export())
    record, ingest = upload(catalogue, tmp_path, noise())
    runner.run(ingest.id)
    job = catalogue.submit("export", {"format": form}, volume_id=record.id)
    with no_file_above(LIMIT):
        assert runner.run(job.id).state is JobState.QUEUED
    assert files_below(tmp_path / "artifacts", "*/*") == []
    ended = runner.run(job.id)
    assert (ended.state, ended.attempt) == (JobState.SUCCEEDED, 2)
    assert files_below(tmp_path / "artifacts", "*/*/*") == [
        f"{job.id}/2/{ended.artifacts[0].name}",
    ]


def test_a_worker_with_little_memory_takes_thinner_slabs_or_refuses(
    catalogue: Catalogue, make_runner: Any, tmp_path: Path, volume: VolumeRecord
) -> None:
    least = BASE_BYTES + HELD * 60 * 50 * 2
    runner = make_runner(Export(), memory_budget_bytes=least)
    job = exported(catalogue, runner, volume)
    assert job.state is JobState.SUCCEEDED
    np.testing.assert_array_equal(np.asarray(nibabel.load(artifact(tmp_path, job)).dataobj), VOXELS)
    refused = exported(catalogue, make_runner(Export(), memory_budget_bytes=least - 1), volume)
    assert refused.error is not None
    assert refused.error["code"] == "over-budget"
