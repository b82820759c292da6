"""Singular values at their bound, and penalties that keep them from vanishing."""

from __future__ import annotations

import math

import pytest
import torch

from models.errors import InvalidConfig
from models.sttp.spectrum import SMALLEST, d_optimal, divergence, refuse_unknown, singular_values


def test_the_largest_singular_value_is_the_bound_to_the_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    for bound in (1.0, 2.0, 0.5):
        for _ in range(200):
            values = singular_values(torch.randn(2, 9, generator=generator), bound)
            assert values.abs().max() == bound


def test_the_d_optimal_penalty_is_minus_the_mean_logarithm() -> None:
    spectra = [torch.tensor([[4.0, -2.0]]), torch.tensor([[1.0, 0.0, 0.5]])]
    expected = -(math.log(1 / 2) + math.log(SMALLEST) + math.log(1 / 2)) / 5
    assert float(d_optimal(spectra)) == pytest.approx(expected)
    assert float(d_optimal([torch.ones(1, 4), -torch.ones(1, 3)])) == 0


def test_descending_the_d_optimal_penalty_raises_the_small_ones() -> None:
    learned = torch.tensor([[1.0, 0.1, 0.5]], requires_grad=True)
    (gradient,) = torch.autograd.grad(d_optimal([learned]), learned)
    assert gradient[0, 0] > 0
    assert gradient[0, 1] < gradient[0, 2] < 0


def test_the_divergence_penalty_is_its_formula_and_parts_equal_values() -> None:
    s = [1.0, 0.8, 0.5]
    well = sum((1 - x) ** 2 for x in s) / 3 / 0.01
    expected = well - (math.log(0.2) + math.log(0.3)) / 2
    assert float(divergence([torch.tensor([s])])) == pytest.approx(expected, rel=1e-5)
    assert float(divergence([torch.ones(1, 3)])) == pytest.approx(-math.log(SMALLEST))
    assert float(divergence([torch.ones(1, 1)])) == 0


def test_what_is_no_spectrum_is_refused() -> None:
    with pytest.raises(InvalidConfig, match="spectrum = 'flat'"):
        refuse_unknown("flat")
    for penalty in (d_optimal, divergence):
        with pytest.raises(InvalidConfig, match="learned in at least one layer"):
            penalty([])
