"""DICOM out of volumes: what pydicom, highdicom, nibabel and our own reader find in it."""

from __future__ import annotations

import io
import itertools
import json
import tracemalloc
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
from highdicom._standard_utils import get_iod_module_map, get_module_attribute_map, get_sop_class_iod_map
from numpy.typing import NDArray
from pydicom.uid import generate_uid
from test_dicom import multi_frame, save, save_series, stack_of
from test_dicom import slice_of as dicom_slice
from whole_scans import ramp

from storage.dicom_uids import UidMap
from storage.errors import CorruptVolume, InvalidParameters, JobCancelled
from storage.exports.dicom import DicomSeries
from storage.exports.dicom_header import CT, MR, SECONDARY
from storage.exports.dicom_identity import Identity
from storage.exports.dicom_values import coded
from storage.grid import VoxelGrid
from storage.ingest import ingest
from storage.jobs import Progress
from storage.readers import open_scan, readers_replacing
from storage.records import Derivation
from storage.volume import Volume
from tests.storage.scans import OBLIQUE, ArrayScan

TILTED = np.array([[-0.9, 0, 0, 80.5], [0, -0.8, 0.7, 70.25], [0, 0, 2.5, -31.125], [0, 0, 0, 1]])
CT_HEADER = {"Modality": "CT", "KVP": 120, "RescaleType": "HU", "Manufacturer": "Maker"}
MR_HEADER = {
    "Modality": "MR",
    "ScanningSequence": "GR",
    "SequenceVariant": ["SP", "MP"],
    "EchoTime": 3.123456,
}
NEW_UID = UidMap(bytes(range(32)))


def volume_of(folder: Path, voxels: NDArray[Any], header: dict[str, Any] | None = None, **how: Any) -> Volume:
    """A volume of an array, in `TILTED`'s place where no other is given."""
    scan = ArrayScan(voxels, **{"affine": TILTED, **how})
    object.__setattr__(scan.header, "metadata", header or {})
    return Volume.open(folder, ingest(scan, folder).digest)


def volume_at(path: Path, folder: Path) -> Volume:
    """The volume that a file or folder is read as, with replaced UIDs."""
    with open_scan(path, readers=readers_replacing(NEW_UID)) as scan:
        return Volume.open(folder, ingest(scan, folder).digest)


def written(volume: Volume, folder: Path, depth: int = 7) -> Path:
    """A folder of all instances."""
    folder.mkdir()
    for name, content in DicomSeries(volume).instances(depth):
        (folder / name).write_bytes(content)
    return folder


def datasets(volume: Volume) -> list[Any]:
    """What pydicom reads."""
    return [pydicom.dcmread(io.BytesIO(content)) for _, content in DicomSeries(volume).instances(7)]


