"""`denoise`: a volume without what is no stronger than its noise, window by window."""

from __future__ import annotations

import itertools
import math
import time
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, ValidationInfo, field_validator

from models.putt.denoising import Edge, denoised, noise_deviation
from models.putt.factorising import tt_svd_by_gram
from models.putt.morton import from_morton
from models.threads import one_thread
from storage.compressors.base import as_dtype
from storage.derived import Box
from storage.ids import derived_id
from storage.jobs import Progress
from storage.putt.digits import Digits
from storage.records import StoredVolume
from storage.volume import Volume
from workers.context import JobContext
from workers.jobs.base import Kind, Outcome, Parameters, Result
from workers.jobs.reading import cache_bytes
from workers.jobs.restoring import (
    Array,
    Blend,
    Bools,
    Boxes,
    Float64,
    Frame,
    Numbers,
    Phase,
    filled_box,
    frames_of,
    restored,
    restored_windows,
    restoring_bytes,
    shortened,
)
from workers.memory import peak_bytes
from workers.packages import versions
from workers.windows import Shape, Window, Windows, within

RULE = "marchenko_pastur"
ESTIMATE_SIDE = 64
TAKEN_TO_ESTIMATE = 4
"""Float64 arrays of such a side."""
MOST_ESTIMATES = 256
"""Tiles of a volume whose noise is estimated, evenly spread."""
MOST_SHARED = 3 / 4
"""Of a window's side, with the next one."""
ESTIMATING = "estimating the noise"


class DenoiseParameters(Parameters):
    """How strong the noise is, and by what windows it is told from the rest."""

    sigma: float | None = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        description="standard deviation of the noise, in units of the values; null: estimated from the scan",
    )
    method: Literal["train"] = Field(
        "train", description="train: of each window the directions of its tensor train above the noise's edge"
    )
    tile: Literal[8, 16, 32, 64] = Field(
        16,
        description="side of a window: large for what is smooth over far, small for what is rich in detail",
    )
    overlap: int | None = Field(
        None,
        ge=0,
        lt=64,
        description="voxels that neighbouring windows share, three quarters of a window at most: more of "
        "them average more, and take longer; null: about two thirds, so that several tell each voxel",
    )

    @field_validator("overlap")
    @classmethod
    def _not_all(cls, value: int | None, info: ValidationInfo) -> int | None:
        tile = info.data.get("tile")
        if value is not None and tile is not None and value > MOST_SHARED * tile:
            raise ValueError(f"windows of {tile} voxels share {int(MOST_SHARED * tile)} at most")
        return value


class NoiseEstimates(Result):
    """Of the noise's deviation, tile by tile; null where no tile tells anything."""

    tiles: int
    low: float | None = Field(description="5 % of the tiles are below")
    median: float | None
    high: float | None = Field(description="5 % of the tiles are above")


class DenoiseResult(Result):
    """What was taken away; the volume is one of its own."""

    volume_id: str
    sigma: float = Field(description="that was used, in units of the values; the median of all channels'")
    sigmas: list[float] = Field(description="of each channel, or of the whole volume")
    estimated: bool = Field(description="whether it was estimated from the scan")
    noise: NoiseEstimates
    rank: float = Field(
        description="largest rank of a window's train, mean of all windows; 0 where none was made"
    )
    windows: int = Field(description="that were restored, in all boxes")
    changed: float = Field(description="share of the voxels that have another value now")
    removed: float = Field(description="root mean square of what was taken away")
    volume_digest: str
    source_digest: str
    seconds: float
    peak_memory_bytes: int = Field(description="most resident memory of the job's process")
    packages: dict[str, str]
    device: str


