"""Every bad, odd or hostile file of the shared collection gets the answer that its manifest asks for."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from whole_scans import manifest, peak_rss_bytes, read_whole

from storage.errors import (
    EmptyUpload,
    InvalidScan,
    ScanTooLarge,
    StorageError,
    UnsafeArchive,
    UnsupportedScan,
)
from storage.readers import identify, open_scan
from storage.readers.base import Limits

LIMITS = Limits(decoded_bytes=1 << 30)
EXTRA_BYTES = 300 << 20
Refusal = tuple[type[StorageError], str]

REFUSED: dict[str, Refusal] = {
    "dcm_bad_jpeg2000.dcm": (InvalidScan, "JPEG 2000 stream is damaged"),
    "dcm_cut_in_header.dcm": (InvalidScan, "truncated"),
    "dcm_frames_overflow.dcm": (ScanTooLarge, "17,592,186,036,224 bytes"),
    "dcm_no_pixeldata.dcm": (InvalidScan, "no pixel data"),
    "dcm_no_preamble.dcm": (UnsupportedScan, "DICM marker"),
    "dcm_rows_lie.dcm": (InvalidScan, "expected 33554432 bytes, found 8192"),
    "dcm_short_pixeldata.dcm": (InvalidScan, "expected 8192 bytes, found 4096"),
    "dcm_video_syntax.dcm": (UnsupportedScan, "1.2.840.10008.1.2.4.102 is not handled"),
    "empty.nii.gz": (EmptyUpload, "empty"),
    "empty_inside.nii.gz": (InvalidScan, "empty after decompression"),
    "gz_bomb_honest.nii.gz": (ScanTooLarge, "4,613,734,400 bytes"),
    "nii2_overflow_dims.nii": (ScanTooLarge, "36,893,488,147,419,103,232 bytes"),
    "nii_2d.nii.gz": (InvalidScan, "a volume is needed"),
    "nii_7d.nii.gz": (InvalidScan, "more than 4 dimensions"),
    "nii_bad_magic.nii": (UnsupportedScan, "without NIfTI's magic"),
    "nii_complex64.nii.gz": (UnsupportedScan, "complex64"),
    "nii_datatype_9999.nii.gz": (UnsupportedScan, "code 9999"),
    "nii_datatype_float128.nii.gz": (UnsupportedScan, "code 1536"),
    "nii_dim0_is_9.nii.gz": (InvalidScan, r"dim\[0\] is 9"),
    "nii_gz_bad_crc.nii.gz": (InvalidScan, "CRC check failed"),
    "nii_gz_truncated.nii.gz": (InvalidScan, "compressed stream incomplete"),
    "nii_huge_dims.nii": (ScanTooLarge, "70,362,301,923,326 bytes"),
    "nii_negative_dim.nii.gz": (InvalidScan, "negative dimension -64"),
    "nii_pixdim_nan.nii.gz": (InvalidScan, "bad voxel size"),
    "nii_truncated.nii": (InvalidScan, "expected 393216 voxel bytes, found 196608"),
    "nii_vox_offset_past_end.nii.gz": (InvalidScan, "after the end of the file"),
    "nii_wrong_dims.nii.gz": (InvalidScan, "declares 737280 voxel bytes, found 393216"),
    "nii_zero_dim.nii.gz": (InvalidScan, "no voxels"),
    "png_named.dcm": (UnsupportedScan, "none of the formats"),
    "text_named.nii": (UnsupportedScan, "none of the formats"),
    "zarr_bad_checksum.zarr/": (InvalidScan, "corrupt chunk c/0/1/0"),
    "zarr_bad_json.zarr/": (InvalidScan, "not JSON"),
    "zarr_huge_chunk.zarr/": (ScanTooLarge, "1,099,511,627,776 bytes"),
    "zarr_huge_shape.zarr/": (ScanTooLarge, "declared size of the Zarr array"),
    "zarr_path_escape.zarr/": (UnsafeArchive, "climbs out"),
    "zarr_short_chunk.zarr/": (InvalidScan, "corrupt chunk c/0/0/0"),
    "zarr_unknown_codec.zarr/": (UnsupportedScan, "no_such_codec"),
    "zarr_v2_pickle_object.zarr/": (UnsupportedScan, r"\|O"),
    "zarr_zero_chunk.zarr/": (InvalidScan, "positive integers"),
    "zip_bomb_overlap.zip": (ScanTooLarge, "26,843,545,600 bytes"),
    "zip_duplicate_conflict.zip": (InvalidScan, "5 of 15 positions have 2 different slices"),
    "zip_empty.zip": (InvalidScan, "no slices"),
    "zip_encrypted_flag.zip": (InvalidScan, "encrypted"),
    "zip_missing_slice.zip": (InvalidScan, "a gap of 10 mm among gaps of 5 mm"),
    "zip_mixed_series.zip": (InvalidScan, "2 series.*64 x 64.*256 x 256"),
    "zip_nested.zip": (InvalidScan, "nested archives are not opened"),
    "zip_one_slice_other_size.zip": (InvalidScan, "slice_004.dcm"),
    "zip_slip.zip": (UnsafeArchive, "climbs out"),
    "zip_slope_zero.zip": (InvalidScan, "slice_003.dcm"),
    "zip_truncated.zip": (InvalidScan, "truncated or damaged archive"),
}
VOLUME = (48, 64, 64)
SERIES = (15, 64, 64)
ACCEPTED: dict[str, tuple[tuple[int, ...], str | None]] = {
    "good_control.nii.gz": (VOLUME, None),
    "good_control_series.zip": (SERIES, None),
    "gz_bomb_lying.nii.gz": (VOLUME, "more than 1048576 bytes follow"),
    "nii_all_nan.nii.gz": ((32, 32, 32), None),  # the ingest judges values
    "nii_constant.nii.gz": (VOLUME, None),
    "nii_extension_size_0.nii": (VOLUME, None),  # extensions are skipped by vox_offset alone
    "nii_extra_data.nii.gz": ((20, 64, 64), "229376 bytes follow the voxels"),
    "nii_huge_values.nii.gz": (VOLUME, None),
    "nii_nan_inf.nii.gz": (VOLUME, None),
    "nii_pixdim_zero.nii.gz": (VOLUME, "voxel size unknown"),
    "nii_sform_singular.nii.gz": (VOLUME, "qform was used"),
    "nii_slope_inf.nii.gz": (VOLUME, "scl_slope is inf"),
    "zarr_good_control.zarr/": (VOLUME, "voxel size unknown"),
    "zarr_good_zipped.zarr.zip": (VOLUME, "voxel size unknown"),
    "zarr_missing_chunk.zarr/": (VOLUME, "1 of 8 chunks absent (reads as fill value 0)"),
    "zip_duplicate_same.zip": (SERIES, "5 duplicates"),
    "zip_instance_reversed.zip": (SERIES, None),
    "zip_no_geometry.zip": (SERIES, "voxel size unknown"),
    "zip_with_junk.zip": (SERIES, ".DS_Store"),
}
"""File -> (z, y, x), and what one of the warnings says (None: there is no warning)."""
REFUSED_AT_THE_DOOR = {
    "dcm_no_preamble.dcm", "empty.nii.gz", "empty_inside.nii.gz", "nii_bad_magic.nii", "png_named.dcm",
    "text_named.nii", "zip_bomb_overlap.zip", "zip_empty.zip", "zip_encrypted_flag.zip", "zip_slip.zip",
    "zip_truncated.zip",
}  # fmt: skip
"""What `identify`, which the web process calls, refuses already."""
SAME_AS = {
    "zip_instance_reversed.zip": "good_control_series.zip",
    "zip_duplicate_same.zip": "good_control_series.zip",
    "zip_with_junk.zip": "good_control_series.zip",
    "zip_no_geometry.zip": "good_control_series.zip",
    "zarr_good_control.zarr/": "good_control.nii.gz",
    "zarr_good_zipped.zarr.zip": "good_control.nii.gz",
    "nii_extension_size_0.nii": "good_control.nii.gz",
    "nii_sform_singular.nii.gz": "good_control.nii.gz",
    "nii_slope_inf.nii.gz": "good_control.nii.gz",
}


def test_every_row_has_its_answer(shared_data: Path) -> None:
    assert {row["file"] for row in manifest("broken")} == set(REFUSED) | set(ACCEPTED)


@pytest.mark.parametrize("file", REFUSED)
def test_is_refused(shared_data: Path, file: str, capfd: pytest.CaptureFixture[str]) -> None:
    error, message = REFUSED[file]
    with pytest.raises(error, match=message) as caught:
        read_whole(shared_data / "broken" / file, LIMITS)
    assert type(caught.value) is error
    assert "CANARY" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("file", ACCEPTED)
def test_is_accepted(shared_data: Path, file: str) -> None:
    shape, warning = ACCEPTED[file]
    whole = read_whole(shared_data / "broken" / file, LIMITS)
    assert whole.header.grid.shape == shape
    if warning is None:
        assert whole.warnings == ()
    else:
        assert any(warning in each for each in whole.warnings), whole.warnings


@pytest.mark.parametrize("file", SAME_AS)
def test_oddities_change_no_voxel(shared_data: Path, file: str) -> None:
    odd, sound = (read_whole(shared_data / "broken" / each).voxels for each in (file, SAME_AS[file]))
    np.testing.assert_array_equal(odd, sound)


@pytest.mark.parametrize("file", [*REFUSED, *ACCEPTED])
def test_the_door_refuses_by_magic_and_directory_alone(shared_data: Path, file: str) -> None:
    path = shared_data / "broken" / file
    if file in REFUSED_AT_THE_DOOR:
        with pytest.raises(REFUSED[file][0]):
            identify(path, LIMITS)
    else:
        assert identify(path, LIMITS) in ("nifti", "dicom", "zarr")


def test_overlapping_entries_are_refused_whatever_the_limit(shared_data: Path) -> None:
    with pytest.raises(ScanTooLarge, match="overlap"):
        identify(shared_data / "broken" / "zip_bomb_overlap.zip", Limits(decoded_bytes=1 << 40))


def test_nothing_was_written_outside(shared_data: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsafeArchive):
        read_whole(shared_data / "broken" / "zip_slip.zip")
    assert not list(Path("/tmp").glob("zip_slip_canary*"))


def test_a_chunk_over_the_limit_is_named(shared_data: Path) -> None:
    with pytest.raises(ScanTooLarge, match="one chunk"):
        read_whole(shared_data / "broken" / "zarr_huge_chunk.zarr", Limits(decoded_bytes=1 << 50))


@pytest.mark.slow
def test_an_honest_bomb_is_streamed_where_the_limit_allows_it(shared_data: Path) -> None:
    peak, planes = run_in_child("stream", shared_data / "broken")
    assert planes == 1100
    assert peak < EXTRA_BYTES


def test_memory_stays_bounded_over_the_whole_collection(shared_data: Path) -> None:
    peak, files = run_in_child("all", shared_data / "broken")
    assert files == len(REFUSED) + len(ACCEPTED)
    assert peak < EXTRA_BYTES


def run_in_child(what: str, folder: Path) -> tuple[int, int]:
    """What `main` prints in a process of its own, whose peak of memory belongs to no other test."""
    command = [sys.executable, __file__, what, str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    peak, count = (int(number) for number in result.stdout.split())
    return peak, count


def main(what: str, folder: Path) -> None:
    """Print the bytes of memory above a baseline with every library loaded, and how much was read."""
    for warm_up in ("good_control.nii.gz", "good_control_series.zip", "zarr_good_control.zarr"):
        read_whole(folder / warm_up)
    before = peak_rss_bytes()
    count = stream_bomb(folder) if what == "stream" else read_all(folder)
    print(peak_rss_bytes() - before, count)


def stream_bomb(folder: Path) -> int:
    """Planes of the honest bomb, 4.6 GB of zeros, read eight at a time."""
    with open_scan(folder / "gz_bomb_honest.nii.gz") as scan:
        return sum(len(slab.voxels) for slab in scan.slabs(8))


def read_all(folder: Path) -> int:
    """How many files were read or refused."""
    for file in (*REFUSED, *ACCEPTED):
        with contextlib.suppress(StorageError):
            read_whole(folder / file, LIMITS)
    return len(REFUSED) + len(ACCEPTED)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
