"""Orthonormal frames against LAPACK's product of reflections."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.errors import InvalidShape
from models.sttp.frames import Frame, batches, frame, frames, reflectors

SIZES = ((1, 1), (5, 1), (4, 4), (7, 3), (64, 16), (33, 32))


def _packed(
    shapes: list[Frame], *lead: int, scale: float = 1.0, dtype: torch.dtype = torch.float64
) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape.rows for shape in shapes))
    entries = sum(shape.parameters for shape in shapes)
    return (scale * torch.randn(*lead, entries, generator=generator, dtype=torch.float64)).to(dtype)


def _product(packed: Tensor, shape: Frame) -> Tensor:
    """The frame by LAPACK's orgqr, its vectors filled in entry by entry."""
    h = torch.eye(shape.rows, shape.columns, dtype=packed.dtype)
    at = 0
    for i in range(1, 0 if shape.reduced else shape.columns):
        for j in range(i):
            h = h.index_put((torch.tensor(i), torch.tensor(j)), packed[at])
            at += 1
    block = packed[at:].reshape(-1, shape.columns)
    h = torch.cat([h[: shape.columns], block])
    return torch.linalg.householder_product(h, 2 / h.square().sum(dim=0))


@pytest.mark.parametrize("reduced", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_frames_and_their_gradients_are_those_of_the_householder_product(
    size: tuple[int, int], reduced: bool
) -> None:
    shape = Frame(*size, reduced)
    packed = _packed([shape], scale=0.5).requires_grad_()
    weights = torch.randn(*size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ours, theirs = frame(packed, shape), _product(packed, shape)
    assert (ours - theirs).abs().max() <= 1e-14
    if packed.numel():
        (gradient,) = torch.autograd.grad((ours * weights).sum(), packed)
        (reference,) = torch.autograd.grad((theirs * weights).sum(), packed)
        assert (gradient - reference).abs().max() <= 1e-13 * max(1.0, float(reference.abs().max()))


def test_degrees_of_freedom_are_those_of_the_manifolds() -> None:
    for d, r in SIZES:
        assert Frame(d, r).parameters == d * r - r * (r + 1) // 2
        assert Frame(d, r, reduced=True).parameters == (d - r) * r
    assert Frame(6, 6, reduced=True).parameters == 0
    assert torch.equal(frame(torch.zeros(0), Frame(3, 3, reduced=True)), -torch.eye(3))


def test_the_leading_block_of_a_reduced_frame_is_upper_triangular() -> None:
    shape = Frame(12, 5, reduced=True)
    assert torch.equal(frame(_packed([shape]), shape)[:5].tril(-1), torch.zeros(5, 5))


def test_frames_of_different_sizes_computed_together_are_those_computed_one_by_one() -> None:
    shapes = [Frame(18, 16, True), Frame(32, 16), Frame(32, 15, True), Frame(3, 2), Frame(32, 16, True)]
    assert max(len(batch) for batch in batches(shapes)) >= 4
    packed = _packed(shapes, 2, 3)
    parts = packed.split([shape.parameters for shape in shapes], dim=-1)
    for made, part, shape in zip(frames(packed, shapes), parts, shapes, strict=True):
        assert made.shape == (2, 3, shape.rows, shape.columns)
        for i in range(2):
            for j in range(3):
                assert (made[i, j] - _product(part[i, j], shape)).abs().max() <= 1e-14


def test_first_and_second_derivatives_of_padded_batches_are_those_of_the_definition() -> None:
    shapes = [Frame(6, 4), Frame(7, 4, True), Frame(6, 3)]
    assert len(batches(shapes)) == 1
    packed = (0.5 * _packed(shapes)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: tuple(frames(x, shapes)), packed)
    assert torch.autograd.gradgradcheck(lambda x: tuple(frames(x, shapes)), packed)


def test_what_compilers_see_is_the_same_map(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = [Frame(7, 3), Frame(6, 2)]
    packed = _packed(shapes, 2).requires_grad_()
    ours = frames(packed, shapes)
    (gradient,) = torch.autograd.grad(sum(q.sum() for q in ours), packed)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    theirs = frames(packed, shapes)
    (reference,) = torch.autograd.grad(sum(q.sum() for q in theirs), packed)
    assert all((one - other).abs().max() <= 1e-14 for one, other in zip(ours, theirs, strict=True))
    assert (gradient - reference).abs().max() <= 1e-13


def test_batches_take_every_frame_once_and_pad_little() -> None:
    shapes = [Frame(4608, 64), *[Frame(128, 64, True)] * 5, Frame(72, 64, True), Frame(9, 9)]
    found = batches(shapes)
    assert sorted(k for batch in found for k in batch) == list(range(len(shapes)))
    assert sorted(map(len, found)) == [1, 1, 6]


@pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 1e-14), (torch.float32, 2e-6)])
def test_frames_are_orthonormal_whatever_their_entries(dtype: torch.dtype, most: float) -> None:
    shapes = [Frame(4608, 32), Frame(128, 64, True), Frame(64, 64)]
    for scale in (0.0, 1e-4, 1e-2, 1.0, 100.0):
        for made in frames(_packed(shapes, scale=scale, dtype=dtype), shapes):
            gram = made.double().mT @ made.double()
            assert (gram - torch.eye(gram.shape[-1], dtype=torch.float64)).abs().max() <= most