class Denoise(Kind[DenoiseParameters]):
    """Trains of overlapping windows, cut at the edge of the noise's singular values."""

    name = "denoise"
    version = "1"
    title = "Denoise"
    description = (
        "Makes a volume in which of each window only those directions of a tensor train are left that stand "
        "out of white noise; windows overlap and go over into each other. For noise that is as strong "
        "everywhere."
    )
    parameters = DenoiseParameters
    result: ClassVar[type[Result]] = DenoiseResult

    def memory_bytes(self, context: JobContext, parameters: DenoiseParameters) -> int:
        """A shard with the windows around it, and what one window takes."""
        sides = _sides(context.stored.grid.shape, parameters.tile)
        estimating = TAKEN_TO_ESTIMATE * 8 * ESTIMATE_SIDE**3
        return restoring_bytes(context, sides, torch.get_num_threads()) + estimating

    def run(self, context: JobContext, parameters: DenoiseParameters) -> Outcome:
        """Denoise. Raises CorruptVolume, StorageFull, and what the catalogue's lease raises."""
        began = time.perf_counter()
        volume, threads = context.volume(), torch.get_num_threads()
        with one_thread():
            source = Boxes(context.volume_record, volume, cache_bytes(context))
            estimates = _estimates(context, volume.stored, source)
            sigmas = _sigmas(parameters, estimates)
            denoising = Denoising(context, volume, source, sigmas, parameters, threads)
            made, told = restored(
                context,
                volume,
                denoising,
                denoising.phase,
                settings={**parameters.model_dump(), "sigmas": sigmas},
                called="denoised",
                keep_gaps=True,
            )
        voxels, windows = math.prod(volume.stored.array_shape), sum(told["windows"])
        result = DenoiseResult(
            volume_id=derived_id(context.job.id),
            sigma=float(np.median(sigmas)),
            sigmas=sigmas,
            estimated=parameters.sigma is None,
            noise=_told(np.concatenate(estimates)),
            rank=sum(told["ranks"]) / max(1, windows),
            windows=int(windows),
            changed=sum(told["changed"]) / voxels,
            removed=math.sqrt(math.fsum(told["squares"]) / voxels),
            volume_digest=made.stored.digest,
            source_digest=volume.stored.digest,
            seconds=time.perf_counter() - began,
            peak_memory_bytes=peak_bytes(),
            packages=versions(),
            device=context.device,
        )
        return Outcome(result, derived=made)


