"""Cohorts with a target that is known: made ones, exactly, on real heads or phantoms; and real labelled ones.

`spread(size)` gives a `MadeCohort` of volumes that are computed where they are looked at; `.dense()` keeps
them in memory, `.cohort()` is what regressors take, `.split` and `folds` part it by person.
"""

from benchmarks.cohorts.heads import Head, base_heads, phantom_heads, real_heads
from benchmarks.cohorts.made import MadeCohort, Protocol, Split, folds
from benchmarks.cohorts.textures import spread

__all__ = [
    "Head",
    "MadeCohort",
    "Protocol",
    "Split",
    "base_heads",
    "folds",
    "phantom_heads",
    "real_heads",
    "spread",
]
