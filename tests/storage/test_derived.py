"""Derived volumes: what they hold, box by box, whatever becomes of the attempts that write them."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

import storage.derived_draft
from storage.derived import PLAIN, Box, Coding, Drafts, derive, drafted, framed, putt
from storage.derived_coding import within
from storage.derived_report import LevelReader, measured
from storage.derived_writing import shard_bytes
from storage.errors import JobCancelled, LeaseLost, StorageError, StorageFull
from storage.ingest import Moments, ingest
from storage.jobs import Progress
from storage.pyramid import downsample
from storage.records import Derivation
from storage.volume import Volume
from tests.storage.scans import OBLIQUE, ArrayScan

ROOT = Path(__file__).resolve().parents[2]
Array = NDArray[Any]


def scan(shape: tuple[int, ...], dtype: Any = np.int16, seed: int = 0) -> Array:
    """Smooth, with noise."""
    ramp = np.sin(np.arange(shape[-1]) / 9) * 20
    return (np.random.default_rng(seed).normal(100, 2, shape) + ramp).astype(dtype)


def source_of(folder: Path, voxels: Array, **how: Any) -> Volume:
    facts = ingest(ArrayScan(voxels, **how), folder)
    return Volume.open(folder, facts.digest)


def why(source: Volume, **settings: Any) -> Derivation:
    return Derivation("vol_1", source.stored.digest, "test", settings)


def copied(source: Volume) -> Callable[[int | None, Box], Array]:
    reader = LevelReader(source)
    return lambda frame, box: reader.box(0, frame, box)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((66, 20, 30), np.int16),
        ((1, 1, 1), np.uint8),
        ((2, 5, 70, 20), np.float32),
        ((5, 1, 100), np.float64),
        ((3, 65, 9), np.int32),
        ((9, 8, 7), np.uint16),
    ],
)
@pytest.mark.parametrize(
    "coding", [PLAIN, putt(4.0), framed("wavelet", {"step": 4.0}), framed("zstd", {}, lossless=True)]
)
def test_voxels_geometry_and_facts(
    tmp_path: Path, shape: tuple[int, ...], dtype: Any, coding: Coding
) -> None:
    voxels = scan(shape, dtype)
    source = source_of(tmp_path / "v", voxels)
    told = derive(
        source,
        tmp_path / "derived" / "1.zarr",
        copied(source),
        drafts=Drafts(tmp_path / "drafts", "job_1", 1),
        derivation=why(source),
        coding=coding,
        warnings=["made for a test"],
    )
    made = Volume.open(tmp_path / "derived" / "1.zarr", told.digest)
    made.verify()
    decoded = made.array(0)[...]
    assert decoded.dtype == voxels.dtype
    if coding.lossless:
        np.testing.assert_array_equal(decoded, voxels)
    assert np.abs(decoded - voxels.astype(float)).max() < 30
    statistics = Moments.of(decoded).statistics(0)
    assert told.statistics.minimum == decoded.min()
    assert told.statistics.maximum == decoded.max()
    assert told.statistics.mean == pytest.approx(statistics.mean, rel=1e-12)
    assert told.statistics.std == pytest.approx(statistics.std, rel=1e-9, abs=1e-12)
    assert made.stored == told
    kept = ("grid", "axes", "array_shape", "dtype", "levels", "metadata", "frame_step_s", "source_format")
    assert [getattr(told, name) for name in kept] == [getattr(source.stored, name) for name in kept]
    np.testing.assert_array_equal(told.grid.matrix, OBLIQUE)
    assert told.warnings == (*source.stored.warnings, "made for a test")
    assert told.derived == why(source)
    assert list((tmp_path / "drafts").iterdir()) == []


def test_coarser_levels_are_means_of_what_was_written_or_what_is_given(tmp_path: Path) -> None:
    source = source_of(tmp_path / "v", scan((20, 130, 10)), affine=None)
    how: dict[str, Any] = {"derivation": why(source)}
    assert source.stored.levels == 3

    def doubled(frame: int | None, box: Box) -> Array:
        return np.asarray(2 * source.array(0)[box])

    def sevens(level: int, frame: int | None, box: Box) -> Array:
        return np.full([axis.stop - axis.start for axis in box], 7 * level, np.int16)

    derive(source, tmp_path / "own", doubled, drafts=Drafts(tmp_path / "d", "j", 1), **how)
    own = Volume.open(tmp_path / "own")
    for level in (1, 2):
        finer = own.array(level - 1)[...]
        np.testing.assert_array_equal(own.array(level)[...], downsample(finer, (2, 2, 2)))
    derive(source, tmp_path / "given", doubled, coarser=sevens, drafts=Drafts(tmp_path / "e", "j", 1), **how)
    given = Volume.open(tmp_path / "given")
    np.testing.assert_array_equal(given.array(0)[...], own.array(0)[...])
    assert [np.unique(given.array(level)[...]).tolist() for level in (1, 2)] == [[7], [14]]


def test_boxes_are_shards_and_no_larger_than_64_by_256_by_256(tmp_path: Path) -> None:
    source = source_of(tmp_path / "v", np.full((65, 3, 600), 7, np.uint8), affine=None)
    for coding in (PLAIN, putt(1.0)):
        asked: list[tuple[int, ...]] = []

        def values(frame: int | None, box: Box) -> Array:
            asked.append(tuple(axis.stop - axis.start for axis in box))  # noqa: B023
            return np.full(asked[-1], 7, np.uint8)  # noqa: B023

        how: dict[str, Any] = {"derivation": why(source), "coding": coding}
        derive(source, tmp_path / f"{id(coding)}", values, drafts=Drafts(tmp_path / "d", "j", 1), **how)
        assert sorted(asked) == sorted([(z, 3, x) for z in (64, 1) for x in (256, 256, 88)])


def test_zarr_itself_reads_the_shards(tmp_path: Path) -> None:
    voxels = scan((10, 40, 270), np.float32)
    source = source_of(tmp_path / "v", voxels)
    how: dict[str, Any] = {"drafts": Drafts(tmp_path / "d", "j", 1), "derivation": why(source)}
    derive(source, tmp_path / "plain.zarr", copied(source), **how)
    group = zarr.open_group(tmp_path / "plain.zarr", mode="r")
    np.testing.assert_array_equal(group["0"][...], voxels)  # type: ignore[index]
    tensorstore = pytest.importorskip("tensorstore")
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{tmp_path}/plain.zarr/0/"}}
    np.testing.assert_array_equal(tensorstore.open(spec).result().read().result(), voxels)


def test_absent_chunks_have_no_bytes() -> None:
    assert len(shard_bytes([b"abc", None])) == (3 + 4) + 2 * 16 + 4


def test_values_of_another_dtype_are_rounded_and_kept_within(tmp_path: Path) -> None:
    source = source_of(tmp_path / "v", scan((4, 5, 6), np.uint8))
    how: dict[str, Any] = {"drafts": Drafts(tmp_path / "d", "j", 1), "derivation": why(source)}
    derive(source, tmp_path / "a", lambda frame, box: np.linspace(-3.4, 300.6, 120).reshape(4, 5, 6), **how)
    made = Volume.open(tmp_path / "a").array(0)[...]
    assert (made.dtype, made.min(), made.max()) == (np.uint8, 0, 255)
    derive(source, tmp_path / "b", copied(source), dtype=np.dtype(np.float32), **how)
    assert Volume.open(tmp_path / "b").stored.dtype == "float32"


@pytest.mark.parametrize("wrong", [np.zeros((4, 5, 5)), np.full((4, 5, 6), np.nan)])
def test_values_that_do_not_fit_are_refused(tmp_path: Path, wrong: Array) -> None:
    source = source_of(tmp_path / "v", scan((4, 5, 6), np.float32))
    drafts = Drafts(tmp_path / "d", "j", 1)
    with pytest.raises(ValueError, match="values"):
        derive(source, tmp_path / "a", lambda frame, box: wrong, drafts=drafts, derivation=why(source))
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16])
@pytest.mark.parametrize("bound", [0.5, 20.0])
def test_a_bound_holds_on_every_voxel_of_any_dtype(tmp_path: Path, dtype: Any, bound: float) -> None:
    voxels = scan((8, 12, 66), dtype)
    voxels[3, 4, 5] = 3000
    source = source_of(tmp_path / "v", voxels)
    how: dict[str, Any] = {"drafts": Drafts(tmp_path / "d", "j", 1), "derivation": why(source)}
    written = drafted(source, copied(source), coding=within(bound), **how)
    quality = measured(source, written.volume())
    assert 0 < quality.max_error <= bound or (bound < 1 and dtype is np.int16 and quality.max_error == 0)
    assert quality.max_error == written.largest
    assert sum(written.level_bytes) < source.stored.voxel_bytes
    codecs = zarr.open_array(written.draft.store / "0", mode="r").metadata.to_dict()["codecs"]
    assert "bound" not in str(codecs)


def test_gaps_are_kept_where_that_is_asked_for(tmp_path: Path) -> None:
    voxels = scan((6, 40, 30), np.float32)
    voxels[2, 3:9, 4] = np.nan
    source = source_of(tmp_path / "v", voxels)
    for keep in (True, False):
        how: dict[str, Any] = {"derivation": why(source, keep=keep), "keep_gaps": keep}
        derive(source, tmp_path / f"{keep}", copied(source), drafts=Drafts(tmp_path / "d", "j", 1), **how)
        made = Volume.open(tmp_path / f"{keep}")
        made.verify()
        gaps = made.gaps()
        assert made.stored.gaps is keep
        assert made.stored.statistics.replaced == 6 * keep
        assert any("NaN" in said for said in made.stored.warnings) is keep
        if keep:
            assert gaps is not None
            np.testing.assert_array_equal(gaps.box((0, 0, 0), voxels.shape), np.isnan(voxels))


# Attempts that end early


class Writing:
    """Derives the same volume again and again, and remembers for which boxes it was asked."""

    def __init__(self, source: Volume, root: Path) -> None:
        self.source, self.root = source, root
        self.asked: list[Box] = []

    def run(self, attempt: int, *, stop_after: int | None = None, drafts: str = "d", **settings: Any) -> str:
        """The digest. After some tiles it is cancelled."""
        reader = LevelReader(self.source)
        told = 0

        def values(frame: int | None, box: Box) -> Array:
            self.asked.append(box)
            return reader.box(0, frame, box)

        def report(progress: Progress) -> None:
            nonlocal told
            if progress.phase == "coding" and progress.done:
                told += 1
                if told == stop_after:
                    raise JobCancelled("job_1")

        stored = derive(
            self.source,
            self.root / f"{drafts}-{attempt}.zarr",
            values,
            drafts=Drafts(self.root / drafts, "job_1", attempt),
            derivation=why(self.source, **settings),
            coding=putt(16.0),
            report=report,
        )
        Volume.open(self.root / f"{drafts}-{attempt}.zarr", stored.digest).verify()
        return stored.digest


@pytest.fixture
def writing(tmp_path: Path) -> Writing:
    """Of four shards of level 0, of ten tiles, and coarser ones."""
    source = source_of(tmp_path / "v", np.concatenate([scan((5, 3, 300), np.uint8)] * 13), affine=None)
    return Writing(source, tmp_path)


def test_the_next_attempt_makes_only_what_is_missing(writing: Writing) -> None:
    reference = writing.run(1, drafts="undisturbed")
    shards = len(writing.asked)
    assert shards == 4
    writing.asked.clear()
    with pytest.raises(JobCancelled):
        writing.run(1, stop_after=10)
    begun = list(writing.asked)
    writing.asked.clear()
    assert writing.run(2) == reference
    assert 1 <= len(writing.asked) < shards
    assert len(begun) - 1 + len(writing.asked) == shards
    assert not set(map(str, begun[:-1])) & set(map(str, writing.asked))


def test_an_attempt_that_was_overtaken_cannot_disturb(writing: Writing, tmp_path: Path) -> None:
    reference = writing.run(1, drafts="undisturbed")
    with pytest.raises(JobCancelled):
        writing.run(1, stop_after=6)
    (folder,) = (tmp_path / "d").iterdir()
    late = storage.derived_draft.Draft(folder, Drafts(tmp_path / "d", "job_1", 1))
    with pytest.raises(JobCancelled):
        writing.run(2, stop_after=2)
    with pytest.raises(LeaseLost):
        late.add("0/c/0/0/0", b"late", tiles=1, moments=Moments())
    with pytest.raises(LeaseLost):
        late.publish(tmp_path / "late.zarr")
    with pytest.raises(LeaseLost):
        writing.run(1)
    assert writing.run(3) == reference


@pytest.mark.parametrize("damage", ["shard", "ledger", "part"])
def test_what_was_damaged_meanwhile_is_made_again(writing: Writing, tmp_path: Path, damage: str) -> None:
    reference = writing.run(1, drafts="undisturbed")
    with pytest.raises(JobCancelled):
        writing.run(1, stop_after=9)
    (folder,) = (tmp_path / "d").iterdir()
    if damage == "shard":
        path = folder / "volume.zarr" / "0" / "c" / "0" / "0" / "0"
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    elif damage == "ledger":
        path = folder / "ledger.jsonl"
        path.write_text(path.read_text()[:-30])
    else:
        (folder / "shard.part").write_bytes(b"half")
    assert writing.run(2) == reference


def test_another_purpose_starts_anew(writing: Writing, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(JobCancelled):
        writing.run(1, stop_after=9)
    writing.asked.clear()
    writing.run(2, colour="red")
    assert len(writing.asked) == 4
    with pytest.raises(JobCancelled):
        writing.run(3, stop_after=9)
    writing.asked.clear()
    monkeypatch.setattr("storage.derived._program", lambda: "changed")
    writing.run(4)
    assert len(writing.asked) == 4


def test_a_full_disk_is_told_and_what_was_whole_is_kept(
    writing: Writing, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, left = storage.derived_draft._write, [3]

    def full(path: Path, content: bytes) -> None:
        if path.name == "shard.part" and path.parent.name.endswith(".1"):
            left[0] -= 1
            if left[0] == 0:
                path.write_bytes(content[:5])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, content)

    monkeypatch.setattr(storage.derived_draft, "_write", full)
    with pytest.raises(StorageFull):
        writing.run(1)
    writing.asked.clear()
    writing.run(2)
    assert len(writing.asked) == 2


def test_kill_9_and_the_same_digest_without_making_anything_twice(writing: Writing, tmp_path: Path) -> None:
    reference = writing.run(1, drafts="undisturbed")
    program = """
        import os, signal, sys
        from pathlib import Path
        sys.path.insert(0, "tests")
        from tests.storage.test_derived import Writing
        from storage.volume import Volume

        class Killed(list):
            def append(self, box):
                super().append(box)
                print(box, flush=True)
                if len(self) == 3:
                    os.kill(os.getpid(), signal.SIGKILL)

        root = Path(sys.argv[1])
        writing = Writing(Volume.open(root / "v"), root)
        writing.asked = Killed()
        writing.run(1)
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL
    begun = done.stdout.splitlines()
    writing.asked.clear()
    assert writing.run(2) == reference
    assert [str(box) for box in writing.asked] == [begun[-1], str(writing.asked[-1])]
    assert len(begun) + len(writing.asked) - 1 == 4


