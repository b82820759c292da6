"""Every real scan of the shared collection reads to the values of its manifest."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from whole_scans import manifest, read_whole

from storage.errors import UnsupportedScan
from storage.readers import identify

REFUSED = {
    "dicom/no-pixel-data.dcm": "a structured report has no pixels",
    "nifti/rgb24_picture.nii.gz": "RGB24 voxels are no scalar volume",
}


def mosaic(*shape: int, mean: float, maximum: float, affine: str) -> dict[str, str]:
    """Facts of a mosaic cut into its slices: by dcm2niix, as the row's notes give them, rows flipped back."""
    return {
        "shape": "x".join(map(str, shape)),
        "mean": str(mean),
        "max": str(maximum),
        "affine_ras_3x4": affine,
    }


TS_AFFINE = "-3.25,-3.25e-16,0,104,3.25e-16,-3.23099,-0.388798,144.868087,0,-0.350998,3.57894,-62.685166"
SIGNED_AFFINE = (
    "-3.249995,1.9005e-07,-0.00558518,108.840544,-0.00052415,-3.236105,0.2955856,119.564903,"
    "-0.00564806,0.3002044,3.186314,-25.627079"
)
MOSAICS = {
    "dicom/fmri_siemens_mosaic.zip": mosaic(
        64, 64, 36, 6, mean=110.6674, maximum=1627,
        affine="-3.203125,0,0,102.5,0,-3.178563,-0.444965,128.871376,0,-0.395911,3.572395,-48.637108",
    ),
    **{
        f"dicom/transfer_syntax/ts_{number}.dcm": mosaic(
            64, 64, 35, mean=265.3227, maximum=2362, affine=TS_AFFINE
        )
        for number in (1, 3, 4, 6, 9)
    },
    "dicom/12bitSigned_0x0F0F.dcm": mosaic(64, 64, 35, mean=265.941155, maximum=2047, affine=SIGNED_AFFINE),
    "dicom/12bitUnsigned.dcm": mosaic(64, 64, 35, mean=272.855085, maximum=2908, affine=SIGNED_AFFINE),
}  # fmt: skip
DEPARTURES: dict[str, dict[str, str]] = {
    **MOSAICS,
    "dicom/mr_rgb/": {"shape": "52x77x4x3"},  # colour is three channels
}
"""Rows whose manifest describes the stored picture; here stands what it means as a volume."""
NO_SPACING = {"dicom/dx_image.dcm"}
"""A radiograph has a pixel size in its detector's plane, but no slice distance and no place."""
SLOW = "cohort_"

ROWS = [row for row in manifest("dev") if row["kind"] in (
    "nifti", "dicom-file", "dicom-dir", "dicom-zip", "nrrd", "zarr-v3-derived", "ome-zarr",
)]  # fmt: skip
READABLE = [
    pytest.param(
        row, id=row["file"], marks=[pytest.mark.slow] if row["file"].startswith(SLOW) and number % 10 else []
    )
    for number, row in enumerate(ROWS)
    if row["file"] not in REFUSED
]


def expected_shape(text: str) -> tuple[int, ...]:
    """(x, y, z[, frames]): single pictures are one slice, trailing axes of length 1 are dropped."""
    sizes = [int(size) for size in text.split("x")]
    while len(sizes) > 3 and sizes[-1] == 1:
        sizes.pop()
    return tuple([*sizes, 1][:3] if len(sizes) == 2 else sizes)


def test_the_manifest_is_covered(shared_data: Path) -> None:
    unknown = {row["kind"] for row in manifest("dev")} - {row["kind"] for row in ROWS}
    assert not [row["file"] for row in manifest("dev") if row["kind"] in unknown and row["shape"]]
    assert set(DEPARTURES) | set(REFUSED) <= {row["file"] for row in ROWS}


