"""Zip archives are judged by their directory, and read without trusting it."""

from __future__ import annotations

import stat
import struct
import zipfile
from pathlib import Path

import pytest

from storage.errors import EmptyUpload, InvalidScan, ScanTooLarge, UnsafeArchive, UnsupportedScan
from storage.readers import READERS, identify
from storage.readers.archives import open_tree
from storage.readers.base import Limits


def make_zip(path: Path, entries: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("../a", "../a"),
        ("a/../../b", "a/../../b"),
        ("/etc/passwd", "/…/…"),
        ("../Mueller^Hans/slice_1.dcm", "../…/slice_1.dcm"),
        ("a\\..\\b", "a\\..\\b"),
        ("C:/a", "C:/a"),
        ("c:a", "c:a"),
    ],
)
def test_names_that_leave_the_archive(tmp_path: Path, name: str, told: str) -> None:
    with pytest.raises(UnsafeArchive) as caught:
        identify(make_zip(tmp_path / "a.zip", {"fine": b"x", name: b"x"}))
    assert caught.value.member == told


def test_a_nul_in_a_name(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {"slice_dcm": b"x"})
    path.write_bytes(path.read_bytes().replace(b"slice_dcm", b"slice\0dcm"))
    with pytest.raises(UnsafeArchive, match="NUL"):
        identify(path)


def test_a_symbolic_link(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(UnsafeArchive, match="symbolic link"):
        identify(tmp_path / "a.zip")


def test_a_device(tmp_path: Path) -> None:
    device = zipfile.ZipInfo("null")
    device.external_attr = (stat.S_IFCHR | 0o666) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(device, b"")
    with pytest.raises(UnsafeArchive, match="neither a file nor a folder"):
        identify(tmp_path / "a.zip")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_packings_that_unpack_without_bound_are_not_opened(tmp_path: Path, method: int) -> None:
    with pytest.raises(InvalidScan, match="'a' is neither stored nor deflated"):
        identify(make_zip(tmp_path / "a.zip", {"a": bytes(1000)}, method))


def test_dots_inside_a_name_are_lawful(tmp_path: Path) -> None:
    assert identify(make_zip(tmp_path / "a.zip", {"CT..1.2.840": b"x", "dir/..hidden": b"x"})) == "dicom"


def test_limits_count_declared_sizes(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {"a": bytes(1000), "b": bytes(1000)})
    with pytest.raises(ScanTooLarge) as caught:
        identify(path, Limits(decoded_bytes=1999))
    assert (caught.value.needed, caught.value.allowed) == (2000, 1999)
    with pytest.raises(ScanTooLarge, match="'a'"):
        identify(path, Limits(member_bytes=999))
    with pytest.raises(InvalidScan, match="2 entries; at most 1"):
        identify(path, Limits(members=1))


def test_a_directory_too_large_is_not_even_read(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {f"{number:0200d}": b"" for number in range(60)})
    with pytest.raises(ScanTooLarge, match="central directory"):
        identify(path, Limits(members=10))


def test_entries_are_counted_before_any_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The directory is small enough in bytes, and its end record tells of one entry only."""
    path = make_zip(tmp_path / "a.zip", {f"{number}": b"" for number in range(60)})
    content = bytearray(path.read_bytes())
    content[-14:-10] = struct.pack("<HH", 1, 1)
    path.write_bytes(content)
    monkeypatch.setattr(zipfile, "ZipInfo", None)
    with pytest.raises(InvalidScan, match="60 entries; at most 50"):
        identify(path, Limits(members=50))


def test_a_zip64_record_that_the_locator_does_not_name_is_bounded_too(tmp_path: Path) -> None:
    """zipfile trusts the record that stands before the locator, wherever the locator points to."""
    record, size = struct.Struct("<4sQ2H2L4Q"), 1 << 20
    honest = record.pack(b"PK\x06\x06", 44, 45, 45, 0, 0, 1, 1, 10, 0)
    hostile = record.pack(b"PK\x06\x06", 44, 45, 45, 0, 0, 1, 1, size, 0)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, size, 1)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    path = tmp_path / "a.zip"
    path.write_bytes(b"PK\x03\x04".ljust(size, b"\0") + honest + hostile + locator + end)
    with pytest.raises(ScanTooLarge, match="central directory"):
        identify(path, Limits(members=100))


def test_an_entry_larger_than_it_says_is_found_out(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {"a": bytes(5000)})
    content = path.read_bytes()
    path.write_bytes(content.replace(struct.pack("<L", 5000), struct.pack("<L", 500)))
    limits = Limits(member_bytes=1000)
    with open_tree(path, limits) as tree, pytest.raises(InvalidScan, match="'a' is damaged"):
        tree.open(tree.members[0])


def test_the_same_name_twice(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {"aaaa": b"1", "bbbb": b"2"})
    path.write_bytes(path.read_bytes().replace(b"bbbb", b"aaaa"))
    with pytest.raises(InvalidScan, match="same name"):
        identify(path)


def test_entries_that_share_bytes(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {"a": bytes(500), "b": b"x" * 300}, zipfile.ZIP_STORED)
    content = bytearray(path.read_bytes())
    second = content.rindex(b"PK\x01\x02")
    content[second + 42 : second + 46] = struct.pack("<L", 10)
    path.write_bytes(content)
    with pytest.raises(InvalidScan, match="overlaps"):
        identify(path)


def test_an_empty_upload(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(EmptyUpload):
        identify(tmp_path / "empty")


@pytest.mark.parametrize("content", [b"x", b"\x1f\x8b", b"PK", b"%PDF-1.7 ...", b"NRRD", b"\0" * 400])
def test_other_content_is_refused_with_the_list_of_formats(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "scan.nii"
    path.write_bytes(content)
    with pytest.raises((UnsupportedScan, InvalidScan)) as caught:
        identify(path)
    assert str(caught.value)


def test_readers_have_names_of_their_own() -> None:
    names = [reader.name for reader in READERS]
    assert sorted(set(names)) == sorted(names)
