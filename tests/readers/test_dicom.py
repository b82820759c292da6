"""DICOM that the tests write themselves with pydicom."""

from __future__ import annotations

import contextlib
import copy
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    MRImageStorage,
    RLELossless,
    generate_uid,
)
from whole_scans import ramp, read_whole

from storage.errors import InvalidScan, ScanTooLarge, StorageError, UnsupportedScan
from storage.readers import identify, open_scan
from storage.readers.base import Limits

SHAPE = (6, 40, 33)
SERIES = generate_uid()
ROW, COLUMN = np.array([0.0, 0.8, -0.6]), np.array([-1.0, 0.0, 0.0])
NORMAL = np.cross(ROW, COLUMN)
ORIGIN = np.array([12.5, -7.25, 3.0])
SPACING = (2.0, 1.5)
GAP = 3.0


def slice_of(pixels: np.ndarray, place: float, **attributes: Any) -> Dataset:
    """One MR slice, `place` slice distances along the normal."""
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = MRImageStorage, generate_uid()
    dataset.SeriesInstanceUID, dataset.Modality = SERIES, "MR"
    dataset.PatientName, dataset.PatientID, dataset.StudyDate = "Secret^Name", "4711", "20200102"
    dataset.ImagePositionPatient = [round(float(value), 9) for value in ORIGIN + place * GAP * NORMAL]
    dataset.ImageOrientationPatient = [*ROW, *COLUMN]
    dataset.PixelSpacing, dataset.SliceThickness = list(SPACING), 2.5
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = pixels.dtype.itemsize * 8
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.tobytes()
    for name, value in attributes.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    return dataset


