"""Modes, ranks and parameter counts of spectral tensor trains (Obukhov et al., arXiv:2103.04217).

A weight is a matrix of outputs by inputs. Its rows and columns are cut into modes n = (output modes, input
modes); R_k = min(r, product of the modes before, product of those behind), and the singular values stand on
the bond between the two sides. With one mode for each side the train is W = U Sigma V^T: SVDP.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import prod

from models.errors import InvalidConfig, InvalidShape
from models.sttp.frames import Frame


def prime_factors(n: int) -> tuple[int, ...]:
    """The prime factors of n >= 1, ascending, with repetition; none of 1."""
    if n < 1:
        raise InvalidShape(f"{n} has no prime factors")
    found, divisor = [], 2
    while divisor * divisor <= n:
        while n % divisor == 0:
            found.append(divisor)
            n //= divisor
        divisor += 1
    return (*found, n) if n > 1 else tuple(found)


def tt_ranks(modes: Sequence[int], rank: int) -> tuple[int, ...]:
    """R_0 ... R_D of a list of D modes: each the largest that can be, `rank` at most."""
    return tuple(min(rank, prod(modes[:k]), prod(modes[k:])) for k in range(len(modes) + 1))


def svdp_parameters(outputs: int, inputs: int, rank: int, *, constant: bool = False) -> int:
    """Degrees of freedom of U Sigma V^T: r(d_out + d_in) - r^2, and of SVDP-C less r(r + 1)/2."""
    r = min(rank, outputs, inputs)
    return r * (outputs + inputs) - r * r - (r * (r + 1) // 2 if constant else 0)


def sttp_parameters(
    output_modes: Sequence[int], input_modes: Sequence[int], rank: int, *, constant: bool = False
) -> int:
    """Eq. 9: sum R_{k-1} n_k R_k - sum R_k^2 over the inner bonds; of STTP-C less r(r + 1)/2."""
    modes = (*output_modes, *input_modes)
    ranks = tt_ranks(modes, rank)
    cores = sum(left * n * right for (left, right), n in zip(pairwise(ranks), modes, strict=True))
    r = ranks[len(output_modes)]
    return cores - sum(inner**2 for inner in ranks[1:-1]) - (r * (r + 1) // 2 if constant else 0)


@dataclass(frozen=True)
class Chain:
    """One side of a train: modes from the outer end to the singular values, and the ranks behind each.

    `reduced`: the last frame is in St_U too. The modes at the outer end whose frames would be square, and so
    have no parameters, are one mode with the next.
    """

    modes: tuple[int, ...]
    ranks: tuple[int, ...]
    reduced: bool = False

    @cached_property
    def frames(self) -> tuple[Frame, ...]:
        """The frames (R_{k-1} n_k) x R_k: in St_U, but for the last one where it is not reduced."""
        last = len(self.modes) - 1
        sizes = zip((1, *self.ranks[:-1]), self.modes, self.ranks, strict=True)
        return tuple(
            Frame(before * n, after, self.reduced or k < last) for k, (before, n, after) in enumerate(sizes)
        )

    @property
    def parameters(self) -> int:
        """Degrees of freedom of all frames."""
        return sum(frame.parameters for frame in self.frames)

    @classmethod
    def of(cls, modes: Sequence[int], ranks: Sequence[int], *, reduced: bool) -> Chain:
        """The chain of modes and the ranks behind each, with the square frames' modes merged."""
        square = 0
        while square < len(modes) - 1 and ranks[square] == prod(modes[: square + 1]):
            square += 1
        merged = prod(modes[: square + 1])
        return cls((merged, *modes[square + 1 :]), tuple(ranks[square:]), reduced)


@dataclass(frozen=True)
class Layout:
    """A matrix of outputs by inputs as a spectral train of rank `rank` at most; `constant` for Sigma = I.

    Raises InvalidConfig for a rank below 1 and InvalidShape for a mode below 1.
    """

    output_modes: tuple[int, ...]
    input_modes: tuple[int, ...]
    rank: int
    constant: bool = False

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise InvalidConfig("rank", self.rank, "at least 1")
        if not self.output_modes or not self.input_modes or min(self.output_modes + self.input_modes) < 1:
            raise InvalidShape(f"modes {self.output_modes} and {self.input_modes}: each must be at least 1")

    @property
    def outputs(self) -> int:
        """Rows of the matrix."""
        return prod(self.output_modes)

    @property
    def inputs(self) -> int:
        """Columns of the matrix."""
        return prod(self.input_modes)

    @cached_property
    def ranks(self) -> tuple[int, ...]:
        """R_0 ... R_D."""
        return tt_ranks((*self.output_modes, *self.input_modes), self.rank)

    @property
    def width(self) -> int:
        """How many singular values there are."""
        return self.ranks[len(self.output_modes)]

    @cached_property
    def output_chain(self) -> Chain:
        """The frames whose product is U."""
        behind = self.ranks[1 : len(self.output_modes) + 1]
        return Chain.of(self.output_modes, behind, reduced=self.constant)

    @cached_property
    def input_chain(self) -> Chain:
        """The frames whose product is V, from the last mode inwards."""
        behind = self.ranks[len(self.output_modes) : -1][::-1]
        return Chain.of(self.input_modes[::-1], behind, reduced=False)

    @property
    def parameters(self) -> int:
        """Degrees of freedom: of all frames, and the learned singular values."""
        learned = 0 if self.constant else self.width
        return self.output_chain.parameters + self.input_chain.parameters + learned


def svdp_layout(outputs: int, inputs: int, rank: int, *, constant: bool = False) -> Layout:
    """One mode for each side."""
    return Layout((outputs,), (inputs,), rank, constant)


def sttp_layout(
    outputs: int,
    inputs: int,
    kernel: Sequence[int],
    rank: int,
    *,
    constant: bool = False,
    flatten_kernel: bool = True,
) -> Layout:
    """Prime factors of both channel numbers; the kernel behind them, as one mode or as its prime factors.

    `inputs` are channels: the matrix has inputs * prod(kernel) columns.
    """
    whole = prod(kernel)
    spatial = (whole,) if flatten_kernel else sum(map(prime_factors, kernel), ())
    modes = (*prime_factors(inputs), *spatial) if whole > 1 else prime_factors(inputs)
    return Layout(prime_factors(outputs) or (1,), modes or (1,), rank, constant)
