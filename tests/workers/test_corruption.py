"""Damage at rest, seen from the main job: no number is ever made of it, and the volume is closed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.scans import nifti, upload

from storage.catalogue import Catalogue
from storage.jobs import Job, JobState
from storage.records import VolumeRecord, VolumeState
from workers.jobs import KINDS
from workers.runner import Runner

FLIPS = 50
EMBED = {"rank": 3, "sweeps": 1, "held_out": 400}


@dataclass(frozen=True)
class Ward:
    """An ingested volume whose embedding touches every chunk, to be damaged again and again."""

    catalogue: Catalogue
    runner: Runner
    record: VolumeRecord
    root: Path

    @property
    def store(self) -> Path:
        assert self.record.store is not None
        return self.root / self.record.store

    def files(self) -> list[Path]:
        return sorted(path for path in self.store.rglob("*") if path.is_file())

    def embedded(self) -> tuple[Job, VolumeRecord]:
        """The end of an embedding, and the volume then: each time a new volume on the same store."""
        volume, ingest = upload(self.catalogue, self.root, b"scan")
        self.catalogue.claim(ingest.id, "w", 30)
        stored, store = self.record.stored, self.record.store
        self.catalogue.finish(ingest.id, 1, {}, volume=stored, store=store)
        job = self.runner.run(self.catalogue.submit("embed", EMBED, volume_id=volume.id).id)
        assert job is not None
        return job, self.catalogue.volume(volume.id)

    def check_found(self, damage: str) -> None:
        """The damage is found, told, and the volume closed; no result, and nothing to download."""
        job, volume = self.embedded()
        assert (job.state, job.result, job.artifacts) == (JobState.FAILED, None, ()), damage
        assert job.error is not None
        assert (job.error["code"], job.error["retryable"]) == ("corrupt-volume", False), damage
        assert (volume.state, volume.error) == (VolumeState.QUARANTINED, job.error), damage
        assert not (self.root / "artifacts" / job.id).exists(), damage


@pytest.fixture
def ward(catalogue: Catalogue, make_runner: Callable[..., Any], tmp_path: Path) -> Ward:
    runner = make_runner(*KINDS)
    record, job = upload(catalogue, tmp_path, nifti((40, 48, 70)))
    runner.run(job.id)
    return Ward(catalogue, runner, catalogue.volume(record.id), tmp_path)


def test_a_flipped_bit_anywhere_is_found(ward: Ward) -> None:
    """In what the embedding reads: chunks, indexes, checksums, metadata and manifest."""
    sound, volume = ward.embedded()
    assert (sound.state, volume.state) == (JobState.SUCCEEDED, VolumeState.READY)
    files = [path for path in ward.files() if path.relative_to(ward.store).parts[0] != "1"]
    generator = np.random.default_rng(0)
    for _ in range(FLIPS):
        path = files[generator.integers(len(files))]
        content = path.read_bytes()
        place, bit = int(generator.integers(len(content))), int(generator.integers(8))
        damaged = bytearray(content)
        damaged[place] ^= 1 << bit
        path.write_bytes(damaged)
        ward.check_found(f"bit {bit} of byte {place} of {path.name}")
        path.write_bytes(content)
    again, _ = ward.embedded()
    assert again.result is not None
    assert sound.result is not None
    assert again.result["cores_digest"] == sound.result["cores_digest"]


def test_deleted_and_exchanged_objects_are_found(ward: Ward) -> None:
    shards = sorted(path for path in (ward.store / "0" / "c").rglob("*") if path.is_file())
    assert len(shards) == 3
    first, second = shards[0].read_bytes(), shards[1].read_bytes()
    shards[0].write_bytes(second)
    shards[1].write_bytes(first)
    ward.check_found("two shards exchanged")
    shards[0].write_bytes(first)
    ward.check_found("one shard twice")
    shards[1].unlink()
    ward.check_found("a shard deleted")
    shards[1].write_bytes(second[: len(second) // 2])
    ward.check_found("a shard cut off")
    shards[1].write_bytes(second)
    for name in ("manifest.json", "zarr.json", "0/zarr.json", "0/chunks.crc32c"):
        (ward.store / name).rename(ward.root / "aside")
        ward.check_found(f"{name} deleted")
        (ward.root / "aside").rename(ward.store / name)
    assert ward.embedded()[0].state is JobState.SUCCEEDED


def test_the_manifest_of_another_volume_is_found(ward: Ward) -> None:
    """A manifest that is sound in itself, together with all the files that it names."""
    other, job = upload(ward.catalogue, ward.root, nifti((40, 48, 71)))
    ward.runner.run(job.id)
    store = ward.catalogue.volume(other.id).store
    assert store is not None
    ward.store.rename(ward.root / "aside")
    (ward.root / store).rename(ward.store)
    ward.check_found("a whole other volume")
