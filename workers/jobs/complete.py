"""`complete`: what was never measured of a volume, filled by what was (workers/restoring/completing.py)."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

from pydantic import Field

from workers.context import JobContext
from workers.jobs.base import Parameters, Result
from workers.jobs.reading import cache_bytes
from workers.jobs.restoring import Plan, RestoredResult, Restoring, Told, Work, restoring_bytes
from workers.restoring.completing import SOURCES, Completing, CompletingConfig, sides_of
from workers.restoring.observed import Observed, gaps_of, refuse_whole
from workers.restoring.overview import overview_bytes


class CompleteParameters(Parameters):
    """Which voxels were observed, and how the others are found."""

    mask_volume_id: str | None = Field(
        None,
        min_length=1,
        max_length=100,
        description="a volume of the same shape (of one frame at least), not 0 where a voxel was observed; "
        "null: all that was finite in the scan that was sent",
    )
    keep_observed: bool = Field(
        True, description="observed voxels keep every bit; false: they too become what the train says"
    )
    tile: Literal[16, 32, 64] = Field(64, description="side of a window")
    rank: int | None = Field(
        None, ge=1, le=4096, description="of a window's train; null: found by voxels that are hidden from it"
    )
    seed: int = Field(0, ge=0, lt=1 << 63, description="of what is hidden: same seed, same volume")


class HeldOut(Result):
    """Errors at voxels that were observed, and hidden from what filled them."""

    voxels: int
    rmse: float | None = Field(description="in units of the values; null without such voxels")
    psnr: float | None = Field(description="dB, by the range of observed values; null without error")


class CompleteResult(RestoredResult):
    """What was filled, and how well."""

    gaps: int = Field(description="voxels that were not observed, and are filled")
    share: float = Field(description="of all voxels")
    scattered: HeldOut = Field(description="single voxels, as most gaps of a voxel or two")
    blocks: HeldOut = Field(description="blocks of 4 x 4 x 4; gaps that are deeper err more")
    windows: dict[str, int] = Field(description="restored windows, by what told them most nearly")
    mask_digest: str | None
    seed: int


class Complete(Restoring[CompleteParameters]):
    """An overview of each frame, and completed windows over it."""

    name = "complete"
    version = "1"
    title = "Complete"
    description = (
        "Makes a volume without gaps: voxels that were NaN in the scan, or that a mask says were not "
        "observed, are filled smoothly or by tensor trains, whichever tells hidden voxels best. Observed "
        "voxels keep every bit."
    )
    parameters = CompleteParameters
    result: ClassVar[type[Result]] = CompleteResult
    doing, done, keep_gaps = "completing", "completed", False

    def memory_bytes(self, context: JobContext, parameters: CompleteParameters) -> int:
        """The overview while it is made; then a shard with the windows around it, and what a window takes."""
        shape = context.stored.grid.shape
        sides, (making, kept) = sides_of(shape, parameters.tile), overview_bytes(shape)
        mask = 0 if parameters.mask_volume_id is None else cache_bytes(context)
        return restoring_bytes(context, sides, before=making, kept=kept) + mask

    def plan(self, work: Work, parameters: CompleteParameters) -> Plan:
        """Raises InvalidParameters without gaps or without anything else, and CorruptVolume."""
        context, volume = work.context, work.volume
        observed = Observed.of(context, volume, parameters.mask_volume_id, cache_bytes(context))
        gaps = gaps_of(context, volume.stored, observed)
        if gaps == 0 and parameters.keep_observed:
            refuse_whole(observed)
        config = CompletingConfig(**parameters.model_dump(exclude={"mask_volume_id"}))
        shape = volume.stored.grid.shape

        def result(told: Told) -> dict[str, Any]:
            return {
                "gaps": gaps,
                "share": gaps / math.prod(volume.stored.array_shape),
                "scattered": _held_out("scattered", told),
                "blocks": _held_out("blocks", told),
                "windows": {source: int(sum(told[source])) for source in SOURCES},
                "mask_digest": observed.mask_digest,
                "seed": parameters.seed,
            }

        return Plan(
            Completing(shape, observed, config, context.device, work.threads, work.check),
            {"mask_digest": observed.mask_digest},
            result,
            warnings=(f"{gaps:,} voxels that were not observed are filled by the job complete",),
        )


def _held_out(kind: str, told: Told) -> HeldOut:
    voxels, squares = int(sum(told[f"{kind}_voxels"])), math.fsum(told[f"{kind}_squares"])
    rmse, peak = (math.sqrt(squares / voxels) if voxels else None), max(told["range"])
    psnr = 20 * math.log10(peak / rmse) if rmse and peak else None
    return HeldOut(voxels=voxels, rmse=rmse, psnr=psnr)
