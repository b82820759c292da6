"""`denoise`: a volume without what is no stronger than its noise (workers/restoring/denoising.py)."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, ValidationInfo, field_validator

from workers.context import JobContext
from workers.jobs.base import Parameters, Result
from workers.jobs.reading import cache_bytes
from workers.jobs.restoring import Plan, RestoredResult, Restoring, Told, Work, restoring_bytes
from workers.restoring.boxes import Array, Boxes
from workers.restoring.denoising import ESTIMATE_BYTES, Denoising, deviations, sides_of

MOST_SHARED = 3 / 4
"""Of a window's side, with the next one."""


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

    @property
    def share(self) -> float:
        """Of a window, with the next one."""
        return (self.tile - (self.tile + 1) // 3 if self.overlap is None else self.overlap) / self.tile


class NoiseEstimates(Result):
    """Of the noise's deviation, tile by tile; null where no tile tells anything."""

    tiles: int
    low: float | None = Field(description="5 % of the tiles are below")
    median: float | None
    high: float | None = Field(description="5 % of the tiles are above")


class DenoiseResult(RestoredResult):
    """What was taken away."""

    sigma: float = Field(description="that was used, in units of the values; the median of all channels'")
    sigmas: list[float] = Field(description="of each channel, or of the whole volume")
    estimated: bool = Field(description="whether it was estimated from the scan")
    noise: NoiseEstimates
    mean_rank: float = Field(
        description="mean over all windows of the largest rank of each one's train; 0 where none was made"
    )
    max_rank: int = Field(description="the largest of all windows")
    windows: int = Field(description="that were restored, in all boxes")
    changed: float = Field(description="share of the voxels that have another value now")
    removed: float = Field(description="root mean square of what was taken away")


class Denoise(Restoring[DenoiseParameters]):
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
    doing, done, keep_gaps = "denoising", "denoised", True

    def memory_bytes(self, context: JobContext, parameters: DenoiseParameters) -> int:
        """An estimate of the noise; then a shard with the windows around it, and what a window takes."""
        sides = sides_of(context.stored.grid.shape, parameters.tile)
        return restoring_bytes(context, sides, before=ESTIMATE_BYTES)

    def plan(self, work: Work, parameters: DenoiseParameters) -> Plan:
        """Raises CorruptVolume."""
        context, stored = work.context, work.volume.stored
        source = Boxes(context.volume_record, work.volume, cache_bytes(context))
        estimates = deviations(context, stored, source)
        sigmas = _sigmas(parameters, estimates)

        def result(told: Told) -> dict[str, Any]:
            voxels, windows = math.prod(stored.array_shape), sum(told["windows"])
            return {
                "sigma": float(np.median(sigmas)),
                "sigmas": sigmas,
                "estimated": parameters.sigma is None,
                "noise": _summary(np.concatenate(estimates)),
                "mean_rank": sum(told["ranks"]) / max(1, windows),
                "max_rank": int(max(told["max_rank"])),
                "windows": int(windows),
                "changed": sum(told["changed"]) / voxels,
                "removed": math.sqrt(math.fsum(told["squares"]) / voxels),
            }

        restore = Denoising(
            stored,
            source,
            sigmas,
            parameters.tile,
            parameters.share,
            context.device,
            work.threads,
            work.check,
        )
        return Plan(restore, {"sigmas": sigmas}, result)


def _sigmas(parameters: DenoiseParameters, estimates: list[list[float]]) -> list[float]:
    """Of each channel, or of the whole volume; 0 where nothing tells."""
    if parameters.sigma is not None:
        return [parameters.sigma]
    return [float(np.median(found)) if found else 0.0 for found in estimates]


def _summary(estimates: Array) -> NoiseEstimates:
    low, median, high = np.percentile(estimates, [5, 50, 95]).tolist() if len(estimates) else [None] * 3
    return NoiseEstimates(tiles=len(estimates), low=low, median=median, high=high)