def nibabel_affine(dataset: Any) -> NDArray[np.float64]:
    """Of columns, rows and slices to LPS; nibabel counts rows first, and warns that its reader is young."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from nibabel.nicom.dicomwrappers import wrapper_from_data

    found: NDArray[np.float64] = wrapper_from_data(dataset).affine[:, [1, 0, 2, 3]]
    return found


def noise(shape: tuple[int, ...], dtype: str = "int16") -> NDArray[Any]:
    return np.random.default_rng(0).integers(0, 120, shape).astype(dtype)


def voxels_of(volume: Volume) -> NDArray[Any]:
    return np.asarray(volume.array(0)[...])


def assert_same_in_the_world(
    first: Volume, second: Volume, most_mm: float = 1e-6, error: float = 0.0
) -> None:
    """Each voxel of the first is one of the second, at the same place, with the same value."""
    shape = first.stored.grid.shape
    indices = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1).reshape(-1, 3)
    world = first.stored.grid.voxel_to_world(indices)
    there = np.rint(second.stored.grid.world_to_voxel(world)).astype(int)
    assert (there >= 0).all()
    assert (there < second.stored.grid.shape).all()
    assert np.abs(second.stored.grid.voxel_to_world(there) - world).max() < most_mm
    assert np.prod(second.stored.grid.shape) == len(indices)
    one = voxels_of(first).reshape(-1, *shape).astype(np.float64)
    other = voxels_of(second).reshape(len(one), *second.stored.grid.shape).astype(np.float64)
    found = other[(slice(None), *there.T)].reshape(one.shape)
    assert np.abs(found - one).max() <= error


ORIENTATIONS = [
    (order, signs)
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
def test_every_orientation_comes_back(tmp_path: Path, order: tuple[int, ...], signs: tuple[int, ...]) -> None:
    """Fault row 26: NIfTI of 48 orientations, to DICOM, to a volume."""
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[list(order)] * np.array(signs) * np.array([0.7, 1.1, 2.3])
    affine[:3, 3] = [-12.345, 67.891, 3.0625]
    path = tmp_path / "scan.nii"
    nibabel.save(nibabel.Nifti1Image(noise((4, 5, 6)), affine), path)
    first = volume_at(path, tmp_path / "first")
    second = volume_at(written(first, tmp_path / "dicom"), tmp_path / "second")
    assert_same_in_the_world(first, second)
    assert second.stored.warnings == ()


@pytest.mark.parametrize("header", [CT_HEADER, MR_HEADER, {}])
def test_the_affine_is_the_same_to_a_millionth_of_a_millimetre(
    tmp_path: Path, header: dict[str, Any]
) -> None:
    volume = volume_of(tmp_path / "v", noise((9, 12, 11)), header)
    again = volume_at(written(volume, tmp_path / "dicom"), tmp_path / "again")
    np.testing.assert_allclose(again.stored.grid.matrix, TILTED, atol=1e-6)
    np.testing.assert_array_equal(voxels_of(again), voxels_of(volume))
    kept = {name: again.stored.metadata.get(name) for name in header}
    assert kept == header
    assert any("gantry tilt" in said for said in again.stored.warnings)


def test_highdicom_and_nibabel_find_the_same_positions(tmp_path: Path) -> None:
    straight = TILTED.copy()
    straight[1, 2] = 0
    volume = volume_of(tmp_path / "v", noise((9, 12, 11)), CT_HEADER, affine=straight)
    found = datasets(volume)
    theirs = highdicom.get_volume_from_series(found, dtype=np.float64)
    lps = np.diag([-1.0, -1, 1, 1]) @ straight
    places = np.stack(np.meshgrid(*map(np.arange, theirs.spatial_shape), indexing="ij"), axis=-1).reshape(
        -1, 3
    )
    world = places @ theirs.affine[:3, :3].T + theirs.affine[:3, 3]
    ours = np.rint((world - lps[:3, 3]) @ np.linalg.inv(lps[:3, :3]).T).astype(int)
    np.testing.assert_allclose(ours @ lps[:3, :3].T + lps[:3, 3], world, atol=1e-6)
    np.testing.assert_array_equal(voxels_of(volume)[tuple(ours.T[::-1])], theirs.array.ravel())
    for plane, dataset in enumerate(found):
        nibabels = nibabel_affine(dataset)
        np.testing.assert_allclose(nibabels[:3, :2], lps[:3, :2], atol=1e-9)
        np.testing.assert_allclose(nibabels[:3, 3], (lps @ [0, 0, plane, 1])[:3], atol=1e-9)
        assert dataset.SpacingBetweenSlices == dataset.SliceThickness == 2.5
        np.testing.assert_array_equal(dataset.pixel_array, voxels_of(volume)[plane])


def test_rows_that_lean_on_columns_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidParameters, match="perpendicular: export it as nifti"):
        DicomSeries(volume_of(tmp_path / "v", noise((3, 4, 5)), affine=OBLIQUE))


@pytest.mark.parametrize(
    ("header", "dtype", "affine", "expected"),
    [
        (CT_HEADER, "int16", TILTED, CT),
        (CT_HEADER, "float32", TILTED, CT),
        (CT_HEADER, "int16", None, SECONDARY),
        (MR_HEADER, "uint16", TILTED, MR),
        (MR_HEADER, "float32", TILTED, SECONDARY),
        ({"Modality": "MR"}, "uint16", TILTED, SECONDARY),
        ({"Modality": "PT"}, "uint16", TILTED, SECONDARY),
        ({}, "uint8", TILTED, SECONDARY),
    ],
)
def test_each_class_has_all_that_its_modules_need(
    tmp_path: Path, header: dict[str, Any], dtype: str, affine: Any, expected: str
) -> None:
    """By the tables of PS3.3 that highdicom carries: types 1 and 2 of all modules that apply."""
    volume = volume_of(tmp_path / "v", noise((3, 12, 11), dtype), header, affine=affine)
    (dataset, *_) = datasets(volume)
    assert dataset.SOPClassUID == dataset.file_meta.MediaStorageSOPClassUID == expected
    iod = get_iod_module_map()[get_sop_class_iod_map()[expected]]
    modules = {module["key"] for module in iod if module["usage"] == "M"}
    if affine is not None:
        modules |= {"image-plane", "frame-of-reference"}
    for module in modules:
        for attribute in get_module_attribute_map()[module]:
            if attribute["type"] in ("1", "2") and not attribute["path"]:
                assert attribute["keyword"] in dataset, (module, attribute)
                assert attribute["type"] == "2" or dataset[attribute["keyword"]].value not in (None, "")
    assert dataset.Modality == header.get("Modality", "OT")
    assert dataset.file_meta.TransferSyntaxUID == pydicom.uid.ExplicitVRLittleEndian


def test_what_stands_in_an_instance_says_who_nobody_is(tmp_path: Path) -> None:
    for dataset in datasets(volume_of(tmp_path / "v", noise((3, 4, 5)), CT_HEADER)):
        assert dataset.PatientIdentityRemoved == "YES"
        assert dataset.DeidentificationMethod
        assert dataset.DeidentificationMethodCodeSequence[0].CodeValue == "113100"
        assert not any(element.VR in ("PN", "DA", "TM", "DT") and element.value for element in dataset)
        assert not any(element.tag.is_private for element in dataset)
        assert (dataset.PatientName, dataset.PatientID, dataset.AccessionNumber) == ("", "", "")


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"])
def test_whole_numbers_that_fit_are_stored_as_they_are(tmp_path: Path, dtype: str) -> None:
    voxels = noise((3, 4, 5), dtype)
    limits = np.iinfo(dtype) if np.dtype(dtype).itemsize < 4 else np.iinfo("int16")
    voxels[0, 0, :2] = max(limits.min, np.iinfo(dtype).min), limits.max
    volume = volume_of(tmp_path / "v", voxels)
    assert {(d.RescaleSlope, d.RescaleIntercept) for d in datasets(volume)} == {(1, 0)}
    again = volume_at(written(volume, tmp_path / "dicom"), tmp_path / "again")
    np.testing.assert_array_equal(voxels_of(again), voxels)
    assert DicomSeries(volume).instance(0)
    assert np.dtype(again.stored.dtype).itemsize == 2


@pytest.mark.parametrize(
    ("plane", "most"),
    [
        (np.array([[-70_000, 0], [500_000, 1_000_000]], "int32"), 0),
        (np.array([[2**40, 2**40 + 3], [2**40 + 9, 2**40 + 30_000]], "int64"), 0),
        (np.arange(-5, 20, dtype="float32").reshape(5, 5) * np.float32(7), 0),
        ((np.arange(4096) * 0.3 + 17.1).astype("float32").reshape(64, 64), np.spacing(np.float32(1250))),
        ((np.arange(65536) * 0.0123 - 300).astype("float32").reshape(256, 256), np.spacing(np.float32(510))),
        (np.full((3, 3), 0.1, "float32"), 1e-11),
        (np.full((3, 3), -3e38, "float32"), 1e29),
        (np.zeros((3, 3), "float64"), 0),
        (np.array([[1e-300, 2e-300]]), 1e-310),
    ],
)
def test_other_numbers_are_stored_in_their_own_steps(plane: NDArray[Any], most: float) -> None:
    found = coded(plane, None)
    assert found.stored.dtype == np.uint16
    values = found.stored * found.slope + found.intercept
    assert np.abs(values - plane).max() == pytest.approx(found.error, rel=1e-6)
    assert found.error <= most


@pytest.mark.parametrize("seed", range(5))
def test_what_has_no_steps_errs_by_half_of_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    plane = (rng.standard_normal((50, 60)) * 10.0 ** rng.integers(-6, 20)).astype("float32")
    found = coded(plane, None)
    span = float(plane.max()) - float(plane.min())
    assert span / 65535 / 4 < found.error <= span / 65535 / 2 * 1.000001


def test_rounding_is_told(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).standard_normal((3, 40, 50)).astype("float32")
    volume = volume_of(tmp_path / "v", voxels, CT_HEADER)
    series = DicomSeries(volume)
    found = [pydicom.dcmread(io.BytesIO(content)) for _, content in series.instances(2)]
    assert all("rounded to 16 bits, by " in dataset.DerivationDescription for dataset in found)
    values = np.stack([d.pixel_array * float(d.RescaleSlope) + float(d.RescaleIntercept) for d in found])
    assert np.abs(values - voxels).max() == pytest.approx(series.largest_error)
    assert 1e-5 < series.largest_error < 1e-4
    exact = datasets(volume_of(tmp_path / "w", noise((3, 4, 5))))[0]
    assert exact.DerivationDescription == "De-identified copy"


@pytest.mark.parametrize("axis", ["t", "c"])
def test_frames_come_back_as_frames(tmp_path: Path, axis: str) -> None:
    voxels = noise((3, 6, 11, 13))
    straight = np.diag([1.0, 2, 3, 1])
    header = {**MR_HEADER, "Modality": "MR"}
    volume = volume_of(tmp_path / "v", voxels, header, axis=axis, affine=straight)
    again = volume_at(written(volume, tmp_path / "dicom", 4), tmp_path / "again")
    assert (again.stored.axes, again.stored.frame_step_s) == (volume.stored.axes, volume.stored.frame_step_s)
    assert_same_in_the_world(volume, again)
    series = DicomSeries(volume)
    assert (series.frames, series.planes, len(series)) == (3, 6, 18)
    assert len({series.instance_uid(plane, frame) for frame in range(3) for plane in range(6)}) == 18
    one = pydicom.dcmread(io.BytesIO(series.instance(4, 2)))
    np.testing.assert_array_equal(one.pixel_array, voxels[2, 4])
    assert one.InstanceNumber == 17


def test_sizes_without_a_place_and_nothing_at_all(tmp_path: Path) -> None:
    volume = volume_of(tmp_path / "v", noise((3, 4, 5)), CT_HEADER, affine=None)
    dataset = datasets(volume)[0]
    assert not {"ImagePositionPatient", "PixelSpacing", "SliceThickness"} & set(dataset.dir())
    volume.stored.__dict__["grid"] = VoxelGrid((3, 4, 5), (2.0, 1.5, 1.25))
    dataset = pydicom.dcmread(io.BytesIO(DicomSeries(volume).instance(1)))
    assert (list(dataset.PixelSpacing), dataset.SliceThickness) == ([1.5, 1.25], 2)
    assert "ImagePositionPatient" not in dataset


def test_the_sender_finds_its_instances_by_replaced_uids(tmp_path: Path) -> None:
    study, frame = generate_uid(), generate_uid()
    sent = stack_of(ramp((6, 40, 33)), StudyInstanceUID=study, FrameOfReferenceUID=frame)
    volume = volume_at(save_series(tmp_path / "sent", sent), tmp_path / "v")
    expected = Identity(NEW_UID(study), NEW_UID(sent[0].SeriesInstanceUID), NEW_UID(frame))
    assert Identity.of(volume.stored) == expected
    assert volume.stored.metadata["StudyInstanceUID"] == expected.study
    places = {NEW_UID(dataset.SOPInstanceUID): dataset.ImagePositionPatient for dataset in sent}
    for dataset in datasets(volume):
        np.testing.assert_allclose(
            dataset.ImagePositionPatient, places.pop(dataset.SOPInstanceUID), atol=1e-9
        )
        assert (dataset.StudyInstanceUID, dataset.SeriesInstanceUID) == (expected.study, expected.series)
        assert dataset.FrameOfReferenceUID == expected.frame_of_reference
    assert not places
    stored = b"".join(path.read_bytes() for path in (tmp_path / "v").rglob("*") if path.is_file())
    for uid in (study, frame, sent[0].SeriesInstanceUID, *(dataset.SOPInstanceUID for dataset in sent)):
        assert uid.encode() not in stored


def test_planes_that_were_unevenly_spaced_keep_their_places(tmp_path: Path) -> None:
    sent = [dicom_slice(ramp((6, 40, 33))[k], place) for k, place in enumerate([0, 1, 2.3, 3.1, 4, 5])]
    volume = volume_at(save_series(tmp_path / "sent", sent), tmp_path / "v")
    found = datasets(volume)
    for dataset, before in zip(found, sent, strict=True):
        np.testing.assert_allclose(dataset.ImagePositionPatient, before.ImagePositionPatient, atol=1e-8)
        assert "SpacingBetweenSlices" not in dataset
    again = volume_at(written(volume, tmp_path / "dicom"), tmp_path / "again")
    np.testing.assert_allclose(again.stored.grid.matrix, volume.stored.grid.matrix, atol=1e-6)
    assert again.stored.warnings == volume.stored.warnings


def test_planes_of_one_multi_frame_instance_get_uids_of_their_own(tmp_path: Path) -> None:
    volume = volume_at(
        save(tmp_path / "sent", multi_frame(ramp((6, 40, 33)), [0, 1, 2, 3, 4, 5])), tmp_path / "v"
    )
    assert len(set(json.loads((tmp_path / "v" / "dicom.json").read_text())["planes"][0])) == 1
    series = DicomSeries(volume)
    uids = [series.instance_uid(plane) for plane in range(6)]
    assert len(set(uids)) == 6
    assert uids == [DicomSeries(volume).instance_uid(plane) for plane in range(6)]


def test_a_series_of_colour_gives_three_instances_a_plane(tmp_path: Path) -> None:
    data = ramp((6, 40, 33, 3), "u1")
    sent = []
    for place, picture in enumerate(data):
        dataset = dicom_slice(picture, place, SamplesPerPixel=3, PhotometricInterpretation="RGB")
        dataset.PlanarConfiguration = 0
        sent.append(dataset)
    volume = volume_at(save_series(tmp_path / "sent", sent), tmp_path / "v")
    found = datasets(volume)
    assert len({dataset.SOPInstanceUID for dataset in found}) == 18
    again = volume_at(written(volume, tmp_path / "dicom"), tmp_path / "again")
    np.testing.assert_array_equal(voxels_of(again), voxels_of(volume))


def test_what_a_job_made_is_another_series_of_the_same_study(tmp_path: Path) -> None:
    sent = stack_of(ramp((6, 40, 33)), StudyInstanceUID=generate_uid())
    volume = volume_at(save_series(tmp_path / "sent", sent), tmp_path / "v")
    own = Identity.of(volume.stored)
    facts = {"digest": "sha256:other", "derived": Derivation("vol_1", volume.stored.digest, "compress")}
    derived = Identity.of(replace(volume.stored, **facts))
    assert (derived.study, derived.frame_of_reference) == (own.study, own.frame_of_reference)
    assert derived.series != own.series
    plain = volume_of(tmp_path / "plain", noise((3, 4, 5))).stored
    own = Identity.of(plain)
    facts = {"digest": "sha256:other", "derived": Derivation("vol_1", plain.digest, "denoise")}
    derived = Identity.of(replace(plain, **facts))
    assert (derived.study, derived.frame_of_reference) == (own.study, own.frame_of_reference)
    assert derived.series != own.series


def test_the_same_volume_makes_the_same_bytes(tmp_path: Path) -> None:
    volume = volume_of(tmp_path / "v", noise((5, 4, 5)), CT_HEADER)
    series = DicomSeries(volume)
    assert list(series.instances(2)) == list(DicomSeries(volume).instances(5))
    assert [content for _, content in series.instances(3)] == [series.instance(plane) for plane in range(5)]


@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_a_header_is_the_instance_without_its_pixels(tmp_path: Path, dtype: str) -> None:
    series = DicomSeries(volume_of(tmp_path / "v", noise((3, 4, 5), dtype) / np.array(7, dtype), CT_HEADER))
    whole = pydicom.dcmread(io.BytesIO(series.instance(1)))
    del whole.PixelData
    assert series.header(1).to_json_dict() == whole.to_json_dict()
    for plane, frame in ((3, 0), (-1, 0), (0, 1)):
        with pytest.raises(InvalidParameters):
            series.header(plane, frame)


def test_memory_is_that_of_some_planes(tmp_path: Path) -> None:
    volume = volume_of(tmp_path / "v", noise((64, 96, 96)), CT_HEADER)
    series = DicomSeries(volume)
    series.instance(0)
    plane = 96 * 96 * 2
    tracemalloc.start()
    try:
        for _ in series.instances(8):
            pass
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64 * plane * 0.9


def test_damage_is_found_before_it_is_handed_on(tmp_path: Path) -> None:
    sent = stack_of(ramp((6, 40, 33)))
    volume = volume_at(save_series(tmp_path / "sent", sent), tmp_path / "v")
    shard = tmp_path / "v" / "0/c/0/0/0"
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    with pytest.raises(CorruptVolume):
        DicomSeries(volume).instance(0)
    uids = tmp_path / "v" / "dicom.json"
    uids.write_text(uids.read_text().replace("2.25.1", "2.25.2", 1).replace("2.25.3", "2.25.4", 1) + " ")
    with pytest.raises(CorruptVolume, match=r"dicom\.json"):
        DicomSeries(volume).instance_uid(0)
    uids.unlink()
    with pytest.raises(CorruptVolume, match="missing"):
        DicomSeries(volume).instance_uid(0)


def test_it_stops_when_it_is_told_to(tmp_path: Path) -> None:
    volume = volume_of(tmp_path / "v", noise((9, 4, 5)))

    def stop(progress: Progress) -> None:
        if progress.done == 4:
            raise JobCancelled("job_1")

    taken: list[str] = []
    with pytest.raises(JobCancelled):
        taken.extend(name for name, _ in DicomSeries(volume).instances(3, stop))
    assert taken == [f"IM00000{number}.dcm" for number in range(1, 5)]


@pytest.mark.parametrize("plane", [-1, 9])
def test_planes_that_are_not_there(tmp_path: Path, plane: int) -> None:
    with pytest.raises(InvalidParameters, match="goes from 0 to 8"):
        DicomSeries(volume_of(tmp_path / "v", noise((9, 4, 5)))).instance(plane)


REAL = [
    "12bitSigned_0x0F0F.dcm", "mf_philips_enhanced_fmri_001.dcm", "pet_like_per_slice_slope",
    "pydicom/emri_small.dcm",
]  # fmt: skip
LARGER = [
    "abdomen_ct_20_noext", "chest_ct_A0002_30x8mm.zip", "fmri_ge_4d_150.zip", "fmri_siemens_mosaic.zip",
    "head_ct_gantry_tilt_GE.zip", "head_mr_T1_196.zip", "head_mr_T1_enhanced_96.zip", "mr_generic_jpeg",
    "mr_rgb", "transfer_syntax/ts_1.dcm",
]  # fmt: skip


@pytest.mark.parametrize("name", [*REAL, *(pytest.param(each, marks=pytest.mark.slow) for each in LARGER)])
def test_real_series_come_back(shared_data: Path, tmp_path: Path, name: str) -> None:
    volume = volume_at(shared_data / "dev" / "dicom" / name, tmp_path / "v")
    again = volume_at(written(volume, tmp_path / "dicom", 16), tmp_path / "again")
    assert (again.stored.axes, again.stored.array_shape) == (volume.stored.axes, volume.stored.array_shape)
    values = volume.stored.statistics
    exact = np.dtype(volume.stored.dtype).kind in "iu"
    error = 0.0 if exact else 2.0**-23 * max(abs(values.maximum), abs(values.minimum))
    found, sent = voxels_of(again).astype(np.float64), voxels_of(volume).astype(np.float64)
    assert np.abs(found - sent).max() <= error
    if volume.stored.grid.affine is None:
        assert again.stored.grid.affine is None
    else:
        np.testing.assert_allclose(again.stored.grid.matrix, volume.stored.grid.matrix, atol=1e-6)
