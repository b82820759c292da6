"""Triangular matrices inverted by blocks, and frames wide enough to need several."""

from __future__ import annotations

import pytest
import torch

from models.sttp.frames import Frame, frame
from models.sttp.triangles import LEAF, SINGLE_LEAF, inverted


def _upper(count: int, columns: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(columns)
    made = torch.randn(count, columns, columns, dtype=torch.float64, generator=generator)
    return torch.triu(0.3 * made, 1) + torch.diag_embed(1 + made.diagonal(dim1=1, dim2=2).abs())


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("columns", [1, LEAF, LEAF + 1, 45, SINGLE_LEAF, SINGLE_LEAF + 3])
def test_the_inverse_by_blocks_is_the_inverse_and_upper_triangular(count: int, columns: int) -> None:
    upper = _upper(count, columns)
    found = inverted(upper)
    eye = torch.eye(columns, dtype=torch.float64)
    assert (upper @ found - eye).abs().max() <= 1e-12
    assert torch.equal(found.tril(-1), torch.zeros_like(found))


def test_gradients_go_through_all_levels() -> None:
    upper = _upper(2, 2 * LEAF + 1).requires_grad_()
    (gradient,) = torch.autograd.grad(inverted(upper)[:, 0].sum(), upper)
    (reference,) = torch.autograd.grad(torch.linalg.inv(upper)[:, 0].sum(), upper)
    assert (gradient - reference.triu()).abs().max() <= 1e-12 * float(reference.abs().max())


@pytest.mark.parametrize("count", [1, 2])
def test_wide_frames_are_the_householder_product_and_orthonormal_whatever_their_scale(count: int) -> None:
    shape = Frame(180, SINGLE_LEAF + 7)
    for scale in (1e-4, 1.0, 100.0):
        generator = torch.Generator().manual_seed(3)
        packed = torch.randn(count, shape.parameters, dtype=torch.float64, generator=generator) * scale
        vectors = torch.eye(shape.rows, shape.columns, dtype=torch.float64).repeat(count, 1, 1)
        row, column = torch.tril_indices(shape.columns, shape.columns, -1)
        vectors[:, row, column] = packed[:, : shape.triangle]
        vectors[:, shape.columns :] = packed[:, shape.triangle :].reshape(count, shape.below, shape.columns)
        expected = torch.linalg.householder_product(vectors, 2 / vectors.square().sum(1))
        made = frame(packed, shape)
        assert (made - expected).abs().max() <= 1e-14
        gram = made.mT @ made
        assert (gram - torch.eye(shape.columns, dtype=torch.float64)).abs().max() <= 1e-14
