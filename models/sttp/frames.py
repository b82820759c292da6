"""Orthonormal frames in St(d, r) as products of Householder reflections, in compact WY form.

Q = H_1 ... H_r I_{d x r} with H_i = I - 2 h_i h_i^T / |h_i|^2, where h_i has zeros above row i and 1 there
(LAPACK's layout). With V = [h_1 ... h_r], Q = I_{d x r} - V T (V_{1:r,:})^T, where
T^{-1} = striu(V^T V) + diag(|h_i|^2 / 2) (Schreiber & Van Loan, SIAM J. Sci. Stat. Comput. 10, 1989; Joffrain
et al., ACM TOMS 32, 2006): one Gram product, a triangular inverse and two products for any number of frames.

A reduced frame, St_U(d, r), has zeros in rows 2 to r of the vectors as well: the leading block of Q is then
upper triangular (Obukhov et al., arXiv:2103.04217). Packed, a frame is its vectors' free entries
only: the triangle row by row, which a reduced frame has not, then the (d - r) x r block below.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from models.errors import InvalidShape
from models.sttp.triangles import inverted

PADDING = 1.5
"""How much more work, at most, frames of different sizes may take together than each by itself."""


@dataclass(frozen=True)
class Frame:
    """A frame's size: `columns` orthonormal vectors of `rows` entries; `reduced` for St_U.

    Raises InvalidShape for more columns than rows, or none.
    """

    rows: int
    columns: int
    reduced: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.columns <= self.rows:
            raise InvalidShape(
                f"{self.columns} orthonormal vectors of {self.rows} entries: there are 1 to {self.rows}"
            )

    @property
    def triangle(self) -> int:
        """Free entries above row r."""
        return 0 if self.reduced else self.columns * (self.columns - 1) // 2

    @property
    def below(self) -> int:
        """Rows from r on."""
        return self.rows - self.columns

    @property
    def parameters(self) -> int:
        """Degrees of freedom: dr - r(r + 1)/2, and (d - r)r of a reduced frame."""
        return self.triangle + self.below * self.columns


def frames(packed: Tensor, shapes: Sequence[Frame]) -> list[Tensor]:
    """Frames (..., d_k, r_k) of their packed entries (..., sum of parameters), one frame's after another's.

    Frames of like size are computed together, smaller ones padded. From half precision they are computed, and
    returned, in float32, and are as orthonormal. Raises InvalidShape for another number of entries.
    """
    entries = sum(shape.parameters for shape in shapes)
    if packed.shape[-1] != entries:
        raise InvalidShape(f"the frames {list(shapes)} have {entries} entries, not {packed.shape[-1]}")
    if packed.dtype in (torch.float16, torch.bfloat16):
        packed = packed.float()
    parts = torch.split(packed, [shape.parameters for shape in shapes], dim=-1)
    made: dict[int, Tensor] = {}
    with full_precision(packed):
        for batch in batches(shapes):
            made |= dict(
                zip(batch, _together([parts[k] for k in batch], [shapes[k] for k in batch]), strict=True)
            )
    return [made[k] for k in range(len(shapes))]


def frame(packed: Tensor, shape: Frame) -> Tensor:
    """The frame (..., d, r) of its packed entries (..., parameters)."""
    return frames(packed, [shape])[0]


def reflectors(given: Tensor, *, reduced: bool = False) -> tuple[Tensor, Tensor]:
    """(packed, signs): orthonormal columns `given` (..., d, r) are `frame(packed)` times signs (..., r).

    The leading block of a reduced frame must be upper triangular. No entry is above 1 in magnitude (geqrf).
    """
    shape = Frame(given.shape[-2], given.shape[-1], reduced)
    vectors = torch.geqrf(given)[0]
    packed = vectors[..., shape.columns :, :].flatten(-2)
    if not reduced:
        row, column = torch.tril_indices(shape.columns, shape.columns, -1, device=given.device)
        packed = torch.cat([vectors[..., row, column], packed], dim=-1)
    along = (frame(packed, shape) * given).sum(dim=-2)
    return packed, torch.where(along < 0, -1.0, 1.0).to(given.dtype)


def batches(shapes: Sequence[Frame]) -> list[tuple[int, ...]]:
    """Which frames are computed together: neighbours in size, as far as `PADDING` allows."""
    if len(shapes) == 1:
        return [(0,)]
    order = sorted(range(len(shapes)), key=lambda k: (shapes[k].columns, shapes[k].rows, k))
    found: list[tuple[int, ...]] = []
    for k in order:
        if found and _padded_work([shapes[i] for i in (*found[-1], k)]) <= PADDING:
            found[-1] = (*found[-1], k)
        else:
            found.append((k,))
    return found


def full_precision(like: Tensor) -> AbstractContextManager[None]:
    """A context without autocast, which would multiply in half precision and lose orthogonality."""
    kind = like.device.type
    cast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.autocast(kind, enabled=False) if cast else nullcontext()


def _padded_work(shapes: Sequence[Frame]) -> float:
    """The work of a padded batch over that of its frames, as d r^2."""
    own = sum(shape.rows * shape.columns**2 for shape in shapes)
    below, columns = max(shape.below for shape in shapes), max(shape.columns for shape in shapes)
    return len(shapes) * (below + columns) * columns**2 / own


def _together(parts: Sequence[Tensor], shapes: Sequence[Frame]) -> list[Tensor]:
    """Frames of one batch. A column that a smaller frame is filled up with reflects a row of zeros."""
    columns = max(shape.columns for shape in shapes)
    flat = [part.reshape(prod(part.shape[:-1]), part.shape[-1]) for part in parts]
    made = _compact_wy(flat, shapes).reshape(len(shapes), *parts[0].shape[:-1], -1, columns)
    return [_cropped(whole, shape, columns) for whole, shape in zip(made, shapes, strict=True)]


def _unpacked(parts: Sequence[Tensor], shapes: Sequence[Frame]) -> tuple[Tensor, Tensor]:
    """L (b, r, r) and B (b, d - r, r) of packed entries (n, parameters), all filled up to one size."""
    return _tops(parts, shapes), _bottoms(parts, shapes)


def _tops(parts: Sequence[Tensor], shapes: Sequence[Frame]) -> Tensor:
    """The first r rows."""
    columns = max(shape.columns for shape in shapes)
    return _one_after_another([_top(*one, columns) for one in zip(parts, shapes, strict=True)])


def _bottoms(parts: Sequence[Tensor], shapes: Sequence[Frame]) -> Tensor:
    """The others."""
    below, columns = max(shape.below for shape in shapes), max(shape.columns for shape in shapes)
    return _one_after_another([_bottom(*one, below, columns) for one in zip(parts, shapes, strict=True)])


def _one_after_another(arrays: Sequence[Tensor]) -> Tensor:
    return arrays[0] if len(arrays) == 1 else torch.cat(list(arrays))


def _top(part: Tensor, shape: Frame, columns: int) -> Tensor:
    r = shape.columns
    top = part.new_zeros(len(part), r * r)
    if shape.triangle:
        top.index_copy_(-1, _places(r, part.device), part[:, : shape.triangle])
    top = top.reshape(-1, r, r)
    fill = columns - r
    return torch.nn.functional.pad(top, (0, fill, 0, fill)) if fill else top


def _bottom(part: Tensor, shape: Frame, below: int, columns: int) -> Tensor:
    block = part[:, shape.triangle :].reshape(len(part), shape.below, shape.columns)
    fill, rows = columns - shape.columns, below - shape.below
    return torch.nn.functional.pad(block, (0, fill, 0, rows)) if fill or rows else block


def _packed(top: Tensor, bottom: Tensor, shape: Frame) -> Tensor:
    """The entries (n, parameters) of L and B that are free."""
    r = shape.columns
    block = bottom[:, : shape.below, :r].flatten(1)
    if not shape.triangle:
        return block
    triangle = top[:, :r, :r].reshape(len(top), r * r).index_select(1, _places(r, top.device))
    return torch.cat([triangle, block], dim=1)


def _places(columns: int, device: torch.device) -> Tensor:
    """Of the entries under the diagonal of a square block, row by row."""
    places = torch.tril_indices(columns, columns, -1, device=device)
    return places[0].mul(columns).add(places[1])


def _cropped(whole: Tensor, shape: Frame, columns: int) -> Tensor:
    """A frame without what it was filled up with."""
    r = shape.columns
    if r == columns:
        return whole if whole.shape[-2] == shape.rows else whole[..., : shape.rows, :]
    return torch.cat([whole[..., :r, :r], whole[..., columns : columns + shape.below, :r]], dim=-2)


def _compact_wy(parts: Sequence[Tensor], shapes: Sequence[Frame]) -> Tensor:
    """Q (b, d, r) of packed entries; compilers take the formula itself and derive it."""
    if not torch.compiler.is_compiling():
        made: Tensor = _CompactWY.apply(tuple(shapes), *parts)[0]  # type: ignore[no-untyped-call]
        return made
    top, bottom = _unpacked(parts, shapes)
    return _frame_of(top, bottom, _factored(top, bottom)[0])


class _CompactWY(torch.autograd.Function):
    """Packed entries of V = [I + L; B] to (Q, L, X, -T), with X = -T V_{1:r}^T; the last three are kept.

    Of G = dL/dQ and S = -T^T V^T G, with A = S X^T: dL/dV = V (triu(A) + striu(A)^T) + G X^T, and S^T in the
    first r rows. That is a product less than autograd's, and no pass over V besides products.
    """

    @staticmethod
    def forward(shapes: tuple[Frame, ...], *parts: Tensor) -> tuple[Tensor, ...]:
        top, bottom = _unpacked(parts, shapes)
        factor, triangle = _factored(top, bottom)
        return _frame_of(top, bottom, factor), top, factor, triangle

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        (ctx.shapes, *parts), (_, *kept) = inputs, output
        ctx.mark_non_differentiable(*kept)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*kept, *parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        shapes, (top, factor, triangle, *parts) = ctx.shapes, ctx.saved_tensors
        if gradient is None:
            return None, *(None for _ in parts)
        with full_precision(gradient):
            bottom = _bottoms(parts, shapes)
            if torch.is_grad_enabled():
                top = _tops(parts, shapes)
                factor, triangle = _factored(top, bottom)
            found = _gradient(top, bottom, factor, triangle, gradient)
        of_tops, of_bottoms = (torch.split(each, len(parts[0])) for each in found)
        return None, *map(_packed, of_tops, of_bottoms, shapes)


def _factored(top: Tensor, bottom: Tensor) -> tuple[Tensor, Tensor]:
    """(X, -T), where T^{-1} = striu(V^T V) + diag(|h_i|^2 / 2) and V^T V = I + L + L^T + L^T L + B^T B.

    The ones of I are added last: squares of small entries are lost beside them.
    """
    gram = torch.baddbmm(top.mT, top.mT, top, beta=-1, alpha=-1).baddbmm_(bottom.mT, bottom, alpha=-1)
    inverse = torch.triu(gram)
    inverse.diagonal(dim1=-2, dim2=-1).sub_(1).mul_(0.5)
    triangle = inverted(inverse)
    return torch.baddbmm(triangle, triangle, top.mT), triangle


def _frame_of(top: Tensor, bottom: Tensor, factor: Tensor) -> Tensor:
    """Q = I + V X."""
    first = torch.baddbmm(factor, top, factor)
    first.diagonal(dim1=-2, dim2=-1).add_(1)
    return torch.cat([first, bottom @ factor], dim=-2)


def _gradient(
    top: Tensor, bottom: Tensor, factor: Tensor, triangle: Tensor, gradient: Tensor
) -> tuple[Tensor, Tensor]:
    """dL/dL and dL/dB of dL/dQ."""
    first, others = torch.split(gradient, [top.shape[-1], bottom.shape[-2]], dim=-2)
    solved = triangle.mT @ torch.baddbmm(first, top.mT, first).baddbmm_(bottom.mT, others)
    upper = (solved @ factor.mT).triu_()
    symmetric = upper + torch.triu(upper, 1).mT
    of_top = (symmetric + solved.mT).baddbmm_(top, symmetric).baddbmm_(first, factor.mT)
    return of_top, (bottom @ symmetric).baddbmm_(others, factor.mT)
