"""Modes, ranks, counts, and weights as matrices."""

from __future__ import annotations

from math import prod

import pytest
import torch
from torch import nn

from benchmarks.sttp_counts import wide_resnet
from models.errors import InvalidConfig, InvalidShape
from models.sttp.shapes import (
    Layout,
    prime_factors,
    sttp_layout,
    sttp_parameters,
    svdp_parameters,
    tt_ranks,
)
from models.sttp.weights import WeightShape, rank_of_share, ranks_within, weight_shape

WRN_28_10 = {  # rank: (STTP, Z %, SVDP, Z %) of the official code
    8: (30_344, 0.209, 688_488, 2.012),
    16: (98_688, 0.396, 1_369_520, 3.877),
    32: (325_008, 1.016, 2_716_336, 7.567),
    64: (1_020_720, 2.922, 5_370_032, 14.836),
    128: (2_949_808, 8.206, 10_517_680, 28.936),
    256: (7_413_424, 20.433, 19_382_960, 53.219),
}


def _wide_resnet(depth: int, widening: int) -> tuple[list[WeightShape], int]:
    """The weights of a WRN, and its other numbers."""
    shapes, others = wide_resnet(depth, widening)
    return [WeightShape(shape) for shape in shapes], others


def _counts(weights: list[WeightShape], method: str, rank: int, *, constant: bool = False) -> int:
    return sum(weight.layout(method, rank, constant=constant).parameters for weight in weights)


@pytest.mark.parametrize(("rank", "official"), WRN_28_10.items())
def test_wrn_28_10_has_the_papers_counts_to_the_unit(
    rank: int, official: tuple[int, float, int, float]
) -> None:
    weights, others = _wide_resnet(28, 10)
    total = others + sum(prod(weight.shape) for weight in weights)
    assert (others, total) == (46_010, 36_507_242)
    found = [_counts(weights, method, rank) for method in ("sttp", "svdp")]
    sizes = [round(100 * (count + others) / total, 3) for count in found]
    assert (found[0], sizes[0], found[1], sizes[1]) == official


def test_wrn_16_8_has_the_papers_counts_to_the_unit() -> None:
    weights, others = _wide_resnet(16, 8)
    total = others + sum(prod(weight.shape) for weight in weights)
    assert total == 10_973_066
    assert [_counts(weights, method, 16) for method in ("sttp", "svdp")] == [43_376, 524_464]
    assert [_counts(weights, method, 64) for method in ("sttp", "svdp")] == [427_440, 2_032_048]
    assert [_counts(weights, method, 64, constant=True) for method in ("sttp", "svdp")] == [
        397_993,
        2_002_601,
    ]
    assert round(100 * (427_440 + others) / total, 3) == 4.068


def test_a_resnet_34_of_three_dimensions_is_counted_to_the_unit() -> None:
    shapes, inputs = [], 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for _ in range(blocks):
            shapes += [(width, inputs, 3, 3, 3), (width, width, 3, 3, 3)]
            shapes += [(width, inputs, 1, 1, 1)] if width != inputs else []
            inputs = width
    stem = 64 * 7**3
    weights = [WeightShape(shape) for shape in shapes]
    assert sum(prod(shape) for shape in shapes) + stem == 63_452_608
    counts = [stem + _counts(weights, "sttp", rank) for rank in (16, 32, 64, 128)]
    assert counts == [132_288, 391_616, 1_213_888, 3_651_008]


def test_frames_have_as_many_parameters_as_the_formulas() -> None:
    for outputs, inputs, kernel in (
        (64, 32, (3, 3)),
        (60, 30, (3, 3, 3)),
        (7, 5, ()),
        (1, 512, ()),
        (12, 1, (3, 3)),
        (96, 2, (1,)),
        (2, 3, (1, 1, 1)),
    ):
        for rank in (1, 2, 5, 16, 64, 1000):
            for constant in (False, True):
                for flat in (False, True):
                    layout = sttp_layout(
                        outputs, inputs, kernel, rank, constant=constant, flatten_kernel=flat
                    )
                    counted = sttp_parameters(
                        layout.output_modes, layout.input_modes, rank, constant=constant
                    )
                    assert layout.parameters == counted
                columns = inputs * prod(kernel)
                layout = WeightShape((outputs, columns)).layout("svdp", rank, constant=constant)
                assert layout.parameters == svdp_parameters(outputs, columns, rank, constant=constant)


def test_full_rank_has_as_many_parameters_as_the_matrix() -> None:
    for shape in ((16, 12), (5, 40), (1, 7)):
        for method in ("svdp", "sttp"):
            assert WeightShape(shape).layout(method, 10_000).parameters == prod(shape)