@pytest.mark.parametrize("row", READABLE)
def test_reads_to_its_manifest(shared_data: Path, row: dict[str, str]) -> None:
    row = {**row, **DEPARTURES.get(row["file"], {})}
    whole = read_whole(shared_data / "dev" / row["file"])
    grid, frames = whole.header.grid, whole.header.frames
    shape = (*reversed(grid.shape), *((frames.count,) if frames else ()))
    assert shape == expected_shape(row["shape"])
    for name, value in (
        ("min", float(whole.voxels.min())),
        ("max", float(whole.voxels.max())),
        ("mean", float(whole.voxels.mean(dtype=np.float64))),
    ):
        assert value == pytest.approx(float(row[name]), rel=2e-6, abs=1e-6), name
    if row["affine_ras_3x4"]:
        affine = np.array([float(value) for value in row["affine_ras_3x4"].split(",")]).reshape(3, 4)
        np.testing.assert_allclose(grid.matrix[:3], affine, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(grid.spacing[::-1], np.linalg.norm(affine[:, :3], axis=0), rtol=1e-5)
    elif row["spacing_mm"].startswith("0") and row["file"] not in NO_SPACING:
        np.testing.assert_allclose(
            grid.spacing[::-1], [float(size) for size in row["spacing_mm"].split(",")], rtol=1e-6
        )
    else:
        assert grid.spacing is None
        assert any("voxel size unknown" in warning for warning in whole.warnings)


@pytest.mark.parametrize("file", REFUSED)
def test_refuses_politely(shared_data: Path, file: str) -> None:
    with pytest.raises(UnsupportedScan):
        read_whole(shared_data / "dev" / file)


@pytest.mark.parametrize("row", READABLE)
def test_is_identified_by_content(shared_data: Path, row: dict[str, str]) -> None:
    expected = "zarr" if "zarr" in row["kind"] else row["kind"].split("-")[0]
    assert identify(shared_data / "dev" / row["file"]) == expected


NIFTI = [row["file"] for row in ROWS if row["kind"] == "nifti" and not row["file"].startswith(SLOW)]


@pytest.mark.parametrize("file", [file for file in NIFTI if file not in REFUSED])
def test_agrees_with_nibabel_to_the_last_bit(shared_data: Path, file: str) -> None:
    import nibabel

    path = shared_data / "dev" / file
    image, whole = nibabel.load(path), read_whole(path)
    np.testing.assert_array_equal(whole.header.grid.matrix, image.affine)
    reference = np.asarray(image.dataobj).squeeze().T
    assert whole.voxels.squeeze().shape == reference.shape
    np.testing.assert_allclose(whole.voxels.squeeze(), reference, rtol=1e-6)


@pytest.mark.parametrize("group", [
    ["dicom/transfer_syntax/ts_1.dcm", "dicom/transfer_syntax/ts_3.dcm", "dicom/transfer_syntax/ts_4.dcm",
     "dicom/transfer_syntax/ts_6.dcm", "dicom/transfer_syntax/ts_9.dcm"],
    [f"dicom/transfer_syntax/CTImage_{name}.dcm" for name in (
        "LittleEndianImplicit", "BigEndianExplicit", "DeflatedExplicitVRLittleEndian", "RLELossless",
        "JPEG2000LosslessOnly")],
    ["dicom/mr_generic_rle", "dicom/mr_generic_jpeg", "dicom/mr_generic_j2k"],
    [f"dicom/pydicom/emri_small{name}.dcm" for name in ("", "_RLE", "_big_endian")],
    ["nifti/big.nii.gz", "nifti/little.nii.gz"],
    ["zarr/example_ct_v3.zarr", "nifti/example_ct.nii.gz"],
], ids=lambda group: group[0])  # fmt: skip
def test_one_scan_in_many_codings_reads_equal(shared_data: Path, group: list[str]) -> None:
    first, *others = [read_whole(shared_data / "dev" / file).voxels for file in group]
    for other in others:
        np.testing.assert_array_equal(other, first)


def test_a_tilted_stack_keeps_its_positions(shared_data: Path) -> None:
    whole = read_whole(shared_data / "dev" / "dicom/head_ct_gantry_tilt_GE.zip")
    positions = np.array(whole.header.metadata["slice_positions_lps_mm"])
    assert positions.shape == (28, 3)
    gaps = np.diff(positions[:, 2])
    assert (round(gaps.min(), 2), round(gaps.max(), 2)) == (1.14, 7.38)
    assert any("18.5 degrees" in warning for warning in whole.warnings)
    assert any("not evenly spaced" in warning for warning in whole.warnings)


@pytest.mark.parametrize(("file", "axis", "step"), [
    ("dicom/fmri_ge_4d_150.zip", "t", 5.0),
    ("dicom/fmri_siemens_mosaic.zip", "t", 3.2),
    ("dicom/mf_philips_enhanced_fmri_001.dcm", "t", None),
    ("dicom/mr_rgb", "c", None),
    ("nifti/sct_fmri_4d.nii.gz", "t", 1.13),
])  # fmt: skip
def test_the_fourth_axis_is_named(shared_data: Path, file: str, axis: str, step: float | None) -> None:
    frames = read_whole(shared_data / "dev" / file).header.frames
    assert frames is not None
    assert frames.axis == axis
    assert frames.step_s == (None if step is None else pytest.approx(step, rel=1e-6))


PRIVATE = ("patient", "birth", "date", "uid", "name", "institution", "physician", "description", "comment")


@pytest.mark.parametrize("file", sorted(row["file"] for row in ROWS if row["file"].startswith("dicom/")))
def test_no_identity_is_kept(shared_data: Path, file: str) -> None:
    if file in REFUSED:
        pytest.skip("refused")
    metadata = read_whole(shared_data / "dev" / file).header.metadata
    kept = {key.lower() for key in metadata} - {"patientposition", "manufacturermodelname"}
    assert not [key for key in kept for word in PRIVATE if word in key]
    assert not [value for value in metadata.values() if isinstance(value, float) and not math.isfinite(value)]
