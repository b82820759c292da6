"""What memory regressors take, told before they take it: upper limits of what they hold at once.

The process itself, what sources of scans keep, and a model that is loaded are not in it.
"""

from __future__ import annotations

from itertools import pairwise
from math import ceil, prod

from models.cpic.embed import estimate_of
from models.cpic.encoder import Encoder
from models.cpic.fibres import FibreConfig
from models.cpic.index_sets import feasible_ranks
from models.learning.preparation.grid import MOST_READ
from models.regressors.base import Extent
from models.regressors.dense import SLAB
from models.regressors.readouts import HELD_OUT

FLOAT32, FLOAT64 = 4, 8
SLAB_COPIES = 8
"""Of a slab in float32: read, found finite, scaled in float64 and back, turned, padded, and summed."""
HEAD_COPIES = 8
"""Of the features of all rows: by scan, by row, centred, on their axes, the axes, and what those make."""
SQUARES = 10
"""Matrices of rows by rows that a head takes: Gram matrices, their vectors, what is left out of them."""
BASIS_COPIES = 5
"""Of anchors: as trains, in a batch, in products, as arrays, and those of the model of the fold before."""


def scan_bytes(extent: Extent) -> int:
    """One scan in float32."""
    return FLOAT32 * extent.channels * prod(extent.shape)


def slab_bytes(extent: Extent) -> int:
    """Reading a whole scan slab by slab; what is made coarser is read in parts."""
    Z, Y, X = extent.shape
    slab = min(SLAB, Z) * Y * X
    beneath = 0 if extent.stored <= 1 else min(ceil(extent.stored * slab), MOST_READ + ceil(extent.stored))
    return SLAB_COPIES * FLOAT32 * extent.channels * (slab + beneath)


def head_bytes(rows: int, features: int) -> int:
    """Fitting a linear head to so many rows of features."""
    return FLOAT64 * (HEAD_COPIES * rows * features + SQUARES * rows * min(rows, features))


def look_bytes(extent: Extent, encoder: Encoder, fibres: FibreConfig) -> int:
    """Reading one scan by fibres, and testing its train."""
    return estimate_of(extent.shape, extent.channels, encoder, fibres, HELD_OUT).memory_bytes


def train_bytes(extent: Extent, features: int, fibres: FibreConfig) -> int:
    """One scan's train."""
    modes = fibres.train_layout(extent.shape, features).modes
    ranks = 1, *feasible_ranks(modes, fibres.rank), 1
    bonds = zip(pairwise(ranks), modes, strict=True)
    return FLOAT64 * sum(left * mode * right for (left, right), mode in bonds)


def basis_bytes(anchors: int, one: int) -> int:
    """The basis of so many anchors; `one` is what a train takes."""
    return BASIS_COPIES * anchors * one + SQUARES * FLOAT64 * anchors**2


def trains_bytes(extent: Extent, features: int, fibres: FibreConfig, anchors: int) -> int:
    """The trains of all scans, and a basis of some of them."""
    one = train_bytes(extent, features, fibres)
    return extent.scans * one + basis_bytes(min(anchors, extent.scans), one)
