"""`compress`: a volume becomes a smaller one that can be read at any box and level without unpacking."""

from __future__ import annotations

import math
import time
from math import prod
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import torch
from pydantic import Field, field_validator, model_validator

from models.threads import one_thread
from storage.checkpoints import Checkpoints
from storage.compressors.goals import Goal
from storage.derived import Drafts
from storage.derived_choice import CHOICES
from storage.derived_compressed import Compressed, assisted, compressed
from storage.derived_report import PLANES, SIDE, Quality, measured
from storage.derived_samples import CACHE_BYTES, MOST_TILES
from storage.errors import UnreachableQuality
from storage.ids import derived_id
from storage.layout import VIEWING
from storage.records import Derivation, DerivedVolume, StoredVolume
from storage.tidy import store_key
from workers.context import JobContext
from workers.jobs.base import Kind, Outcome, Parameters, Result
from workers.memory import BASE_BYTES, peak_bytes
from workers.packages import program, versions
from workers.schemas import choices, of_types

REPORT = "report.json"
RATIO = 20.0
"""If nothing else is wanted."""
TILE_FLOATS = 16
"""Float64 arrays of a tile's size that its coding holds at once, about."""
SAMPLE_LEVELS = 3
"""A sample has as many tiles of the coarser levels as two levels of so many more would have, at most."""


class CompressParameters(Parameters):
    """What is wanted of the compressed volume: one of `ratio`, `psnr` and `bound`."""

    ratio: float | None = Field(
        None,
        gt=1,
        json_schema_extra=of_types,
        description="bytes of the voxels for each byte of the compressed volume, all levels counted; "
        f"{RATIO:g} if nothing else is wanted",
    )
    psnr: float | None = Field(
        None,
        gt=0,
        le=300,
        json_schema_extra=of_types,
        description="dB, at least; its peak is the scan's largest value minus its smallest",
    )
    bound: float | None = Field(
        None,
        ge=0,
        json_schema_extra=of_types,
        description="largest error of any voxel, in units of the values; 0: without loss",
    )
    compressor: str = Field(
        "putt",
        json_schema_extra=choices(CHOICES),
        description="putt: quantised tensor trains, and for a bound what makes them good to it; wavelet: "
        "not of trains, and better at most ratios; auto: the one that does best on a sample",
    )
    seed: int = Field(0, ge=0, lt=1 << 32, description="of the tiles on which the setting is found")

    @field_validator("compressor")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in CHOICES:
            raise ValueError(f"known are {', '.join(CHOICES)}")
        return value

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        given = [name for name in ("ratio", "psnr", "bound") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"one of ratio, psnr and bound is the target, got {' and '.join(given)}")
        return self

    @property
    def goal(self) -> Goal:
        """As the search for the setting takes it."""
        for kind in ("psnr", "bound"):
            if (value := getattr(self, kind)) is not None:
                return Goal(kind, value)
        return Goal("ratio", RATIO if self.ratio is None else self.ratio)


class PassResult(Result):
    """One writing of the whole, as measured while it was written."""

    number: float | None = Field(description="the setting")
    ratio: float
    psnr: float | None
    max_error: float
    tiles: int


class CompressResult(Result):
    """What became of the volume, all of it from the decoded file; the same is in the artifact report.json."""

    volume_id: str = Field(description="of the compressed volume")
    volume_digest: str
    source_digest: str
    target: str
    compressor: str = Field(description="that wrote the tiles")
    setting: dict[str, float] = Field(description="its number, by its name; none without loss")
    ratio: float = Field(description="voxel_bytes / coded_bytes")
    level0_ratio: float = Field(description="the same of the finest level alone")
    stored_ratio: float = Field(description="voxel_bytes / stored_bytes: small volumes have a large overhead")
    psnr: float | None = Field(description="dB; null where no voxel changed")
    peak: float = Field(description="of the PSNR: the source's largest value minus its smallest")
    ssim: float = Field(description="mean over slices")
    max_error: float
    voxel_bytes: int = Field(description="of the source's finest level, all frames")
    coded_bytes: int = Field(description="of all levels' shards: tiles, their checksums and indexes")
    level_bytes: list[int] = Field(description="the same, level by level")
    stored_bytes: int = Field(description="of the volume: the shards, metadata and checksums beside them")
    passes: list[PassResult] = Field(description="writings of the whole, at most three")
    sampled_tiles: int = Field(description="on which the setting was found")
    tiles_coded: int = Field(description="by this attempt, of the volume that was kept")
    tiles_helped: int = Field(description="coded by other workers that were idle")
    tiles_kept: int = Field(description="found whole from an earlier attempt")
    seconds: float
    mb_s: float = Field(description="million bytes of voxels a second, measuring included")
    peak_memory_bytes: int = Field(description="most resident memory of the job's process")
    packages: dict[str, str]
    seed: int


