"""Scans of a cohort: in memory the same bits as in the store, and few open at once."""

from __future__ import annotations

import numpy as np
import pytest
from support.cohorts import School

from models.errors import SourceFailed
from models.learning.preparation import Preparation, PreparationConfig
from models.regressors import dense
from models.regressors.trains import intensities
from storage.records import VolumeRecord
from storage.volume import Volume
from workers import scans as module
from workers.scans import HeldScan, Readers, StoredScan, raw_scan


def opened(school: School, number: int) -> tuple[VolumeRecord, Volume]:
    record = school.catalogue.volume(school.rows[number]["volume_id"])
    assert record.store is not None
    return record, Volume.open(school.root / record.store)


def test_a_held_scan_gives_the_bits_of_the_prepared_one(
    school: School, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dense, "SLAB", 7)
    record, volume = opened(school, 0)
    with Readers(1 << 20, "threads") as readers:
        raw = raw_scan(StoredScan(record, volume, readers), volume.stored)
        prepared = Preparation.fit(PreparationConfig(), [raw]).apply(raw, 0)
        held = HeldScan(prepared)
        origins = np.random.default_rng(0).integers(-12, 26, (300, 3))
        for size in (1, 9, (3, 20, 5), (16, 24, 24)):
            assert np.array_equal(held.cubes(origins, size), prepared.cubes(origins, size))
    assert (held.shape, held.channels) == (prepared.shape, 1)
    assert np.ptp(held.cubes(np.array([[100, 0, 0]]), 4)) == 0


def test_a_held_scan_states_the_range_that_the_prepared_one_states(school: School) -> None:
    """A train of its intensities then has a certificate, whether the cohort fitted into memory or not."""
    record, volume = opened(school, 0)
    with Readers(1 << 20, "threads") as readers:
        raw = raw_scan(StoredScan(record, volume, readers), volume.stored)
        prepared = Preparation.fit(PreparationConfig(clip=3.5), [raw]).apply(raw, 0)
        seen = [intensities(scan) for scan in (prepared, HeldScan(prepared))]
    assert [encoder.value_range for encoder in seen] == [(-3.5, 3.5)] * 2


def test_a_held_scan_is_finite(school: School, monkeypatch: pytest.MonkeyPatch) -> None:
    record, volume = opened(school, 0)
    with Readers(1 << 20, "threads") as readers:
        raw = raw_scan(StoredScan(record, volume, readers), volume.stored)
        prepared = Preparation.fit(PreparationConfig(), [raw]).apply(raw, 0)
        broken = np.full((1, 1, *prepared.shape), np.nan, np.float32)
        monkeypatch.setattr(prepared, "cubes", lambda origins, size: broken)
        with pytest.raises(SourceFailed, match="slices 0 to 15: values that are not finite"):
            HeldScan(prepared)


def test_few_readers_are_open_at_once_and_none_at_the_end(
    school: School, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "OPEN_READERS", 3)
    volumes = [opened(school, number)[1] for number in range(5)]
    closed: list[object] = []
    with Readers(3 << 20, "threads") as readers:
        made = [readers.of(volume) for volume in volumes]
        for reader in made:
            monkeypatch.setattr(reader, "close", lambda reader=reader: closed.append(reader))
        assert readers.of(volumes[3]) is made[3]
        assert readers.of(volumes[4]) is made[4]
        assert readers.of(volumes[0]) is not made[0]
        assert closed == [made[2]]
        assert readers.of(volumes[3]) is made[3]
    assert closed[1:] == [made[4], made[3]]


def test_a_raw_scan_knows_what_its_header_says(school: School) -> None:
    record, volume = opened(school, 2)
    with Readers(1 << 20, "threads") as readers:
        scan = raw_scan(StoredScan(record, volume, readers), volume.stored)
    assert (scan.spacing, scan.modality) == ((3.0, 2.0, 2.0), None)
    assert scan.affine is not None
    assert np.array_equal(np.diag(scan.affine), [2, 2, 3, 1])
    assert scan.statistics.maximum == volume.stored.statistics.maximum
