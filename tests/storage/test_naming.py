"""Which names of files are repeated, and which are not."""

from __future__ import annotations

import pytest

from storage.naming import is_harmless, masked, told, without_identity


@pytest.mark.parametrize(
    "name",
    ["slice_004.dcm", "IM000123", "image-7.ima", "a", "b.nii.gz", "head.nii", ".DS_Store", "zarr.json"],
)
def test_names_that_say_nothing_of_a_person(name: str) -> None:
    assert is_harmless(name)
    assert told(name, 3) == repr(name)
    assert without_identity(name, "scan") == name


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("Mueller.nii.gz", "scan.nii.gz"),
        ("4711.dcm", "scan.dcm"),
        ("slice_19450101.dcm", "scan.dcm"),
        ("IM_12_04_1945.dcm", "scan.dcm"),
        ("head of Ida.nii", "scan.nii"),
        ("1.3.12.2.1107.5.1.4.60064", "scan"),
        (".nii", "scan.nii"),
        ("", "scan"),
        ("Ida.NRRD", "scan.nrrd"),
        ("Ida.docx", "scan"),
    ],
)
def test_names_that_may_say_who(name: str, kept: str) -> None:
    assert not is_harmless(name)
    assert told(name, 3) == "file 3"
    assert without_identity(name, "scan") == kept


def test_folders_are_never_told() -> None:
    assert told("Mueller^Ida/a/IM1", 7) == "file 7 ('IM1')"
    assert masked("../Mueller/../slice_1.dcm") == "../…/../slice_1.dcm"
    assert masked("C:\\Ida\\a") == "C:\\…\\a"
