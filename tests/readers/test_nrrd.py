"""NRRD that the tests write themselves."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import nrrd
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from whole_scans import ramp, read_whole

from storage.errors import InvalidScan, StorageError, UnsupportedScan
from storage.readers import identify, open_scan
from storage.readers.base import Limits

SHAPE = (5, 4, 3)
SPACE = {
    "space": "left-posterior-superior",
    "space directions": np.diag([1.5, 2.0, 3.0]),
    "space origin": np.array([10.0, -20.0, 30.0]),
}


def save(path: Path, data: np.ndarray, header: dict[str, Any] | None = None) -> Path:
    nrrd.write(str(path), data, {"encoding": "raw", **(SPACE if header is None else header)})
    return path


@pytest.mark.parametrize("encoding", ["raw", "gzip", "bzip2"])
@pytest.mark.parametrize("dtype", ["u1", "i2", ">i2", "<u4", "f4", ">f8", "i8"])
def test_every_coding(tmp_path: Path, encoding: str, dtype: str) -> None:
    path = save(tmp_path / "scan.nrrd", ramp(SHAPE, dtype), {**SPACE, "encoding": encoding})
    whole = read_whole(path, depth=2)
    assert identify(path) == "nrrd"
    assert whole.header.dtype == np.dtype(dtype).newbyteorder("=")
    np.testing.assert_array_equal(whole.voxels[0], ramp(SHAPE).T)
    assert whole.warnings == ()


@pytest.mark.parametrize(("space", "signs"), [
    ("left-posterior-superior", (-1, -1, 1)),
    ("left-anterior-superior", (-1, 1, 1)),
    ("right-anterior-superior", (1, 1, 1)),
])  # fmt: skip
def test_space_becomes_ras(tmp_path: Path, space: str, signs: tuple[int, int, int]) -> None:
    path = save(tmp_path / "scan.nrrd", ramp(SHAPE), {**SPACE, "space": space})
    expected = np.diag([*signs, 1.0]) @ np.array(
        [[1.5, 0, 0, 10], [0, 2, 0, -20], [0, 0, 3, 30], [0, 0, 0, 1]]
    )
    np.testing.assert_array_equal(read_whole(path).header.grid.matrix, expected)


def test_sizes_without_anatomy_give_no_affine(tmp_path: Path) -> None:
    for header in ({"spacings": [1.5, 2.0, 3.0]}, {**SPACE, "space": "scanner-xyz"}):
        whole = read_whole(save(tmp_path / "scan.nrrd", ramp(SHAPE), header))
        assert whole.header.grid.spacing == (3.0, 2.0, 1.5)
        assert whole.header.grid.affine is None
        assert len(whole.warnings) == 1


def test_an_origin_of_two_numbers_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "scan.nrrd", ramp(SHAPE))
    path.write_bytes(path.read_bytes().replace(b"(10,-20,30)", b"(10,-20)"))
    with pytest.raises(InvalidScan, match="space origin"):
        open_scan(path, Limits())


def test_no_sizes_are_not_taken_for_one_millimetre(tmp_path: Path) -> None:
    whole = read_whole(save(tmp_path / "scan.nrrd", ramp(SHAPE), {}))
    assert whole.header.grid.spacing is None
    assert "voxel size unknown" in whole.warnings[0]


@pytest.mark.parametrize("encoding", ["raw", "gzip"])
@pytest.mark.parametrize(("kinds", "axis", "place"), [
    (["domain", "domain", "domain", "time"], "t", 3),
    (["domain", "domain", "domain", "list"], "c", 3),
    (["vector", "domain", "domain", "domain"], "c", 0),
])  # fmt: skip
def test_the_fourth_axis_wherever_it_is(
    tmp_path: Path, encoding: str, kinds: list[str], axis: str, place: int
) -> None:
    shape = (*SHAPE, 2) if place == 3 else (2, *SHAPE)
    directions = np.full((4, 3), np.nan)
    directions[[0, 1, 2] if place == 3 else [1, 2, 3]] = np.diag([1.5, 2.0, 3.0])
    header = {**SPACE, "space directions": directions, "kinds": kinds, "encoding": encoding}
    whole = read_whole(save(tmp_path / "scan.nrrd", ramp(shape), header), depth=2)
    assert whole.header.frames is not None
    assert (whole.header.frames.axis, whole.header.frames.count) == (axis, 2)
    np.testing.assert_array_equal(whole.voxels, np.moveaxis(ramp(shape), place, -1).T)
    assert whole.header.grid.spacing == (3.0, 2.0, 1.5)


def test_a_detached_header_is_never_followed(tmp_path: Path) -> None:
    path = save(tmp_path / "scan.nrrd", ramp(SHAPE))
    secret = tmp_path / "secret.raw"
    secret.write_bytes(ramp(SHAPE).tobytes())
    head = path.read_bytes().split(b"\n\n")[0]
    for field in (b"data file: secret.raw", b"datafile: /etc/passwd"):
        path.write_bytes(head + b"\n" + field + b"\n\n")
        with pytest.raises(UnsupportedScan, match="detached"):
            open_scan(path)


def test_text_encoding_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedScan, match="'ascii'"):
        open_scan(save(tmp_path / "scan.nrrd", ramp(SHAPE), {**SPACE, "encoding": "ascii"}))


def test_missing_voxels_are_counted(tmp_path: Path) -> None:
    path = save(tmp_path / "scan.nrrd", ramp(SHAPE))
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(InvalidScan, match="declares 120 voxel bytes, found 113"):
        read_whole(path)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(offset=st.integers(0, 330), data=st.binary(min_size=1, max_size=12))
def test_hostile_headers_raise_nothing_but_storage_errors(tmp_path: Path, offset: int, data: bytes) -> None:
    path = save(tmp_path / "scan.nrrd", ramp(SHAPE))
    content = bytearray(path.read_bytes())
    content[offset : offset + len(data)] = data
    path.write_bytes(content)
    with contextlib.suppress(StorageError):
        assert read_whole(path, Limits(decoded_bytes=1 << 20)).voxels.nbytes <= 1 << 20