class Compress(Kind[CompressParameters]):
    """Finds the setting, writes the volume, reads it back, and publishes it."""

    name = "compress"
    version = "1"
    title = "Compress"
    description = (
        "Makes a compressed volume for a ratio, a PSNR or a bound on every voxel's error. It can be looked "
        "at and computed on as any other, and what it lost is measured on the decoded voxels."
    )
    parameters = CompressParameters
    result: ClassVar[type[Result]] = CompressResult

    def memory_bytes(self, context: JobContext, parameters: CompressParameters) -> int:
        """A sample; and a shard with the tiles in work, or a box of both volumes, whichever is larger."""
        return compressing_bytes(context.stored, torch.get_num_threads())

    def run(self, context: JobContext, parameters: CompressParameters) -> Outcome:
        """Compress. Raises UnreachableQuality, UnsuitableCompressor, CorruptVolume and StorageFull."""
        began = time.perf_counter()
        source, threads = context.volume(), torch.get_num_threads()
        with one_thread():
            made = compressed(
                source,
                parameters.goal,
                compressor=parameters.compressor,
                seed=parameters.seed,
                drafts=drafts_of(context),
                derivation=Derivation(
                    context.volume_record.id,
                    source.stored.digest,
                    self.name,
                    parameters.model_dump(exclude_none=True),
                ),
                checkpoints=_plans(context, parameters),
                report=context.report,
                threads=threads,
                ring=context.call_helpers,
            )
            quality = measured(source, made.written.volume(), context.report)
        _refuse(made, parameters.goal, quality)
        store, folder = place_of(context)
        stored = made.written.publish(folder)
        result = _result(context, parameters, made, quality, time.perf_counter() - began)
        report = context.artifacts.write_json(REPORT, result.model_dump(mode="json"))
        name = f"{context.volume_record.name}, {made.compressor} {result.ratio:.3g}:1"
        return Outcome(result, (report,), derived=DerivedVolume(name, stored, store))

    def help(self, context: JobContext, parameters: CompressParameters, until: float) -> bool:
        """Code shards that the worker that runs the job has not begun."""
        threads = torch.get_num_threads()
        with one_thread():
            return assisted(
                context.volume(),
                parameters.goal,
                drafts=drafts_of(context),
                threads=threads,
                until=until,
            )


def compressing_bytes(stored: StoredVolume, threads: int) -> int:
    """What a compression takes beside nothing else, about."""
    size, shape = np.dtype(stored.dtype).itemsize, stored.grid.shape
    tile = prod(VIEWING.chunk)
    shard = prod(min(a, b) for a, b in zip(shape, VIEWING.shard, strict=True))
    box = prod(min(a, b) for a, b in zip(shape, (PLANES, SIDE, SIDE), strict=True))
    sample = min(SAMPLE_LEVELS * MOST_TILES * tile, 2 * prod(stored.array_shape)) * size
    coding = 3 * shard * size + threads * TILE_FLOATS * tile * 8
    return BASE_BYTES + sample + max(coding, CACHE_BYTES, 3 * box * size)


def drafts_of(context: JobContext) -> Drafts:
    """Where this job's derived volume is written until it is whole."""
    return Drafts(context.checkpoints.folder / "drafts", context.job.id, context.job.attempt)


def place_of(context: JobContext) -> tuple[str, Path]:
    """Where this attempt's derived volume is published: below the data root, and in full."""
    store = store_key(derived_id(context.job.id), context.job.attempt)
    return store, context.data_root / store


def _plans(context: JobContext, parameters: CompressParameters) -> Checkpoints:
    """What is kept of settings that were found; of no use to another program or for other voxels."""
    purpose = [context.stored.digest, parameters.model_dump_json(), *sorted(program().items())]
    return context.checkpoints.part("plan").meant_for(str(purpose))


def _refuse(made: Compressed, goal: Goal, quality: Quality) -> None:
    """Raise UnreachableQuality where the decoded file breaks what was promised."""
    if goal.kind != "ratio" and goal.excess(1.0, quality.psnr, quality.max_error) < 0:
        best = {"psnr": quality.psnr, "max_error": quality.max_error}
        raise UnreachableQuality(made.compressor, str(goal), best, "use another compressor")


def _result(
    context: JobContext, parameters: CompressParameters, made: Compressed, quality: Quality, seconds: float
) -> CompressResult:
    written, source = made.written, context.stored
    stored, coded = written.stored, sum(written.level_bytes)
    return CompressResult(
        volume_id=derived_id(context.job.id),
        volume_digest=stored.digest,
        source_digest=source.digest,
        target=str(parameters.goal),
        compressor=made.compressor,
        setting=made.setting,
        ratio=source.voxel_bytes / coded,
        level0_ratio=source.voxel_bytes / written.level_bytes[0],
        stored_ratio=source.voxel_bytes / stored.stored_bytes,
        psnr=finite_or_none(quality.psnr),
        peak=quality.peak,
        ssim=quality.ssim,
        max_error=quality.max_error,
        voxel_bytes=source.voxel_bytes,
        coded_bytes=coded,
        level_bytes=list(written.level_bytes),
        stored_bytes=stored.stored_bytes,
        passes=[PassResult(**vars(one)) for one in made.passes],
        sampled_tiles=made.sampled_tiles,
        tiles_coded=written.made,
        tiles_helped=written.helped,
        tiles_kept=written.kept,
        seconds=seconds,
        mb_s=source.voxel_bytes / 1e6 / seconds,
        peak_memory_bytes=peak_bytes(),
        packages=versions(),
        seed=parameters.seed,
    )


def finite_or_none(value: float) -> float | None:
    """A PSNR is infinite where nothing changed."""
    return value if math.isfinite(value) else None
