"""NIfTI that the tests write themselves: orientations, codings, units, and hostile headers."""

from __future__ import annotations

import contextlib
import gzip
import itertools
import math
import struct
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from whole_scans import ramp, read_whole

from storage.errors import InvalidScan, ScanTooLarge, StorageError
from storage.readers import identify, open_scan
from storage.readers.base import Limits

SHAPE = (5, 4, 3)
AFFINE = np.array([[1.5, 0, 0, -20], [0, 2, 0, 30.25], [0, 0, 3, -7], [0, 0, 0, 1.0]])
ORIENTATIONS = [
    "".join(codes)
    for axes in itertools.permutations(("RL", "AP", "SI"))
    for codes in itertools.product(*axes)
]


def save(
    path: Path, data: np.ndarray, affine: Any = AFFINE, kind: Any = nibabel.Nifti1Image, **fields: Any
) -> Path:
    """Write an image; `fields` are set in its header."""
    image = kind(data, affine)
    for name, value in fields.items():
        image.header[name] = value
    nibabel.save(image, path)
    return path


def patched(path: Path, offset: int, data: bytes) -> Path:
    """The same file with some bytes replaced."""
    content = bytearray(path.read_bytes())
    content[offset : offset + len(data)] = data
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_every_orientation_keeps_its_order_and_its_affine(tmp_path: Path, codes: str) -> None:
    assert len(ORIENTATIONS) == 48
    affine = AFFINE.copy()
    affine[:3, :3] = 0
    for column, (code, size) in enumerate(zip(codes, (1.5, 2.0, 3.0), strict=True)):
        affine["RL AP SI".find(code) // 3, column] = size if code in "RAS" else -size
    path = save(tmp_path / "scan.nii", ramp(SHAPE), affine)
    whole = read_whole(path)
    np.testing.assert_array_equal(whole.voxels[0], ramp(SHAPE).T)
    np.testing.assert_array_equal(whole.header.grid.matrix, nibabel.load(path).affine)
    assert whole.header.grid.orientation == codes


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_every_coding(tmp_path: Path, order: str, suffix: str, dtype: str, kind: Any) -> None:
    data = ramp(SHAPE, order + dtype)
    header = kind.header_class(endianness=order)
    header.set_data_dtype(data.dtype)
    path = tmp_path / f"scan{suffix}"
    nibabel.save(kind(data, AFFINE, header), path)
    whole = read_whole(path)
    assert whole.header.dtype == np.dtype(dtype)
    assert whole.header.frames is None
    np.testing.assert_array_equal(whole.voxels[0], data.T)
    np.testing.assert_array_equal(whole.header.grid.matrix, AFFINE)
    assert identify(path) == "nifti"


@pytest.mark.parametrize(("stored", "slope", "intercept", "delivered"), [
    ("i2", 1, 0, "i2"),
    ("u2", 1, -1024, "i4"),
    ("u1", 2, -100, "i2"),
    ("i2", 0.5, 0, "f4"),
    ("i2", 1, 0.25, "f4"),
    ("i4", 0.5, 0, "f8"),
    ("i4", 1, -1, "f8"),
    ("f4", 2, 1, "f4"),
    ("f8", 2, 1, "f8"),
])  # fmt: skip
def test_values_are_real_and_of_a_type_that_holds_them(
    tmp_path: Path, stored: str, slope: float, intercept: float, delivered: str
) -> None:
    path = save(tmp_path / "scan.nii", ramp(SHAPE, stored))
    patched(path, 112, struct.pack("<2f", slope, intercept))
    whole = read_whole(path)
    assert whole.header.dtype == np.dtype(delivered)
    np.testing.assert_allclose(whole.voxels[0], ramp(SHAPE, "f8").T * slope + intercept)


@pytest.mark.parametrize(("shape", "units", "axis", "frames"), [
    ((*SHAPE, 1), 2 | 8, None, 1),
    ((*SHAPE, 6), 2 | 8, "t", 6),
    ((*SHAPE, 6), 2 | 32, "c", 6),
    ((*SHAPE, 6), 0, "t", 6),
    ((*SHAPE, 1, 3), 2 | 8, "c", 3),
    ((*SHAPE, 6, 1), 2 | 8, "t", 6),
])  # fmt: skip
def test_the_fourth_axis(
    tmp_path: Path, shape: tuple[int, ...], units: int, axis: str | None, frames: int
) -> None:
    path = save(tmp_path / "scan.nii.gz", ramp(shape), xyzt_units=units)
    whole = read_whole(path, depth=2)
    np.testing.assert_array_equal(whole.voxels, ramp(shape).T.reshape(frames, *SHAPE[::-1]))
    assert (whole.header.frames.axis if whole.header.frames else None) == axis


@pytest.mark.parametrize(("units", "step"), [(8, 2.5), (16, 0.0025), (24, 2.5e-6), (0, None)])
def test_the_step_of_time_is_in_seconds(tmp_path: Path, units: int, step: float | None) -> None:
    path = save(tmp_path / "scan.nii", ramp((*SHAPE, 2)), xyzt_units=units)
    patched(path, 76 + 4 * 4, struct.pack("<f", 2.5))
    frames = read_whole(path).header.frames
    assert frames is not None
    assert frames.step_s == (None if step is None else pytest.approx(step))


@pytest.mark.parametrize("shape", [(*SHAPE, 2, 2), (*SHAPE, 1, 1, 2)])
def test_five_dimensions_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidScan, match="more than 4 dimensions"):
        open_scan(save(tmp_path / "scan.nii", ramp(shape)))