# Measured from what is decoded


def test_measures_box_by_box_are_those_of_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from storage.compressors.report import reported

    monkeypatch.setattr("storage.derived_report.SIDE", 22)
    monkeypatch.setattr("storage.derived_report.PLANES", 3)
    voxels = np.stack([scan((5, 25, 40), seed=seed) for seed in (1, 2)])
    source = source_of(tmp_path / "v", voxels)
    how: dict[str, Any] = {"drafts": Drafts(tmp_path / "d", "j", 1), "derivation": why(source)}
    written = drafted(source, copied(source), coding=putt(20.0), **how)
    made = written.volume()
    whole = reported(voxels, made.array(0)[...], 1)
    parts = measured(source, made)
    assert parts.peak == whole.peak
    assert parts.psnr == pytest.approx(whole.psnr, rel=1e-12)
    assert parts.ssim == pytest.approx(whole.ssim, rel=1e-9)
    assert parts.max_error == whole.max_error == written.largest
    assert written.squares / voxels.size == pytest.approx(10 ** (-whole.psnr / 10))


def test_a_derived_volume_that_cannot_be_read_back_is_not_the_source_s_fault(tmp_path: Path) -> None:
    source = source_of(tmp_path / "v", scan((4, 20, 30)))
    how: dict[str, Any] = {"drafts": Drafts(tmp_path / "d", "j", 1), "derivation": why(source)}
    written = drafted(source, copied(source), **how)
    shard = written.draft.store / "0" / "c" / "0" / "0" / "0"
    content = bytearray(shard.read_bytes())
    content[9] ^= 1
    shard.write_bytes(content)
    with pytest.raises(StorageError, match="read back") as error:
        measured(source, written.volume())
    assert error.value.code == "storage-error"


def test_errors_whose_squares_no_float64_holds_are_measured(tmp_path: Path) -> None:
    voxels = scan((5, 20, 30), np.float64)
    found = []
    for name, scale in {"plain": 1.0, "tiny": 2.0**-600}.items():
        source = source_of(tmp_path / f"{name}.zarr", voxels * scale)
        how: dict[str, Any] = {"drafts": Drafts(tmp_path / name, "j", 1), "derivation": why(source)}
        written = drafted(source, copied(source), coding=putt(16.0 * scale), **how)
        told = measured(source, written.volume())
        found.append((told.psnr, told.ssim, written.squares, written.largest / scale))
    assert found[0] == pytest.approx(found[1])
    assert 10 < found[0][0] < 60
