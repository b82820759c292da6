"""A disk that refuses a write: the job may be tried again, and nothing is left of the attempt."""

from __future__ import annotations

import gzip
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from support.probe import Probe, ProbeResult
from support.scans import files_below, upload

from storage.catalogue import Catalogue
from storage.errors import CatalogueUnavailable, StorageFull
from storage.jobs import JobState
from storage.records import VolumeState
from storage.uploads import Upload
from storage.volume import Volume
from workers.context import JobContext
from workers.jobs import KINDS
from workers.jobs.base import Outcome

MIB = 1 << 20
LIMIT = 2 * MIB
"""Enough for the catalogue's files; too little for a shard of noise."""


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """The system refuses to let any file of this process grow beyond `size`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def noise() -> bytes:
    """A scan whose shards are larger than LIMIT."""
    voxels = np.random.default_rng(0).integers(-30000, 30000, (256, 256, 40)).astype(np.int16)
    return gzip.compress(nibabel.Nifti1Image(voxels, np.eye(4)).to_bytes(), compresslevel=1, mtime=0)


def test_an_ingest_is_tried_again_when_there_is_room(
    catalogue: Catalogue, make_runner: Any, tmp_path: Path
) -> None:
    runner = make_runner(*KINDS)
    record, job = upload(catalogue, tmp_path, noise())
    with no_file_above(LIMIT):
        retried = runner.run(job.id)
    assert (retried.state, retried.attempt) == (JobState.QUEUED, 1)
    assert catalogue.volume(record.id).state is VolumeState.VALIDATING
    assert files_below(tmp_path / "volumes", "**/*.zarr") == []
    assert files_below(tmp_path / "uploads") == [record.id]
    ended = runner.run(job.id)
    assert (ended.state, ended.attempt) == (JobState.SUCCEEDED, 2)
    ready = catalogue.volume(record.id)
    assert ready.stored is not None
    assert ready.store is not None
    Volume.open(tmp_path / ready.store, ready.stored.digest).verify()


def test_an_ingest_that_never_finds_room_fails_and_leaves_nothing(
    catalogue: Catalogue, make_runner: Any, tmp_path: Path
) -> None:
    runner = make_runner(*KINDS)
    record, job = upload(catalogue, tmp_path, noise())
    with no_file_above(LIMIT):
        ended = [runner.run(job.id) for _ in range(3)][-1]
    assert (ended.state, ended.attempt) == (JobState.FAILED, 3)
    assert (ended.error["code"], ended.error["retryable"]) == ("storage-full", True)
    assert catalogue.volume(record.id).state is VolumeState.REJECTED
    assert files_below(tmp_path / "volumes") == []
    assert files_below(tmp_path / "uploads") == []


def test_an_artifact_that_does_not_fit_leaves_nothing(
    catalogue: Catalogue, make_runner: Any, tmp_path: Path
) -> None:
    def behave(context: JobContext) -> Outcome:
        small = context.artifacts.write_json("small.json", {})
        large = context.artifacts.write_tensors("large.safetensors", {"a": np.zeros(LIMIT)}, {})
        return Outcome(ProbeResult(number=1), (small, large))

    runner = make_runner(Probe(behave))
    job = catalogue.submit("probe", {})
    with no_file_above(LIMIT):
        assert runner.run(job.id).state is JobState.QUEUED
    assert files_below(tmp_path / "artifacts", "*/*") == []
    assert runner.run(job.id).state is JobState.SUCCEEDED


@pytest.mark.parametrize("piece", [1000, MIB])
def test_an_upload_that_does_not_fit_is_removed(piece: int, tmp_path: Path) -> None:
    """Small pieces are still in a buffer when the disk refuses, which refuses again when it is closed."""
    arriving = Upload(tmp_path, "vol_1", 1 << 30)

    def send() -> None:
        for _ in range(2 * LIMIT // piece):
            arriving.write(bytes(piece))

    with no_file_above(LIMIT):
        with pytest.raises(StorageFull):
            send()
        arriving.abort()
    assert files_below(tmp_path) == []


def test_a_catalogue_that_cannot_write_loses_nothing(catalogue: Catalogue, make_runner: Any) -> None:
    """The job is there afterwards, and runs, once the attempt that nobody could end has lost its lease."""

    def behave(context: JobContext) -> Outcome:
        if context.job.attempt == 1:
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
        return Outcome(ProbeResult(number=1))

    runner = make_runner(Probe(behave), lease_s=0.2)
    job = catalogue.submit("probe", {})
    with no_file_above(LIMIT), pytest.raises((CatalogueUnavailable, StorageFull)):
        runner.run(job.id)
    assert catalogue.job(job.id).state is JobState.RUNNING
    while catalogue.job(job.id).state is JobState.RUNNING:
        catalogue.sweep()
    ended = runner.run(job.id)
    assert (ended.state, ended.attempt) == (JobState.SUCCEEDED, 2)
