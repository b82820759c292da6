"""Which compressor a volume is compressed by: the one that was asked for, or the one that does best.

It is chosen as `storage.compressors.auto` chooses for a file, by the same rules (`compressors.ranking`): a
small sample says who is hopeful, and of those the one is taken that does best on the sample by which the
first setting is found. What differs is what is looked at: tiles one by one, as a volume stores them, and one
compressor for all of them.
"""

from __future__ import annotations

from collections.abc import Iterator

from storage.compressors import COMPRESSORS, MissingPeer, UnsuitableValues
from storage.compressors.goals import Goal
from storage.compressors.ranking import Candidate, hopeful, rank
from storage.derived_samples import Samples
from storage.derived_schemes import Scheme, scheme_of
from storage.errors import UnreachableQuality, UnsuitableCompressor
from storage.records import StoredVolume

AUTO = "auto"
CHOICES = (*COMPRESSORS, AUTO)
"""What `compressor` may be."""
UNCERTAIN = 1.15
"""Factor by which sizes on a small sample may be off, one compressor's against another's."""


def chosen(stored: StoredVolume, goal: Goal, compressor: str, samples: Samples) -> str:
    """The compressor itself, or by `auto` the best: a name in `COMPRESSORS`. Raises UnsuitableCompressor
    where none takes the values.
    """
    if compressor != AUTO:
        return compressor
    aim = samples.aim(goal)
    rough = list(_candidates(stored, goal, aim, samples))
    if not rough:
        raise UnsuitableCompressor(AUTO, "no compressor that is installed takes these values")
    likely = [one.who for one in hopeful(rough, aim, UNCERTAIN)]
    if len(likely) > 1:
        likely.sort(key=lambda one: rank(samples.promised(one, goal), aim))
    return likely[0].name


def _candidates(stored: StoredVolume, goal: Goal, aim: Goal, samples: Samples) -> Iterator[Candidate[Scheme]]:
    """What each compressor makes of a small sample, without those that cannot take it."""
    for name in COMPRESSORS:
        try:
            scheme = scheme_of(name, goal, stored)
            found = samples.estimate(samples.trial, scheme, aim)
        except (UnsuitableValues, MissingPeer, UnreachableQuality):
            continue
        yield Candidate(scheme, scheme.scale is None, found)
