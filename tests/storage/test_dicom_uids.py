"""Replaced UIDs: the same for the same, of one data root alone, and valid."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest
from pydicom.uid import UID

from storage.dicom_uids import SECRET, SentInstances, UidMap, derived_uid, replaced
from storage.errors import CorruptVolume, StorageError

SENT = "1.2.826.0.1.3680043.8.498.11172913371"


def test_a_uid_is_replaced_by_the_same_one_in_every_process_of_a_data_root(tmp_path: Path) -> None:
    first = UidMap.of(tmp_path)(SENT)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_replaced, (tmp_path, SENT)) == first
    assert UidMap.of(tmp_path / "other")(SENT) != first
    assert UidMap.of(tmp_path)(SENT + "1") != first


def _replaced(root: Path, uid: str) -> str:
    return UidMap.of(root)(uid)


def test_replacements_are_uids_and_uuids() -> None:
    new = {UidMap(bytes(32))(f"1.2.{number}") for number in range(1000)}
    assert len(new) == 1000
    for uid in {*new, derived_uid("sha256:0", 3)}:
        assert UID(uid).is_valid
        assert len(uid) <= 64
        number = int(uid.removeprefix("2.25."))
        assert (number >> 76 & 0xF, number >> 62 & 0b11) == (8, 0b10)


def test_uids_of_the_standard_stay(tmp_path: Path) -> None:
    assert UidMap.of(tmp_path)("1.2.840.10008.1.4.1.1") == "1.2.840.10008.1.4.1.1"
    assert UidMap.of(tmp_path)("1.2.840.100080.1").startswith("2.25.")


def test_the_secret_is_its_owners_alone_and_made_once(tmp_path: Path) -> None:
    UidMap.of(tmp_path)
    path = tmp_path / SECRET
    before = path.read_bytes()
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert len(before) == 32
    UidMap.of(tmp_path)
    assert path.read_bytes() == before
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_many_who_come_first_agree_on_one_secret(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        roots = [tmp_path / str(root) for root in range(20) for _ in range(3)]
        made = pool.starmap(_replaced, [(root, SENT) for root in roots], chunksize=1)
    assert len(set(made)) == 20
    assert all(len(set(made[start : start + 3])) == 1 for start in range(0, 60, 3))


def test_a_damaged_secret_is_not_used(tmp_path: Path) -> None:
    UidMap.of(tmp_path)
    (tmp_path / SECRET).write_bytes(b"short")
    with pytest.raises(StorageError, match="restore it from a backup"):
        UidMap.of(tmp_path)


def test_instances_are_written_and_read(tmp_path: Path) -> None:
    calls: list[str] = []

    def new_uid(uid: str) -> str:
        calls.append(uid)
        return f"2.25.{len(calls)}"

    instances = SentInstances(replaced(new_uid, [["a", "a", ""], ["b", "a", "b"]]))
    assert instances.planes == (("2.25.1", "2.25.1", ""), ("2.25.2", "2.25.1", "2.25.2"))
    instances.write(tmp_path)
    content = (tmp_path / "dicom.json").read_bytes()
    assert SentInstances.parse(content) == instances
    for wrong in (b"", b"[]", b'{"version": 2, "planes": []}', b'{"version": 1, "planes": 3}'):
        with pytest.raises(CorruptVolume):
            SentInstances.parse(wrong)
