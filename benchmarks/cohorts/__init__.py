"""Cohorts with a target that is known: made ones, exactly, on real heads or phantoms; and real labelled ones.

`spread(size)` and `spots(size)` give a `MadeCohort` of volumes that are computed where they are looked at:
`.dense()` keeps them in memory, `.cohort()` is what regressors take, `.split` is by person (as are
`models.learning.folds`). `REAL[name]()` gives a `RealCohort` of raw scans.
"""

from benchmarks.cohorts.heads import Head, base_heads, phantom_heads, real_heads
from benchmarks.cohorts.lesions import spots
from benchmarks.cohorts.made import MadeCohort, Protocol
from benchmarks.cohorts.real import REAL, RealCohort
from benchmarks.cohorts.textures import spread

__all__ = [
    "REAL",
    "Head",
    "MadeCohort",
    "Protocol",
    "RealCohort",
    "base_heads",
    "phantom_heads",
    "real_heads",
    "spots",
    "spread",
]
