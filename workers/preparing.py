"""A table's scans: opened, checked against their digests, and brought to one grid and one scale."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from models.learning.preparation import Caveat, Preparation, RawScan
from models.types import CubeSource
from storage.jobs import Progress
from storage.records import VolumeRecord
from workers.context import JobContext, facts_of
from workers.scans import HeldScan, Readers, StoredScan, prepared_bytes, raw_scan

HELD_SHARE = 4
"""Prepared scans stay in memory where they take the budget over this at most; others are read again."""
FAR_APART = 1.5
"""Spacings of a cohort that differ by more than this factor are marked."""


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
    records: Sequence[VolumeRecord],
    decide: Callable[[Sequence[RawScan]], Preparation],
    seed: int,
    readers: Readers,
) -> Prepared:
    """The scans of some records; `decide` says what they are brought to.

    Raises CorruptVolume, and what the preparation raises.
    """
    raw = []
    for done, record in enumerate(records):
        context.report(Progress("opening scans", done, len(records), "scans"))
        raw.append(raw_scan(StoredScan(record, context.open(record), readers), facts_of(record)))
    preparation = decide(raw)
    needed = prepared_bytes(len(raw), preparation.channels, preparation.shape)
    held = needed <= context.memory_budget // HELD_SHARE
    scans: list[CubeSource] = []
    caveats = []
    for done, scan in enumerate(raw):
        context.report(Progress("preparing scans", done, len(raw), "scans"))
        made = preparation.apply(scan, seed)
        scans.append(HeldScan(made) if held else made)
        caveats.append(made.warnings)
    return Prepared(preparation, tuple(records), tuple(scans), tuple(caveats))


def mixed(preparation: Preparation) -> list[Caveat]:
    """What of a training cohort is not of one kind."""
    told = []
    if len(preparation.modalities) > 1:
        told.append(Caveat("modalities-mixed", f"scans are of {', '.join(preparation.modalities)}"))
    least, most = preparation.least_spacing or (), preparation.most_spacing or ()
    apart = any(high > FAR_APART * low for low, high in zip(least, most, strict=True))
    if apart and preparation.config.grid == "pad":
        text = f"spacings from {_mm(least)} to {_mm(most)} mm: consider the grid resample"
        told.append(Caveat("spacing-mixed", text))
    return told


def _mm(spacing: Sequence[float]) -> str:
    return " x ".join(f"{size:.3g}" for size in spacing)
