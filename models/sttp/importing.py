"""Spectral parameters of a given matrix: what `right_inverse` of the parametrizations computes.

The frames of both sides are those of the dominant singular vectors, weighted by their singular values; the
matrix between them, U^T W V, is the best for these frames, and its own singular values are Sigma. A matrix of
the layout comes back to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.sttp.products import multiplied, packed_chain, subspace
from models.sttp.shapes import Layout


@dataclass(frozen=True)
class Imported:
    """A matrix's parameters: packed frames of outputs and inputs, and its signed singular values (r).

    Of a constant spectrum, all have the magnitude that is nearest to those of the matrix.
    """

    outputs: Tensor
    inputs: Tensor
    sigma: Tensor


def imported(matrix: Tensor, layout: Layout) -> Imported:
    """The parameters of a matrix (outputs, inputs), in float64, by TT-SVD; those of its layout come back."""
    matrix = matrix.detach().to("cpu", torch.float64)
    r = layout.width
    u, sigma, vh = torch.linalg.svd(matrix, full_matrices=False)
    u, v, sigma = u[:, :r], vh[:r].mT, sigma[:r]
    rows = subspace(u * sigma, layout.output_chain)
    columns = subspace(v * sigma, layout.input_chain, backwards=True)
    left = multiplied(rows, layout.output_chain)
    right = multiplied(columns, layout.input_chain, backwards=True)
    p, values, qh = torch.linalg.svd((left.mT @ u * sigma) @ (v.mT @ right))
    rows[-1], columns[-1] = rows[-1] @ p, columns[-1] @ qh.mT
    outputs, turn = packed_chain(rows, layout.output_chain)
    if layout.constant:
        values, columns[-1] = values.mean().expand(r), columns[-1] @ turn.mT
    inputs, signs = packed_chain(columns, layout.input_chain, backwards=True)
    values = values * signs.diagonal()
    return Imported(outputs, inputs, values if layout.constant else values * turn.diagonal())