def save(path: Path, dataset: Dataset, syntax: str = ExplicitVRLittleEndian) -> Path:
    """Write a file in a transfer syntax; compressed ones through pydicom's encoders."""
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    if syntax in (RLELossless, JPEG2000Lossless):
        dataset.compress(syntax, generate_instance_uid=False)
    elif syntax == ExplicitVRBigEndian:
        width = dataset.BitsAllocated // 8
        dataset.PixelData = np.frombuffer(dataset.PixelData, f"<u{width}").astype(f">u{width}").tobytes()
        dataset["PixelData"].VR = "OW"
    dataset.file_meta.TransferSyntaxUID = syntax
    path.parent.mkdir(exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def save_series(folder: Path, slices: list[Dataset], syntax: str = ExplicitVRLittleEndian) -> Path:
    """Write slices under names that say nothing about their order."""
    for number, dataset in enumerate(slices):
        save(folder / f"{(number * 7 + 3) % 101:03d}", dataset, syntax)
    return folder


def stack_of(data: np.ndarray, **attributes: Any) -> list[Dataset]:
    return [slice_of(plane, place, **attributes) for place, plane in enumerate(data)]


def expected_affine() -> np.ndarray:
    """Of PS3.3 C.7.6.2.1.1, first two rows negated from LPS to RAS."""
    affine = np.eye(4)
    affine[:3] = np.column_stack([ROW * SPACING[1], COLUMN * SPACING[0], NORMAL * GAP, ORIGIN])
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


@pytest.mark.parametrize("syntax", [
    ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless, JPEG2000Lossless,
])  # fmt: skip
@pytest.mark.parametrize("dtype", ["u1", "u2", "i2"])
def test_every_coding_in_any_order(tmp_path: Path, syntax: str, dtype: str) -> None:
    if syntax == ExplicitVRBigEndian and dtype == "u1":
        pytest.skip("8-bit pixels are covered by the other syntaxes")
    data = ramp(SHAPE, dtype)
    slices = stack_of(data)
    for number in range(len(slices)):
        slices[number].InstanceNumber = len(slices) - number
    path = save_series(tmp_path / "series", slices[::2] + slices[::-1][::2], syntax)
    whole = read_whole(path, depth=4)
    assert whole.header.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(whole.voxels[0], data)
    np.testing.assert_allclose(whole.header.grid.matrix, expected_affine(), atol=1e-6)
    assert whole.header.grid.spacing == pytest.approx((GAP, *SPACING))
    assert whole.warnings == ()


def test_slices_sort_along_the_normal_whichever_way_they_were_taken(tmp_path: Path) -> None:
    data = ramp(SHAPE)
    path = save_series(tmp_path / "series", [slice_of(data[place], -place) for place in range(SHAPE[0])])
    np.testing.assert_array_equal(read_whole(path).voxels[0], data[::-1])


@pytest.mark.parametrize("wrap", ["folder", "zip"])
def test_only_allowed_attributes_are_kept(tmp_path: Path, wrap: str) -> None:
    path = save_series(tmp_path / "series", stack_of(ramp(SHAPE), EchoTime="30", PatientComments="x"))
    if wrap == "zip":
        path = Path(shutil.make_archive(str(tmp_path / "upload"), "zip", path))
    metadata = read_whole(path).header.metadata
    assert identify(path) == "dicom"
    assert metadata["EchoTime"] == 30
    assert not {"PatientName", "PatientID", "StudyDate", "SOPInstanceUID", "PatientComments"} & set(metadata)
    assert "Secret" not in repr(metadata)


@pytest.mark.parametrize(("maps", "dtype"), [
    ([(1, 0)] * 6, "i2"),
    ([(1, -1024)] * 6, "i4"),
    ([(2.5, -1)] * 6, "f4"),
    ([(number + 0.5, number) for number in range(6)], "f4"),
    ([(number + 1, 0) for number in range(6)], "f4"),
])  # fmt: skip
def test_values_are_rescaled_slice_by_slice(
    tmp_path: Path, maps: list[tuple[float, float]], dtype: str
) -> None:
    data = ramp(SHAPE)
    slices = [
        slice_of(plane, place, RescaleSlope=slope, RescaleIntercept=intercept)
        for place, (plane, (slope, intercept)) in enumerate(zip(data, maps, strict=True))
    ]
    whole = read_whole(save_series(tmp_path / "series", slices))
    slopes, intercepts = np.array(maps).T[:, :, None, None]
    assert whole.header.dtype == np.dtype(dtype)
    np.testing.assert_allclose(whole.voxels[0], data * slopes + intercepts, rtol=1e-6)


def test_twelve_bit_ct_stays_int16(tmp_path: Path) -> None:
    data = ramp(SHAPE, "u2") % 4096
    slices = stack_of(data, BitsStored=12, HighBit=11, RescaleSlope=1, RescaleIntercept=-1024)
    whole = read_whole(save_series(tmp_path / "series", slices))
    assert whole.header.dtype == np.int16
    np.testing.assert_array_equal(whole.voxels[0], data.astype("i2") - 1024)


@pytest.mark.parametrize(("marks", "axis"), [
    (lambda t: {"TemporalPositionIdentifier": t + 1}, "t"),
    (lambda t: {"AcquisitionNumber": t + 1}, "t"),
    (lambda t: {"EchoTime": 10 * (t + 1)}, "c"),
    (lambda t: {"ImageType": ["ORIGINAL", "PRIMARY", "MPR"[t]]}, "c"),
    (lambda t: {"InstanceNumber": 100 + t}, "c"),
    (lambda t: {"InstanceNumber": 100 + t, "NumberOfTemporalPositions": 3}, "t"),
])  # fmt: skip
def test_a_fourth_axis_is_never_dropped(
    tmp_path: Path, marks: Callable[[int], dict[str, Any]], axis: str
) -> None:
    data = ramp((3, *SHAPE))
    slices = [
        slice_of(data[t, z], z, TemporalResolution=2500, **marks(t))
        for z in range(SHAPE[0])
        for t in (2, 0, 1)
    ]
    whole = read_whole(save_series(tmp_path / "series", slices))
    frames = whole.header.frames
    assert frames is not None
    assert (frames.axis, frames.count, frames.step_s) == (axis, 3, 2.5 if axis == "t" else None)
    np.testing.assert_array_equal(whole.voxels, data)


def multi_frame(data: np.ndarray, order: list[int], syntax: str = ExplicitVRLittleEndian) -> Dataset:
    """An enhanced file: frames at the places `order`, each with its own slope."""
    dataset = slice_of(data[0], 0, ImagePositionPatient=None, ImageOrientationPatient=None, PixelSpacing=None)
    dataset.NumberOfFrames = len(order)
    shared, orientation, measures = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = [*ROW, *COLUMN]
    measures.PixelSpacing, measures.SliceThickness = list(SPACING), GAP
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
    dataset.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for place in order:
        frame, position, transform = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = [round(float(value), 9) for value in ORIGIN + place * GAP * NORMAL]
        transform.RescaleSlope, transform.RescaleIntercept = 0.5 + place, place
        frame.PlanePositionSequence, frame.PixelValueTransformationSequence = [position], [transform]
        frames.append(frame)
    dataset.PerFrameFunctionalGroupsSequence = frames
    dataset.PixelData = data[order].tobytes()
    return dataset


@pytest.mark.parametrize(
    "syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless, JPEG2000Lossless]
)
def test_frames_of_an_enhanced_file_are_sorted_and_rescaled(tmp_path: Path, syntax: str) -> None:
    data = ramp(SHAPE)
    path = save(tmp_path / "scan", multi_frame(data, [4, 0, 2, 5, 1, 3]), syntax)
    whole = read_whole(path, depth=4)
    places = np.arange(SHAPE[0])[:, None, None]
    np.testing.assert_allclose(whole.voxels[0], data * (0.5 + places) + places)
    np.testing.assert_allclose(whole.header.grid.matrix, expected_affine(), atol=1e-6)


def test_bits_are_unpacked_where_frames_end_inside_a_byte(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    data = rng.integers(0, 2, (6, 3, 5)).astype("u1")
    dataset = multi_frame(data, list(range(6)))
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        del frame.PixelValueTransformationSequence
    dataset.BitsAllocated = dataset.BitsStored = 1
    dataset.HighBit = 0
    packed = np.packbits(data.ravel(), bitorder="little").tobytes()
    dataset.PixelData = packed + b"\0" * (len(packed) % 2)
    whole = read_whole(save(tmp_path / "scan", dataset))
    assert whole.header.dtype == np.uint8
    np.testing.assert_array_equal(whole.voxels[0], data)


@pytest.mark.parametrize("planar", [0, 1])
def test_colour_becomes_three_channels(tmp_path: Path, planar: int) -> None:
    data = ramp((*SHAPE, 3), "u1")
    slices = []
    for place, picture in enumerate(data):
        stored = picture if planar == 0 else picture.transpose(2, 0, 1)
        dataset = slice_of(picture, place, SamplesPerPixel=3, PhotometricInterpretation="RGB")
        dataset.PlanarConfiguration, dataset.PixelData = planar, stored.tobytes()
        slices.append(dataset)
    whole = read_whole(save_series(tmp_path / "series", slices))
    assert whole.header.frames is not None
    assert (whole.header.frames.axis, whole.header.frames.count) == ("c", 3)
    np.testing.assert_array_equal(whole.voxels, data.transpose(3, 0, 1, 2))


def test_a_modality_lut_gives_the_values(tmp_path: Path) -> None:
    data = ramp((1, 4, 5), "u2")
    table = Dataset()
    table.LUTDescriptor, table.LUTData = [10, 5, 16], [number * 100 for number in range(10)]
    table["LUTDescriptor"].VR = table["LUTData"].VR = "US"
    dataset = slice_of(data[0], 0)
    dataset.ModalityLUTSequence = [table]
    whole = read_whole(save(tmp_path / "scan", dataset))
    np.testing.assert_array_equal(whole.voxels[0], np.clip(data.astype(int) - 5, 0, 9) * 100)


def test_a_single_slice_is_one_thickness_deep(tmp_path: Path) -> None:
    whole = read_whole(save(tmp_path / "scan", slice_of(ramp((4, 5)), 0)))
    assert whole.header.grid.shape == (1, 4, 5)
    assert whole.header.grid.spacing == pytest.approx((2.5, *SPACING))
    unknown = read_whole(save(tmp_path / "other", slice_of(ramp((4, 5)), 0, SliceThickness=None)))
    assert unknown.header.grid.spacing is None
    assert "voxel size unknown" in unknown.warnings[0]


def turned(place: int) -> dict[str, Any]:
    return {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]} if place == 3 else {}


@pytest.mark.parametrize(("places", "attributes", "message"), [
    ([0, 1, 2, 4, 5], lambda place: {}, "a gap of 6 mm among gaps of 3 mm"),
    ([0, 1, 1, 2, 3], lambda place: {}, "1 of 4 positions have 2 different slices"),
    ([0, 0, 1, 1], lambda place: {}, "nothing tells apart"),
    ([0, 1, 2, 3], turned, "not parallel"),
    ([0, 1, 2], lambda place: {"PixelSpacing": [1 + place, 1]}, "pixel spacings differ"),
    ([0, 1, 2], lambda place: {"SeriesInstanceUID": f"1.{place}"}, "3 series"),
    ([0, 1, 2], lambda place: {"ImagePositionPatient": None} if place else {}, "2 of 3 slices have no pos"),
    ([0, 1, 2], lambda place: {"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "not perpendicular"),
    ([0, 1, 2], lambda place: {"RescaleSlope": place, "RescaleIntercept": 0}, "RescaleSlope 0"),
    ([0, 1, 2], lambda place: {"PixelRepresentation": place % 2}, "different kinds of pixels"),
])  # fmt: skip
def test_what_makes_no_volume_is_refused(
    tmp_path: Path, places: list[int], attributes: Callable[[int], dict[str, Any]], message: str
) -> None:
    slices = [
        slice_of(ramp((4, 5)) + number, place, **attributes(place)) for number, place in enumerate(places)
    ]
    with pytest.raises(InvalidScan, match=message):
        read_whole(save_series(tmp_path / "series", slices))


def test_uneven_gaps_are_accepted_loudly(tmp_path: Path) -> None:
    slices = [slice_of(ramp((4, 5)), place) for place in (0, 1, 2, 3.4, 4.4)]
    whole = read_whole(save_series(tmp_path / "series", slices))
    assert any("not evenly spaced" in warning for warning in whole.warnings)
    assert len(whole.header.metadata["slice_positions_lps_mm"]) == 5
    assert whole.header.grid.spacing == pytest.approx((3.3, *SPACING))


def test_copies_are_ignored_and_contradictions_refused(tmp_path: Path) -> None:
    path = save_series(tmp_path / "series", stack_of(ramp(SHAPE)))
    first = sorted(path.iterdir())[0]
    shutil.copy(first, path / "copy")
    whole = read_whole(path)
    np.testing.assert_array_equal(whole.voxels[0], ramp(SHAPE))
    assert "1 duplicates of slices were ignored" in whole.warnings
    content = bytearray(first.read_bytes())
    content[-1] ^= 1
    (path / "copy").write_bytes(content)
    with pytest.raises(InvalidScan, match="one SOP Instance UID but differ"):
        open_scan(path)


def test_without_geometry_nothing_is_in_millimetres(tmp_path: Path) -> None:
    data = ramp(SHAPE)
    slices = [
        slice_of(plane, 0, ImagePositionPatient=None, ImageOrientationPatient=None, InstanceNumber=number + 1)
        for number, plane in enumerate(data)
    ]
    whole = read_whole(save_series(tmp_path / "series", slices[::-1]))
    np.testing.assert_array_equal(whole.voxels[0], data)
    assert (whole.header.grid.spacing, whole.header.grid.affine) == (None, None)
    assert "voxel size unknown" in whole.warnings[0]


def test_a_mosaic_without_its_private_header_is_refused(tmp_path: Path) -> None:
    dataset = slice_of(ramp((8, 8)), 0, ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"])
    with pytest.raises(InvalidScan, match="mosaic that does not say how many slices"):
        open_scan(save(tmp_path / "scan", dataset))


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.9, 0.97])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless, JPEG2000Lossless])
def test_cut_files_are_refused(tmp_path: Path, syntax: str, keep: float) -> None:
    path = save(tmp_path / "scan", slice_of(ramp((64, 64)), 0), syntax)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(InvalidScan):
        read_whole(path)


