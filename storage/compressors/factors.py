"""Blocks as factors in float32, neither quantised nor coded: a train, as in PuTT's paper, and Tucker's form.

Ranks are the smallest for which what is left out, shared evenly among the bonds or modes, stays below a root
mean square error over the block.
"""

from __future__ import annotations

import struct
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod, sqrt
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from storage.compressors.base import Framed, Setting, UnsuitableValues, as_dtype, finite, in_voxel_units, peer
from storage.compressors.frame import Array, Dtype
from storage.compressors.parts import apart, grid, together
from storage.putt.digits import Digits
from storage.putt.varints import read_varint, varint

Float64 = NDArray[np.float64]

ITERATIONS = 5
"""Of higher-order orthogonal iteration."""
MEAN = struct.Struct("<d")
LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Factors(Framed):
    """Blocks of `side` voxels along each axis; those at the far faces are cut."""

    side: int = 64

    @abstractmethod
    def block(self, values: Float64, tolerance: float) -> bytes:
        """A block, of as many axes as `places` leaves it, for a root mean square error."""

    @abstractmethod
    def block_values(self, data: bytes, shape: tuple[int, ...]) -> Float64:
        """What `block` was given, or near it."""

    @abstractmethod
    def places(self, shape: tuple[int, ...], side: int) -> Iterator[tuple[int | slice, ...]]:
        """Of blocks."""

    def setting(self, values: Array) -> Setting | None:
        """`tolerance`: no block's root mean square error is larger, but for float32."""
        return in_voxel_units("tolerance", values, 1.0)

    def packed(self, values: Array, number: float) -> bytes:
        """See `Framed`."""
        exact = self._refused(finite(self.name, values))
        blocks = [
            self.block(exact[where].astype(np.float64), number)
            for where in self.places(values.shape, self.side)
        ]
        return varint(self.side) + together(blocks)

    def _refused(self, values: Array) -> Array:
        """The values. Raises UnsuitableValues where a factor might be larger than a float32 can be: as large
        as the norm of a block.
        """
        voxels = prod(values.shape[:-3]) * self.side**3
        largest = max(float(values.max()), -float(values.min()))
        if largest > (most := LARGEST / sqrt(voxels)):
            raise UnsuitableValues(
                f"{self.name} takes values up to {most:.3g}, these run up to {largest:.3g}: scale them, or "
                "use a lossless compressor"
            )
        return values

    def unpacked(self, payload: bytes, shape: tuple[int, ...], dtype: Dtype) -> Array:
        """See `Framed`."""
        side, at = read_varint(payload, 0)
        values = np.empty(shape, dtype)
        for where, block in zip(self.places(shape, side), apart(payload[at:]), strict=True):
            values[where] = as_dtype(self.block_values(block, values[where].shape), dtype)
        return values


@dataclass(frozen=True)
class TtSvd(Factors):
    """A train of each block in PuTT's order of digits, by TT-SVD (Oseledets, "Tensor-train decomposition",
    SIAM J. Sci. Comput. 33 (2011), algorithm 1).
    """

    name: ClassVar[str] = "tt_svd"

    def places(self, shape: tuple[int, ...], side: int) -> Iterator[tuple[int | slice, ...]]:
        """Frame by frame."""
        return grid(shape, side)

    def block(self, values: Float64, tolerance: float) -> bytes:
        """The inner ranks, and the cores."""
        z, y, x = values.shape
        A = Digits.of((z, y, x)).split(values)
        modes = A.shape
        left_out = tolerance * tolerance * values.size / max(1, len(modes) - 1)
        cores, ranks = [], [1]
        for mode in modes[:-1]:
            U, A = _split(A.reshape(ranks[-1] * mode, -1), left_out)
            cores.append(U)
            ranks.append(len(A))
        return b"".join([*map(varint, ranks[1:]), *map(_float32, [*cores, A])])

    def block_values(self, data: bytes, shape: tuple[int, ...]) -> Float64:
        """See `Factors`."""
        z, y, x = shape
        digits = Digits.of((z, y, x))
        inner, at = _numbers(data, digits.levels - 1)
        ranks = [1, *inner, 1]
        cores = _arrays(
            data, at, [(r, n, s) for r, n, s in zip(ranks, digits.modes, ranks[1:], strict=False)]
        )
        product = np.ones((1, 1))
        for core in cores:
            product = (product @ core.reshape(len(core), -1)).reshape(-1, core.shape[2])
        return digits.joined(product.reshape(digits.modes))


