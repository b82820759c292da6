"""Exports: what other programs and our own readers find; bounded memory; nothing after a failure."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import zarr
from numpy.typing import NDArray
from support.compressed import compressed
from zarr.storage import ZipStore

from storage.artifacts import ArtifactWriter
from storage.derived import framed
from storage.errors import CorruptVolume, JobCancelled, StorageFull, UnsupportedScan
from storage.exports import ome_zarr
from storage.exports.nifti import nifti_header, nifti_pieces, nifti_version
from storage.exports.ome_zarr import store_entries
from storage.exports.slabs import plane_bytes, slab_depth
from storage.exports.zips import zip_pieces
from storage.grid import VoxelGrid
from storage.ingest import ingest
from storage.jobs import Progress
from storage.readers import open_scan
from storage.records import Statistics, StoredVolume
from storage.volume import Volume
from tests.storage.scans import OBLIQUE, ArrayScan

ROTATED = np.array([[0, -0.8, 0, 10.0], [0.9, 0, 0, -20.0], [0, 0, 2.5, 30.0], [0, 0, 0, 1]])
DTYPES = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64"]


def silent(progress: Progress) -> None:
    return None


def stored(folder: Path, voxels: NDArray[Any], **how: Any) -> Volume:
    facts = ingest(ArrayScan(voxels, **how), folder)
    return Volume.open(folder, facts.digest)


def noise(shape: tuple[int, ...], dtype: str = "int16") -> NDArray[Any]:
    return np.random.default_rng(0).integers(0, 120, shape).astype(dtype)


def smooth() -> NDArray[Any]:
    """Two frames with a little noise, which cannot be kept for few bytes."""
    return np.asarray(noise((2, 20, 70, 66)) // 20 + 10 * np.arange(66), np.int16)


def as_nifti(volume: Volume, path: Path, depth: int = 7) -> Any:
    path.write_bytes(b"".join(nifti_pieces(volume, depth, silent)))
    return nibabel.load(path)


def as_zip(volume: Volume, path: Path, *, coded: bool = False) -> Path:
    path.write_bytes(b"".join(zip_pieces(store_entries(volume, silent, coded=coded))))
    return path


def all_voxels(path: Path, shape: tuple[int, ...]) -> NDArray[Any]:
    """As our own reader gives them."""
    with open_scan(path) as scan:
        found = np.empty(
            (scan.header.frames.count if scan.header.frames else 1, *shape[-3:]), scan.header.dtype
        )
        for slab in scan.slabs(16):
            found[slab.frame, slab.start : slab.start + len(slab.voxels)] = slab.voxels
    return found.reshape(shape)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nibabel_reads_the_same_voxels_in_the_same_type(tmp_path: Path, dtype: str) -> None:
    voxels = noise((20, 11, 13), dtype)
    limits = np.iinfo(dtype) if voxels.dtype.kind in "iu" else np.finfo("float32")
    voxels[0, 0, :2] = limits.min, limits.max
    image = as_nifti(stored(tmp_path / "v", voxels), tmp_path / "v.nii.gz")
    assert image.get_data_dtype() == voxels.dtype
    assert isinstance(image, nibabel.Nifti1Image)
    np.testing.assert_array_equal(np.asarray(image.dataobj).T, voxels)


@pytest.mark.parametrize(("affine", "qform"), [(ROTATED, True), (OBLIQUE, False)])
def test_affine_and_zooms_are_those_of_the_volume(tmp_path: Path, affine: Any, qform: bool) -> None:
    """OBLIQUE shears, as a tilted gantry does: no quaternion says that."""
    volume = stored(tmp_path / "v", noise((20, 11, 13)), affine=affine)
    image = as_nifti(volume, tmp_path / "v.nii.gz")
    np.testing.assert_allclose(image.affine, affine, rtol=1e-6)
    np.testing.assert_allclose(image.header.get_sform(), affine, rtol=1e-6)
    np.testing.assert_allclose(image.header.get_zooms(), volume.stored.grid.spacing[::-1], rtol=1e-6)
    assert (image.header["qform_code"] > 0) == qform
    if qform:
        np.testing.assert_allclose(image.header.get_qform(), affine, rtol=1e-5, atol=1e-5)
    assert image.header.get_xyzt_units() == ("mm", "unknown")


@pytest.mark.parametrize("axis", ["t", "c"])
def test_four_axes(tmp_path: Path, axis: str) -> None:
    voxels = noise((3, 20, 11, 13))
    image = as_nifti(stored(tmp_path / "v", voxels, axis=axis, affine=ROTATED), tmp_path / "v.nii.gz")
    assert image.shape == ((13, 11, 20, 3) if axis == "t" else (13, 11, 20, 1, 3))
    np.testing.assert_array_equal(np.asarray(image.dataobj).T.reshape(voxels.shape), voxels)
    assert image.header.get_xyzt_units()[1] == ("sec" if axis == "t" else "unknown")
    if axis == "t":
        assert image.header.get_zooms()[3] == 2.0


@pytest.mark.parametrize("way", ["nifti", "plain", "coded"])
@pytest.mark.parametrize("axis", [None, "t", "c"])
def test_our_own_readers_find_the_same_scan(tmp_path: Path, way: str, axis: str | None) -> None:
    voxels = noise((2, 40, 70, 90), "float32")[slice(None) if axis else 0]
    volume = stored(tmp_path / "v", voxels, axis=axis)
    path = tmp_path / "exported"
    if way == "nifti":
        as_nifti(volume, tmp_path / "v.nii.gz").uncache()
        path = tmp_path / "v.nii.gz"
    else:
        as_zip(volume, path, coded=way == "coded")
    np.testing.assert_array_equal(all_voxels(path, voxels.shape), voxels)
    with open_scan(path) as scan:
        again = ingest(scan, tmp_path / "again")
    np.testing.assert_allclose(again.grid.matrix, OBLIQUE, rtol=1e-6)
    assert (again.array_shape, again.axes, again.dtype) == (voxels.shape, volume.stored.axes, "float32")
    assert again.frame_step_s == (2.0 if axis == "t" else None)
    assert again.statistics == volume.stored.statistics


def test_what_is_not_known_is_not_claimed(tmp_path: Path) -> None:
    image = as_nifti(stored(tmp_path / "v", noise((20, 11, 13)), affine=None), tmp_path / "v.nii.gz")
    assert (image.header["sform_code"], image.header["qform_code"]) == (0, 0)
    assert image.header.get_xyzt_units() == ("unknown", "unknown")
    with open_scan(tmp_path / "v.nii.gz") as scan:
        assert scan.header.grid == VoxelGrid((20, 11, 13))


@pytest.mark.parametrize(("side", "version"), [(32767, 1), (32768, 2)])
def test_long_sides_need_nifti_2(tmp_path: Path, side: int, version: int) -> None:
    grid = VoxelGrid.from_affine((side, 1, 1), ROTATED)
    facts = StoredVolume(grid, ("z", "y", "x"), grid.shape, "int16", 1, "", Statistics(0, 0, 0, 0), 0, "test")
    path = tmp_path / "long.nii"
    path.write_bytes(nifti_header(facts) + np.arange(side, dtype="<i2").tobytes())
    image = nibabel.load(path)
    assert type(image) is (nibabel.Nifti1Image if version == 1 else nibabel.Nifti2Image)
    assert nifti_version(facts) == version
    np.testing.assert_array_equal(np.asarray(image.dataobj).ravel(), np.arange(side).astype(np.int16))
    np.testing.assert_allclose(image.affine, ROTATED, rtol=1e-6)


@pytest.mark.parametrize("way", ["stored", "anew"])
def test_a_zip_is_laid_out_as_rfc_9_has_it(tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rfc9 = pytest.importorskip("ngff_zarr.rfc9_zip")
    if way == "anew":
        monkeypatch.setattr(ome_zarr, "PLAIN", frozenset())
    voxels = noise((40, 150, 90))
    volume = stored(tmp_path / "v", voxels)
    path = as_zip(volume, tmp_path / "v.zip")
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}
        assert {entry.flag_bits for entry in archive.infolist()} == {0}
    assert names[0] == "zarr.json"
    assert [name.endswith("zarr.json") for name in names] == sorted(
        (name.endswith("zarr.json") for name in names), reverse=True
    )
    assert rfc9.read_ozx_version(path) == "0.5"
    assert rfc9.read_ozx_json_first(path)
    group = zarr.open_group(ZipStore(path, mode="r"), mode="r")
    for level in range(volume.stored.levels):
        np.testing.assert_array_equal(group[str(level)][...], volume.array(level)[...])
    assert as_zip(volume, tmp_path / "again.zip").read_bytes() == path.read_bytes()


def test_a_store_as_it_is_can_be_opened_by_its_digest(tmp_path: Path) -> None:
    volume = stored(tmp_path / "v", noise((40, 150, 90)))
    with zipfile.ZipFile(as_zip(volume, tmp_path / "v.zip", coded=True)) as archive:
        archive.extractall(tmp_path / "unpacked")
    Volume.open(tmp_path / "unpacked", volume.stored.digest).verify()


@pytest.mark.parametrize("way", ["nifti", "coded"])
def test_damage_is_found_before_it_is_handed_on(tmp_path: Path, way: str) -> None:
    volume = stored(tmp_path / "v", noise((40, 150, 90)))
    shard = tmp_path / "v" / "0/c/1/0/0"
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    with pytest.raises(CorruptVolume, match="0/c/1/0/0"):
        (as_nifti if way == "nifti" else as_zip)(volume, tmp_path / "out")
    shard.unlink()
    with pytest.raises(CorruptVolume, match="missing"):
        (as_nifti if way == "nifti" else as_zip)(volume, tmp_path / "out")


@pytest.mark.parametrize("axis", [None, "t"])
def test_a_compressed_volume_is_exported_as_it_decodes(tmp_path: Path, axis: str | None) -> None:
    """As plain codecs, or as it is: then whoever has the codec reads the small file."""
    voxels = smooth()[slice(None) if axis else 0]
    source = stored(tmp_path / "v", voxels, axis=axis)
    volume = compressed(source, tmp_path / "c")
    told = volume.array(0)[...]
    assert (told != voxels).any()
    image = as_nifti(volume, tmp_path / "v.nii.gz", depth=20)
    np.testing.assert_array_equal(np.asarray(image.dataobj).T, told)
    assert image.header["descrip"].item() == b"Tomotrain: compress"
    plain, coded = (
        as_zip(volume, tmp_path / f"{way}.zip", coded=way == "coded") for way in ("plain", "coded")
    )
    assert coded.stat().st_size < plain.stat().st_size
    for path, codecs in ((plain, {"bytes", "zstd", "crc32c"}), (coded, {"tomotrain.putt", "crc32c"})):
        group: Any = zarr.open_group(ZipStore(path, mode="r"), mode="r")
        (chain,) = group["0"].metadata.codecs
        assert {codec.to_dict()["name"] for codec in chain.codecs} == codecs
        for level in range(volume.stored.levels):
            np.testing.assert_array_equal(group[str(level)][...], volume.array(level)[...])
        assert group.attrs["tomotrain"]["derived"]["kind"] == "compress"
        np.testing.assert_array_equal(all_voxels(path, told.shape), told)
        with open_scan(path) as scan:
            assert "a job (compress) made these voxels" in scan.warnings[0]


def altered(path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The zip with the innermost codec of level 0 changed in its metadata."""
    changed = path.with_suffix(".changed.zip")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(changed, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "0/zarr.json":
                document = json.loads(content)
                change(document)
                content = json.dumps(document).encode()
            new.writestr(name, content)
    return changed


def test_a_compressed_store_that_is_sent_is_read_or_refused_with_a_cure(tmp_path: Path) -> None:
    volume = stored(tmp_path / "v", smooth()[0])
    frames = as_zip(compressed(volume, tmp_path / "f", framed("zstd", {})), tmp_path / "f.zip", coded=True)
    with pytest.raises(UnsupportedScan, match="export it without its codecs"):
        open_scan(frames)

    blocks = as_zip(compressed(volume, tmp_path / "c"), tmp_path / "c.zip", coded=True)

    def newer(document: dict[str, Any]) -> None:
        document["codecs"][0]["configuration"]["codecs"][0]["configuration"]["version"] = 99

    with pytest.raises(UnsupportedScan, match="use a newer one"):
        open_scan(altered(blocks, newer))

    def huge(document: dict[str, Any]) -> None:
        document["chunk_grid"]["configuration"]["chunk_shape"] = [20, 256, 256]
        document["codecs"][0]["configuration"]["chunk_shape"] = [20, 256, 256]

    with pytest.raises(UnsupportedScan, match="at most 64 a side"):
        open_scan(altered(blocks, huge))


def peak_of(pieces: Iterator[bytes]) -> int:
    tracemalloc.start()
    for _ in pieces:
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


@pytest.mark.parametrize("way", ["nifti", "plain", "anew"])
def test_memory_does_not_grow_with_the_volume(
    tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "anew":
        monkeypatch.setattr(ome_zarr, "PLAIN", frozenset())

    def pieces(name: str, planes: int) -> Iterator[bytes]:
        volume = stored(tmp_path / name, noise((planes, 64, 64)))
        if way == "nifti":
            return nifti_pieces(volume, 16, silent)
        return zip_pieces(store_entries(volume, silent))

    peak_of(pieces("warm", 16))
    small, large = peak_of(pieces("small", 64)), peak_of(pieces("large", 256))
    assert large < 1.5 * small


def test_slabs_are_as_deep_as_chunks_where_there_is_room(tmp_path: Path) -> None:
    volume = stored(tmp_path / "v", noise((70, 20, 30)))
    plane = 20 * 30 * 2
    assert plane_bytes(volume.stored) == plane
    room = [1 << 30, 32 * plane, 32 * plane - 1, 9 * plane, 0, -5]
    assert [slab_depth(volume, most) for most in room] == [32, 32, 16, 8, 1, 1]


def test_an_export_can_be_stopped_at_every_slab_and_leaves_nothing(tmp_path: Path) -> None:
    volume = stored(tmp_path / "v", noise((40, 150, 90)))
    heard: list[Progress] = []
    for _ in nifti_pieces(volume, 8, heard.append):
        pass
    assert [(told.done, told.total, told.unit) for told in heard] == [
        (n, 40, "planes") for n in range(0, 40, 8)
    ]

    def stop(progress: Progress) -> None:
        if progress.done == 16:
            raise JobCancelled("job_1")

    writer = ArtifactWriter(tmp_path / "artifacts")
    with pytest.raises(JobCancelled):
        writer.write_pieces("a.nii.gz", nifti_pieces(volume, 8, stop), "application/gzip")
    assert list((tmp_path / "artifacts").iterdir()) == []


def test_pieces_become_a_whole_artifact_or_none(tmp_path: Path) -> None:
    writer = ArtifactWriter(tmp_path)
    artifact = writer.write_pieces("a.bin", iter([b"one", b"", b"two"]), "application/gzip")
    assert (tmp_path / "a.bin").read_bytes() == b"onetwo"
    assert (artifact.size, artifact.media_type) == (6, "application/gzip")
    assert artifact.sha256 == hashlib.sha256(b"onetwo").hexdigest()

    def failing(error: OSError) -> Iterator[bytes]:
        yield b"one"
        raise error

    with pytest.raises(StorageFull):
        writer.write_pieces("b.bin", failing(OSError(errno.ENOSPC, "No space left")), "application/gzip")
    with pytest.raises(OSError, match="gone"):
        writer.write_pieces("b.bin", failing(OSError(errno.EIO, "gone")), "application/gzip")
    with pytest.raises(ValueError, match="no artifact name"):
        writer.write_pieces("../b", itertools.repeat(b""), "application/gzip")
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]