def test_damage_in_lossless_jpeg_2000_shows(tmp_path: Path) -> None:
    noise = np.random.default_rng(3).integers(0, 4096, (64, 64)).astype("u2")
    path = save(tmp_path / "scan", slice_of(noise, 0, BitsStored=12, HighBit=11), JPEG2000Lossless)
    np.testing.assert_array_equal(read_whole(path).voxels[0, 0], noise)
    content = bytearray(path.read_bytes())
    middle = content.index(b"\xff\x93") + 500
    content[middle : middle + 40] = bytes(range(40))
    path.write_bytes(content)
    with pytest.raises(InvalidScan, match="JPEG 2000 stream is damaged"):
        read_whole(path)


def test_a_picture_larger_than_its_header_is_not_decoded(tmp_path: Path) -> None:
    path = save(tmp_path / "scan", slice_of(ramp((64, 64)), 0), JPEG2000Lossless)
    content = bytearray(path.read_bytes())
    size = content.index(b"\xff\x4f\xff\x51") + 8
    content[size : size + 8] = struct.pack(">II", 60_000, 60_000)
    path.write_bytes(content)
    with pytest.raises(InvalidScan, match="60000 x 60000, the header says 64 x 64"):
        read_whole(path)


def test_a_deflated_bomb_stops_at_the_limit(tmp_path: Path) -> None:
    path = save(tmp_path / "scan", slice_of(ramp((4, 5)), 0))
    plain = pydicom.dcmread(path)
    plain.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    plain.save_as(path, enforce_file_format=True)
    np.testing.assert_array_equal(read_whole(path).voxels[0, 0], ramp((4, 5)))
    meta = pydicom.dcmread(path, stop_before_pixels=True).file_meta
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    bomb = packer.compress(bytes(8 << 20)) + packer.flush()
    path.write_bytes(path.read_bytes()[: 144 + meta.FileMetaInformationGroupLength] + bomb)
    with pytest.raises(ScanTooLarge, match="inflated"):
        open_scan(path, Limits(member_bytes=4 << 20))