def test_a_kernel_of_27_voxels_as_one_mode_or_three() -> None:
    flat = sttp_layout(64, 32, (3, 3, 3), 64)
    cut = sttp_layout(64, 32, (3, 3, 3), 64, flatten_kernel=False)
    assert flat.input_modes == (2, 2, 2, 2, 2, 27)
    assert cut.input_modes == (2, 2, 2, 2, 2, 3, 3, 3)
    assert flat.parameters == cut.parameters
    assert flat.input_chain == cut.input_chain


def test_prime_factors_and_ranks() -> None:
    for n in (*range(1, 200), 509, 4608):
        assert prod(prime_factors(n)) == n
        assert all(prime_factors(p) == (p,) for p in prime_factors(n))
        assert list(prime_factors(n)) == sorted(prime_factors(n))
    assert tt_ranks((2, 2, 3, 4), 5) == (1, 2, 4, 4, 1)
    with pytest.raises(InvalidShape, match="0 has no prime"):
        prime_factors(0)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(6, 4),
        nn.Conv1d(6, 4, 3, groups=2),
        nn.Conv2d(6, 4, (3, 2)),
        nn.Conv3d(4, 4, 3, groups=4),
        nn.ConvTranspose1d(6, 4, 3, groups=2),
        nn.ConvTranspose3d(6, 4, (1, 2, 3), groups=2),
    ],
    ids=str,
)
def test_matrices_of_a_layer_are_outputs_by_inputs_and_lose_nothing(layer: nn.Module) -> None:
    weight, shape = layer.weight.detach(), weight_shape(layer)
    matrices = shape.matrices(weight)
    assert matrices.shape == (shape.groups, shape.outputs, shape.columns)
    assert torch.equal(shape.weight(matrices), weight)
    outputs = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    assert shape.outputs * shape.groups == outputs
    if shape.transposed:
        assert torch.equal(
            matrices[1, 0].reshape(shape.inputs, *shape.kernel), weight[shape.inputs : 2 * shape.inputs, 0]
        )


def test_transposed_and_grouped_weights_are_counted_by_their_matrices() -> None:
    there = weight_shape(nn.Conv3d(24, 16, 3))
    back = weight_shape(nn.ConvTranspose3d(24, 16, 3))
    grouped = weight_shape(nn.Conv3d(48, 32, 3, groups=2))
    for method in ("svdp", "sttp"):
        layouts = {shape.layout(method, 8) for shape in (there, back, grouped)}
        assert len(layouts) == 1


def test_ranks_by_share_and_by_budget() -> None:
    weight = WeightShape((64, 32, 3, 3))
    assert [rank_of_share(weight, share) for share in (1e-9, 0.25, 0.26, 1.0)] == [1, 16, 17, 64]
    assert all(rank_of_share(WeightShape((n, n)), r / n) == r for n in (7, 49, 64) for r in range(1, n + 1))
    weights = [weight, WeightShape((128, 64, 3, 3), groups=2), WeightShape((10, 512))]
    for method in ("svdp", "sttp"):

        def needed(ranks: list[int], method: str = method) -> int:
            return sum(w.groups * w.layout(method, r).parameters for w, r in zip(weights, ranks, strict=True))

        for parameters in (3_000, 10_000, 40_000):
            ranks = ranks_within(weights, parameters, method)
            share = max(rank / w.smaller for rank, w in zip(ranks, weights, strict=True))
            more = [min(w.smaller, int(share * w.smaller) + 1) for w in weights]
            assert needed(ranks) <= parameters < needed(more)
        assert ranks_within(weights, 10**6, method) == [64, 64, 10]
        assert ranks_within(weights, needed([1, 1, 1]), method) == [1, 1, 1]


def test_what_cannot_be_laid_out_is_refused() -> None:
    with pytest.raises(InvalidConfig, match="rank = 0"):
        WeightShape((4, 4)).layout("svdp", 0)
    with pytest.raises(InvalidConfig, match="method = 'tucker'"):
        WeightShape((4, 4)).layout("tucker", 2)
    with pytest.raises(InvalidConfig, match="rho"):
        rank_of_share(WeightShape((4, 4)), 1.5)
    with pytest.raises(InvalidConfig, match="parameters = 3: must be at least 7, which rank 1 has"):
        ranks_within([WeightShape((4, 4))], 3, "svdp")
    with pytest.raises(InvalidShape, match="BatchNorm1d has no spectral weight"):
        weight_shape(nn.BatchNorm1d(3))
    with pytest.raises(InvalidShape, match="modes"):
        Layout((), (2,), 2)
    with pytest.raises(InvalidShape, match="in 3 groups"):
        WeightShape((4, 4), groups=3)