@dataclass(frozen=True)
class Tucker(Factors):
    """A core and a factor for each axis, time among them, by higher-order orthogonal iteration (tensorly); De
    Lathauwer, De Moor and Vandewalle, "On the best rank-1 and rank-(R1, ..., RN) approximation of
    higher-order tensors", SIAM J. Matrix Anal. Appl. 21 (2000). The mean is taken off first.
    """

    name: ClassVar[str] = "tucker"

    def places(self, shape: tuple[int, ...], side: int) -> Iterator[tuple[int | slice, ...]]:
        """Of all frames together."""
        for where in grid(shape[-3:], side):
            yield (*[slice(None)] * (len(shape) - 3), *where)

    def block(self, values: Float64, tolerance: float) -> bytes:
        """The mean, the ranks, the core and the factors; ranks of 0 if the block is constant."""
        mean = float(values.mean())
        A = values - mean
        ranks = _tucker_ranks(A, tolerance)
        if not all(ranks):
            return MEAN.pack(mean) + bytes(A.ndim)
        tensorly = peer(self.name, "tensorly.decomposition")
        core, factors = tensorly.tucker(A, ranks, n_iter_max=ITERATIONS, init="svd")
        return b"".join([MEAN.pack(mean), *map(varint, ranks), *map(_float32, [core, *factors])])

    def block_values(self, data: bytes, shape: tuple[int, ...]) -> Float64:
        """See `Factors`."""
        (mean,) = MEAN.unpack_from(data)
        ranks, at = _numbers(data[MEAN.size :], len(shape))
        if not all(ranks):
            return np.full(shape, mean)
        core, *factors = _arrays(data, MEAN.size + at, [tuple(ranks), *zip(shape, ranks, strict=True)])
        for axis, factor in enumerate(factors):
            core = np.moveaxis(np.tensordot(core, factor, (axis, 1)), -1, axis)
        return np.asarray(core + mean)


def _split(A: Float64, left_out: float) -> tuple[Float64, Float64]:
    """Orthonormal columns U and U^T A, what is left out having at most this sum of squares."""
    U, sigma, Vt = np.linalg.svd(A, full_matrices=False)
    rank = max(1, _kept(np.square(sigma), left_out))
    return U[:, :rank], sigma[:rank, None] * Vt[:rank]


def _tucker_ranks(A: Float64, tolerance: float) -> list[int]:
    """By the singular values of each unfolding; all 0 where there is nothing."""
    left_out = tolerance * tolerance * A.size / A.ndim
    ranks = []
    for axis in range(A.ndim):
        unfolded = np.moveaxis(A, axis, 0).reshape(A.shape[axis], -1)
        energies = np.linalg.eigvalsh(unfolded @ unfolded.T)[::-1]
        ranks.append(_kept(np.maximum(energies, 0), left_out))
    return _mutual([max(1, rank) for rank in ranks]) if any(ranks) else ranks


def _mutual(ranks: list[int]) -> list[int]:
    """Each at most the product of the others: an unfolding of the core has no more directions."""
    size = prod(ranks)
    for axis, rank in enumerate(ranks):
        if rank * rank > size:
            ranks = [*ranks[:axis], size // rank, *ranks[axis + 1 :]]
            size = prod(ranks)
    return ranks


def _kept(energies: Float64, left_out: float) -> int:
    """How many of falling energies remain, if the last ones may add up to this."""
    tails = np.cumsum(energies[::-1])[::-1]
    return int((tails > left_out).sum())


def _float32(values: Float64) -> bytes:
    return values.astype("<f4").tobytes()


def _numbers(data: bytes, count: int) -> tuple[list[int], int]:
    """So many, and where they end."""
    numbers, at = [], 0
    for _ in range(count):
        number, at = read_varint(data, at)
        numbers.append(number)
    return numbers, at


def _arrays(data: bytes, at: int, shapes: Sequence[tuple[int, ...]]) -> list[Float64]:
    """Arrays of float32 one after the other, in float64."""
    flat = np.frombuffer(data, "<f4", offset=at).astype(np.float64)
    stops = np.cumsum([prod(shape) for shape in shapes])[:-1]
    return [part.reshape(shape) for part, shape in zip(np.split(flat, stops), shapes, strict=True)]