def test_a_document_beside_images_is_named_and_alone_refused(tmp_path: Path) -> None:
    report = slice_of(ramp((4, 5)), 0, PixelData=None, Rows=None, Columns=None)
    path = save_series(tmp_path / "series", stack_of(ramp(SHAPE)))
    save(path / "report", report)
    (path / ".DS_Store").write_bytes(b"litter")
    warnings = read_whole(path).warnings
    assert any("without pixels" in warning and "report" in warning for warning in warnings)
    assert any("not DICOM" in warning and ".DS_Store" in warning for warning in warnings)
    with pytest.raises(UnsupportedScan, match="without pixel data"):
        open_scan(save(tmp_path / "alone", report))


def test_a_zip_of_a_large_member_does_not_stay_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from storage.readers import archives

    monkeypatch.setattr(archives, "SPOOL_BYTES", 16)
    data = ramp(SHAPE)
    file = save(tmp_path / "scan", multi_frame(data, list(range(SHAPE[0]))))
    with zipfile.ZipFile(tmp_path / "upload", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(file, "deep/scan")
    np.testing.assert_array_equal(read_whole(tmp_path / "upload").voxels, read_whole(file).voxels)


@pytest.fixture(
    scope="module", params=[ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless, JPEG2000Lossless]
)
def sound(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    dataset = multi_frame(ramp(SHAPE), [1, 0, 2, 3, 4, 5])
    return save(tmp_path_factory.mktemp("dicom") / "scan", dataset, request.param).read_bytes()


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_hostile_bytes_raise_nothing_but_storage_errors(
    tmp_path: Path, sound: bytes, data: st.DataObject
) -> None:
    content = bytearray(sound)
    for _ in range(data.draw(st.integers(1, 4))):
        offset = data.draw(st.integers(132, len(content) - 1))
        patch = data.draw(st.binary(min_size=1, max_size=6))
        content[offset : offset + len(patch)] = patch
    path = tmp_path / "scan"
    path.write_bytes(content)
    with contextlib.suppress(StorageError):
        assert read_whole(path, Limits(decoded_bytes=1 << 20)).voxels.nbytes <= 1 << 20


def test_a_sequence_that_breaks_off_is_damage_and_no_fault_of_the_disk(tmp_path: Path, sound: bytes) -> None:
    """pydicom raises an OSError for it, when the sequence is asked for."""
    named = sound.find(b"SQ\0\0")
    if named < 0:
        pytest.skip("an implicit header names no sequence")
    at = named + 4
    content = bytearray(sound)
    content[at : at + 4] = (int.from_bytes(content[at : at + 4], "little") + 4).to_bytes(4, "little")
    path = tmp_path / "scan"
    path.write_bytes(content)
    with pytest.raises(StorageError) as error:
        read_whole(path)
    assert not isinstance(error.value.__cause__, OSError) or error.value.__cause__.errno is None


def test_values_of_a_bad_header_do_not_reach_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = save(tmp_path / "scan", slice_of(ramp((4, 5)), 0))
    path.write_bytes(path.read_bytes().replace(SERIES.encode(), b"Secret".ljust(len(SERIES), b"!")))
    read_whole(path)
    assert caplog.text == ""


def test_frames_that_the_file_cannot_hold_make_no_planes(tmp_path: Path) -> None:
    """552 bytes must not become a hundred thousand planes in memory."""
    path = save(tmp_path / "a.dcm", slice_of(np.ones((4, 4), np.uint8), 0), RLELossless)
    dataset = pydicom.dcmread(path)
    dataset.NumberOfFrames = 100_000
    dataset.save_as(path)
    with pytest.raises(InvalidScan, match="100000 frames are declared, more than"):
        open_scan(path, Limits())


def test_planes_are_limited_in_one_file_and_altogether(tmp_path: Path) -> None:
    frames = slice_of(np.zeros((1, 30), np.uint8), 0, Columns=1, NumberOfFrames=30)
    with pytest.raises(InvalidScan, match="30 frames; at most 29"):
        open_scan(save(tmp_path / "a.dcm", frames), Limits(members=29))
    frames.NumberOfFrames, frames.PixelData = 20, bytes(20)
    series = save_series(tmp_path / "series", [frames, copy.deepcopy(frames)])
    with pytest.raises(InvalidScan, match="more than 39 slices"):
        open_scan(series, Limits(members=39))
