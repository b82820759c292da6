"""Which compressor a volume is compressed by: the one that was asked for, or the one that does best."""

from __future__ import annotations

from collections.abc import Iterator

from storage.compressors import COMPRESSORS, MissingPeer, UnsuitableValues
from storage.compressors.goals import Goal
from storage.compressors.sampled import Estimate, Sample
from storage.derived_samples import Samples
from storage.derived_schemes import scheme_of
from storage.errors import UnreachableQuality, UnsuitableCompressor
from storage.records import StoredVolume

AUTO = "auto"
CHOICES = (*COMPRESSORS, AUTO)
"""What `compressor` may be."""


def chosen(stored: StoredVolume, goal: Goal, compressor: str, samples: Samples) -> str:
    """The compressor itself, or by `auto` the one that does best on a small sample."""
    if compressor != AUTO:
        return compressor
    found = list(_candidates(stored, goal, samples, samples.trial))
    if not found:
        raise UnsuitableCompressor(AUTO, "no compressor that is installed takes these values")
    met = [one for one in found if goal.of(one[1]) >= 0]
    if goal.kind == "ratio":
        return max(met or found, key=lambda one: (goal.of(one[1]) >= 0, one[1].psnr, one[1].ratio))[0]
    return min(met or found, key=lambda one: one[1].stored_bytes)[0]


def _candidates(
    stored: StoredVolume, goal: Goal, samples: Samples, sample: Sample
) -> Iterator[tuple[str, Estimate]]:
    """What each compressor makes of a sample, without those that cannot take it."""
    for name in COMPRESSORS:
        try:
            scheme = scheme_of(name, goal, stored)
            yield name, samples.estimate(sample, scheme, goal)
        except (UnsuitableValues, MissingPeer, UnreachableQuality):
            continue
