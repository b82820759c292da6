"""A table's scans: opened, checked against their digests, and brought to one grid and one scale."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from models.learning.preparation import Caveat, Preparation, RawScan
from models.learning.preparation.caveats import FAR_SPACING
from models.regressors.base import Extent
from models.regressors.memory import scan_bytes, slab_bytes
from models.types import CubeSource
from storage.jobs import Progress
from storage.records import VolumeRecord
from workers.cohorts import Table
from workers.context import JobContext, facts_of
from workers.memory import BASE_BYTES
from workers.scans import HeldScan, Readers, StoredScan, raw_scan

HELD_SHARE = 4
"""Prepared scans stay in memory where they take the budget over this at most, and there is room beside what
recipes take; others are read again.
"""


@dataclass(frozen=True, eq=False)
class Prepared:
    """Scans as the mathematics takes them, one for each record, and what is unusual about each."""

    preparation: Preparation
    records: tuple[VolumeRecord, ...]
    scans: tuple[CubeSource, ...]
    caveats: tuple[tuple[Caveat, ...], ...]

    def warnings(self) -> list[Caveat]:
        """What is unusual, each kind once: how many scans it is about, and the first of them."""
        about: dict[str, list[str]] = defaultdict(list)
        for record, caveats in zip(self.records, self.caveats, strict=True):
            for caveat in caveats:
                about[caveat.code].append(f"{record.name}: {caveat.text}")
        return [
            Caveat(code, f"{len(texts)} of {len(self.records)} scans; {texts[0]}")
            for code, texts in about.items()
        ]


def prepared(
    context: JobContext,
    table: Table,
    takes: Callable[[Extent], Mapping[str, int]],
    decide: Callable[[Sequence[RawScan]], Preparation],
    seed: int,
    readers: Readers,
) -> Prepared:
    """The scans of a table; `decide` says what they are brought to.

    `takes` tells the memory that each recipe takes then, by name: no voxel is read where one takes too much.
    Raises OverBudget, CorruptVolume, SourceFailed, and what the preparation raises.
    """
    raw = []
    for done, record in enumerate(table.records):
        context.report(Progress("opening scans", done, len(table.records), "scans"))
        raw.append(raw_scan(StoredScan(record, context.open(record), readers), facts_of(record), record.name))
    preparation = decide(raw)
    extent = extent_of(preparation, raw, rows=len(table), covariates=len(table.names))
    taken = takes(extent)
    refuse_greedy(context, cohort_bytes(context), extent, taken)
    held = _fit_beside(context, extent, max(taken.values()))
    scans: list[CubeSource] = []
    caveats = []
    for done, scan in enumerate(raw):
        context.report(Progress("preparing scans", done, len(raw), "scans"))
        made = preparation.apply(scan, seed)
        scans.append(HeldScan(made) if held else made)
        caveats.append(made.warnings)
    return Prepared(preparation, table.records, tuple(scans), tuple(caveats))


def cohort_bytes(context: JobContext) -> int:
    """What any job on a cohort takes: the process, and the cache of decoded chunks."""
    return BASE_BYTES + context.settings.cache_bytes


def extent_of(preparation: Preparation, raw: Sequence[RawScan], *, rows: int, covariates: int) -> Extent:
    """How much there is of these scans once prepared. Raises InvalidShape for an unknown spacing."""
    stored = max(map(preparation.stored_voxels, raw))
    return Extent(preparation.shape, preparation.channels, len(raw), rows, covariates, stored)


def refuse_greedy(context: JobContext, beside: int, extent: Extent, taken: Mapping[str, int]) -> None:
    """Raise OverBudget where a recipe takes too much, `beside` what is taken anyway; it is named."""
    name = max(taken, key=lambda name: taken[name])
    grid = " x ".join(map(str, extent.shape))
    cure = f"{name} takes {taken[name]:,} of them at {grid} voxels; take another regressor, or a coarser grid"
    context.require_memory(beside + taken[name], cure)


def _fit_beside(context: JobContext, extent: Extent, taken: int) -> bool:
    """Whether all prepared scans may stay in memory, beside what a recipe takes."""
    free = context.memory_budget - cohort_bytes(context) - max(taken, slab_bytes(extent))
    return extent.scans * scan_bytes(extent) <= min(free, context.memory_budget // HELD_SHARE)


def mixed(preparation: Preparation) -> list[Caveat]:
    """What of a training cohort is not of one kind."""
    told = []
    if len(preparation.modalities) > 1:
        told.append(Caveat("modalities-mixed", f"scans are of {', '.join(preparation.modalities)}"))
    least, most = preparation.least_spacing or (), preparation.most_spacing or ()
    apart = any(high > FAR_SPACING * low for low, high in zip(least, most, strict=True))
    if apart and preparation.config.grid == "pad":
        text = f"spacings from {_mm(least)} to {_mm(most)} mm: consider the grid resample"
        told.append(Caveat("spacing-mixed", text))
    return told


def _mm(spacing: Sequence[float]) -> str:
    return " x ".join(f"{size:.3g}" for size in spacing)