class Denoising:
    """Gives boxes without noise."""

    def __init__(
        self,
        context: JobContext,
        volume: Volume,
        source: Boxes,
        sigmas: list[float],
        parameters: DenoiseParameters,
        threads: int,
    ) -> None:
        stored, tile = volume.stored, parameters.tile
        self.phase = Phase(context, "denoising")
        self._threads = threads
        self._source, self._device, self._dtype = source, context.device, np.dtype(stored.dtype)
        flat = stored.statistics.minimum == stored.statistics.maximum
        self._sigmas = [0.0] * len(sigmas) if flat else sigmas
        share = (tile - (tile + 1) // 3 if parameters.overlap is None else parameters.overlap) / tile
        self._windows = Windows.over(stored.grid.shape, _sides(stored.grid.shape, tile), share)

    def __call__(self, frame: Frame, box: Box) -> tuple[Array, Numbers]:
        """The box, and what was done to it. Gaps keep what stands in for them."""
        sigma = self._sigmas[frame or 0] if len(self._sigmas) > 1 else self._sigmas[0]
        if sigma == 0:
            return self._source.values(frame, box), _numbers()
        around = self._windows.around(box)
        values, gaps = self._source.values(frame, around), self._source.gaps(frame, around)
        blend, ranks, windows = Blend(box), 0, 0

        def one(window: Window) -> tuple[Float64, int]:
            place = within(window.box, around)
            return self._restored(values[place], gaps[place], sigma)

        touching = self._windows.touching(box)
        for window, (found, rank) in restored_windows(touching, one, self._threads, self.phase.check):
            blend.add(window, found)
            ranks, windows = ranks + rank, windows + 1
        place = within(box, around)
        before = values[place]
        made = np.where(gaps[place], before, as_dtype(blend.values(), self._dtype))
        removed = made.astype(np.float64) - before
        return made, _numbers(windows, ranks, int(np.count_nonzero(removed)), float((removed**2).sum()))

    def _restored(self, values: Array, gaps: Bools, sigma: float) -> tuple[Float64, int]:
        """A window without noise, and the largest rank of its train."""
        known = values.astype(np.float64)
        if gaps.all():
            return known, 0
        return _cut(filled_box(known, ~gaps, self._device) if gaps.any() else known, sigma, self._device)


def _numbers(windows: int = 0, ranks: int = 0, changed: int = 0, squares: float = 0.0) -> Numbers:
    return {"windows": windows, "ranks": ranks, "changed": changed, "squares": squares}


def _cut(values: Float64, sigma: float, device: str) -> tuple[Float64, int]:
    """A window of sides 2^a, by the directions of its train that are stronger than noise."""
    if len(set(values.shape)) == 1 and len(values) > 1:
        train = denoised(torch.from_numpy(values).to(device), sigma=sigma, rule=RULE).train
        return from_morton(train.full()).cpu().numpy(), max(train.ranks, default=1)
    digits = Digits.of(_shape(values))
    by_digits = torch.from_numpy(digits.split(values)).to(device)
    train, _ = tt_svd_by_gram(by_digits, floor=Edge(sigma, RULE))
    return digits.joined(train.full().cpu().numpy()), max(train.ranks, default=1)


def _noise(values: Array, gaps: Bools) -> float:
    """The deviation of a tile's noise; 0 where nothing tells. Blocks with gaps are made to tell nothing."""
    known = values.astype(np.float64)
    for corner in itertools.product((0, 1), repeat=3):
        touched = gaps[tuple(slice(first, None, 2) for first in corner)]
        z, y, x = (2 * places for places in np.nonzero(touched))
        for dz, dy, dx in itertools.product((0, 1), repeat=3):
            inside = (z + dz < known.shape[0]) & (y + dy < known.shape[1]) & (x + dx < known.shape[2])
            known[z[inside] + dz, y[inside] + dy, x[inside] + dx] = 0
    return noise_deviation(torch.from_numpy(known))


def _estimates(context: JobContext, stored: StoredVolume, source: Boxes) -> list[list[float]]:
    """Of each channel, or of the whole volume: what its tiles tell of the noise."""
    shape, frames = stored.grid.shape, frames_of(stored)
    tiles = Windows.over(shape, shortened(shape, ESTIMATE_SIDE))
    total = len(tiles) * len(frames)
    chosen = np.unique(np.linspace(0, total - 1, min(total, MOST_ESTIMATES)).astype(np.int64)).tolist()
    found: list[list[float]] = [[] for _ in range(len(frames) if stored.axes[0] == "c" else 1)]
    for done, number in enumerate(chosen):
        context.report(Progress(ESTIMATING, done, len(chosen), "tiles"))
        frame, tile = frames[number // len(tiles)], tiles[number % len(tiles)]
        sigma = _noise(source.values(frame, tile.box), source.gaps(frame, tile.box))
        if sigma > 0:
            found[(frame or 0) if len(found) > 1 else 0].append(sigma)
    return found


def _sigmas(parameters: DenoiseParameters, estimates: list[list[float]]) -> list[float]:
    """Of each channel, or of the whole volume; 0 where nothing tells."""
    if parameters.sigma is not None:
        return [parameters.sigma]
    return [float(np.median(found)) if found else 0.0 for found in estimates]


def _told(estimates: Array) -> NoiseEstimates:
    low, median, high = np.percentile(estimates, [5, 50, 95]).tolist() if len(estimates) else [None] * 3
    return NoiseEstimates(tiles=len(estimates), low=low, median=median, high=high)


def _sides(shape: Shape, tile: int) -> Shape:
    """Powers of two: nothing has to be made up beyond the volume's faces."""
    z, y, x = (min(tile, 1 << length.bit_length() - 1) for length in shape)
    return z, y, x


def _shape(values: Array) -> Shape:
    z, y, x = values.shape
    return z, y, x