@pytest.mark.parametrize(("dtype", "change"), [(torch.float16, 3e-3), (torch.bfloat16, 3e-2)])
def test_frames_of_rounded_entries_are_as_orthonormal_and_near(dtype: torch.dtype, change: float) -> None:
    shape = Frame(128, 32)
    packed = _packed([shape], scale=0.1, dtype=torch.float32)
    made = frame(packed.to(dtype), shape)
    assert made.dtype == torch.float32
    assert (made.mT @ made - torch.eye(32)).abs().max() <= 5e-6
    assert 0 < (made - frame(packed, shape)).abs().max() <= change


def test_autocast_takes_no_digits() -> None:
    shape = Frame(64, 32)
    packed = _packed([shape], dtype=torch.float32).requires_grad_()
    toward = torch.linspace(-1, 1, 64 * 32).reshape(64, 32)
    (expected,) = torch.autograd.grad(frame(packed, shape), packed, toward)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made = frame(packed, shape)
        (gradient,) = torch.autograd.grad(made, packed, toward)
        assert torch.equal(gradient, expected)
    assert (made.mT @ made - torch.eye(32)).abs().max() <= 5e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_frames_stay_orthonormal_over_a_thousand_hard_steps(dtype: torch.dtype) -> None:
    shape = Frame(12, 5)
    packed = _packed([shape], dtype=dtype, scale=1e-4).requires_grad_()
    before = packed.detach().clone()
    target = torch.randn(shape.rows, shape.columns, generator=torch.Generator().manual_seed(2))
    optimiser = torch.optim.SGD([packed], lr=0.1, momentum=0.9)
    for step in range(1000):
        q = frame(packed, shape)
        if step % 50 == 0:
            assert (q.mT @ q - torch.eye(5)).abs().max() <= 5e-6
        optimiser.zero_grad()
        (q * target).sum().backward()
        optimiser.step()
    assert (packed - before).abs().max() > 0.3


@pytest.mark.parametrize("size", SIZES)
def test_a_frame_comes_back_from_its_reflectors_and_signs(size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(3)
    given = torch.linalg.qr(torch.randn(2, *size, generator=generator, dtype=torch.float64))[0]
    packed, signs = reflectors(given)
    assert packed.shape == (2, Frame(*size).parameters)
    assert packed.abs().max() <= 1 if packed.numel() else True
    assert (frame(packed, Frame(*size)) * signs[:, None] - given).abs().max() <= 1e-13


def test_a_reduced_frame_and_the_identity_come_back() -> None:
    shape = Frame(9, 4, reduced=True)
    given = frame(_packed([shape], scale=0.3), shape) * torch.tensor([1.0, -1.0, -1.0, 1.0])
    packed, signs = reflectors(given, reduced=True)
    assert packed.shape == (shape.parameters,)
    assert (frame(packed, shape) * signs - given).abs().max() <= 1e-14
    packed, signs = reflectors(torch.eye(6, 3, dtype=torch.float64))
    assert torch.equal(frame(packed, Frame(6, 3)) * signs, torch.eye(6, 3, dtype=torch.float64))


def test_what_is_no_frame_is_refused() -> None:
    for rows, columns in ((3, 4), (3, 0)):
        with pytest.raises(InvalidShape, match="orthonormal vectors"):
            Frame(rows, columns)
    with pytest.raises(InvalidShape, match="entries, not 4"):
        frame(torch.zeros(4), Frame(3, 2))