@pytest.mark.parametrize(("units", "factor"), [(0, 1.0), (1, 1000.0), (2, 1.0), (3, 0.001)])
def test_lengths_become_millimetres(tmp_path: Path, units: int, factor: float) -> None:
    grid = read_whole(save(tmp_path / "scan.nii", ramp(SHAPE), xyzt_units=units)).header.grid
    np.testing.assert_allclose(grid.spacing, np.array([3, 2, 1.5]) * factor)
    np.testing.assert_allclose(grid.matrix[:3], AFFINE[:3] * factor)


def test_without_qform_and_sform_only_sizes_are_known(tmp_path: Path) -> None:
    path = save(tmp_path / "scan.nii", ramp(SHAPE), qform_code=0, sform_code=0)
    patched(path, 252, struct.pack("<2h", 0, 0))
    np.testing.assert_array_equal(read_whole(path).header.grid.matrix, np.diag([1.5, 2, 3, 1]))


def test_the_qform_serves_where_the_sform_is_not_set(tmp_path: Path) -> None:
    turned = AFFINE.copy()
    turned[:3, :3] = nibabel.eulerangles.euler2mat(0.3, -0.2, 0.5) @ np.diag([1.5, 2, -3])
    path = save(tmp_path / "scan.nii", ramp(SHAPE), turned)
    image = nibabel.load(path)
    image.set_qform(turned, code=1)
    image.set_sform(None, code=0)
    nibabel.save(image, tmp_path / "q.nii")
    grid = read_whole(tmp_path / "q.nii").header.grid
    np.testing.assert_array_equal(grid.matrix, nibabel.load(tmp_path / "q.nii").affine)
    np.testing.assert_allclose(grid.matrix, turned, atol=1e-5)


def test_a_gzip_stream_of_several_members_is_one_file(tmp_path: Path) -> None:
    content = save(tmp_path / "scan.nii", ramp(SHAPE)).read_bytes()
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(gzip.compress(content[:400]) + gzip.compress(content[400:]))
    np.testing.assert_array_equal(read_whole(path).voxels[0], ramp(SHAPE).T)


@pytest.mark.parametrize(
    "head", [b"\x1f\x8b\x08\x08" + bytes(6) + b"a" * (2 << 20), gzip.compress(b"") * 60_000]
)
def test_a_gzip_stream_that_never_begins_is_not_followed(tmp_path: Path, head: bytes) -> None:
    """A name without end, or empty members without end, before a sound scan."""
    scan = save(tmp_path / "scan.nii.gz", ramp(SHAPE))
    scan.write_bytes(head + b"\0" * (head[3] != 0) + scan.read_bytes())
    with pytest.raises(InvalidScan):
        identify(scan)


def test_frames_and_planes_are_limited(tmp_path: Path) -> None:
    """Each frame has files of its own in the store: a megabyte must not become a million files."""
    path = save(tmp_path / "scan.nii", np.zeros((1, 1, 3, 50), np.uint8))
    open_scan(path, Limits(frames=50, planes=150)).close()
    with pytest.raises(InvalidScan, match="50 frames of 3 planes; at most 49 frames"):
        open_scan(path, Limits(frames=49))
    with pytest.raises(InvalidScan, match="149 planes altogether"):
        open_scan(path, Limits(planes=149))


def test_limits_hold_from_the_header_alone(tmp_path: Path) -> None:
    path = save(tmp_path / "scan.nii", ramp(SHAPE, "f8"))
    size = math.prod(SHAPE) * 8
    read_whole(path, Limits(decoded_bytes=size, plane_bytes=5 * 4 * 8))
    with pytest.raises(ScanTooLarge) as caught:
        open_scan(path, Limits(decoded_bytes=size - 1))
    assert (caught.value.needed, caught.value.allowed) == (size, size - 1)
    with pytest.raises(ScanTooLarge, match="plane"):
        open_scan(path, Limits(plane_bytes=5 * 4 * 8 - 1))


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return save(tmp_path_factory.mktemp("nifti") / "scan.nii", ramp(SHAPE)).read_bytes()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    patches=st.lists(
        st.tuples(st.integers(0, 360), st.binary(min_size=1, max_size=8)), min_size=1, max_size=4
    ),
    cut=st.integers(0, 600),
    packed=st.booleans(),
)
def test_hostile_headers_raise_nothing_but_storage_errors(
    tmp_path: Path, sound: bytes, patches: list[tuple[int, bytes]], cut: int, packed: bool
) -> None:
    content = bytearray(sound)
    for offset, data in patches:
        content[offset : offset + len(data)] = data
    data = bytes(content[: len(content) - max(0, cut - 300)])
    path = tmp_path / "scan"
    path.write_bytes(gzip.compress(data) if packed else data)
    with contextlib.suppress(StorageError):
        assert read_whole(path, Limits(decoded_bytes=1 << 20)).voxels.nbytes <= 1 << 20
