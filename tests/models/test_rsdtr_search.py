"""The search for small factorisations: always within the error, and as small as trying everything."""

from __future__ import annotations

from itertools import permutations
from math import prod

import pytest
import torch
from safetensors.torch import load_file
from test_rsdtr_rings import RESNETS, decaying, normal

from models.convolutions import Geometry
from models.errors import InvalidConfig, NonFinite
from models.rsdtr.candidates import RingConfig, fewest_macs, paper_ring, smallest
from models.rsdtr.cuts import divisors
from models.rsdtr.low_rank import LowRankShape, low_rank_kernel, low_rank_of, low_rank_shapes
from models.rsdtr.ring import RingShape
from models.rsdtr.search import RingSearch, groupings, ring_of
from models.rsdtr.spectra import Spectra
from models.rsdtr.steps import cost_of, nominal

SHAPES = [
    (1, 8, 6, 5),
    (1, 12, 10, 3, 3),
    (1, 9, 16, 3, 5),
    (2, 5, 7, 3, 2),
    (1, 8, 8, 3, 3, 3),
    (1, 6, 5, 1, 3, 3),
]


def geometry(shape: tuple[int, ...]) -> Geometry:
    groups, outputs, inputs, *kernel = shape
    axes = len(kernel)
    return Geometry(
        inputs * groups, outputs * groups, tuple(kernel), (1,) * axes, ((1, 1),) * axes, (1,) * axes, groups
    )


def kernel_like(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return decaying(*shape, seed=seed).flatten(0, 1)


def error_of(shape: RingShape | LowRankShape, spectra: Spectra) -> float:
    if isinstance(shape, RingShape):
        return ring_of(spectra, shape).relative_error(spectra.arrays)
    made = low_rank_kernel(shape, *low_rank_of(spectra, shape))
    return float((made - spectra.arrays).norm() / spectra.arrays.norm())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("eps", [0.05, 0.3, 0.6])
@pytest.mark.parametrize("modes", [(3,), (4,), (5,), (3, 4, 5)])
def test_the_error_is_never_above_what_was_asked(
    shape: tuple[int, ...], eps: float, modes: tuple[int, ...]
) -> None:
    arrays = decaying(*shape)
    spectra = Spectra(arrays, eps)
    search = RingSearch(spectra, 10**9, lambda _: True)
    for grouping in groupings(shape[1:]):
        if len(grouping) in modes:
            search.over(grouping)
    if search.found is not None:
        assert error_of(search.found, spectra) <= eps
        assert ring_of(spectra, search.found).storage == shape[0] * search.limit
    else:
        assert not any(len(grouping) in modes for grouping in groupings(shape[1:]))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("eps", [0.05, 0.3, 0.6])
def test_plain_svds_are_within_the_error_and_of_the_smallest_rank(shape: tuple[int, ...], eps: float) -> None:
    spectra = Spectra(decaying(*shape), eps)
    for found in low_rank_shapes(spectra):
        assert error_of(found, spectra) <= eps
        if found.rank > 1:
            assert error_of(LowRankShape(found.sizes, found.late, found.rank - 1), spectra) > eps


def exhaustive(spectra: Spectra, modes: tuple[tuple[int, ...], ...]) -> int:
    """The least storage over all orders and divisors, by SVDs and without bounds."""
    best, d = 10**9, len(modes)
    for order in permutations(modes):
        axes = [axis for mode in order for axis in mode]
        sizes = [prod(spectra.sizes[axis] for axis in mode) for mode in order]
        array = spectra.arrays[0].permute(axes).reshape(sizes)
        first, _ = svd_rank(array.reshape(sizes[0], -1), spectra.allowed / (d - 1))
        for start in divisors(first):
            storage, used = sizes[0] * first, 0.0
            u, s, vh = torch.linalg.svd(array.reshape(sizes[0], -1), full_matrices=False)
            used += float(s[first:].square().sum())
            largest = u[:, :first].abs().argmax(0)
            signs = u[:, :first].gather(0, largest[None])[0].sign()
            rest = (signs * s[:first])[:, None] * vh[:first]
            rest, left = rest.reshape(start, first // start, -1).permute(1, 2, 0), first // start
            for k in range(1, d - 1):
                matrix = rest.reshape(left * sizes[k], -1)
                rank, rest = svd_rank(matrix, (spectra.allowed - used) / (d - 1 - k))
                used += float(matrix.norm() ** 2 - rest.norm() ** 2)
                storage, left = storage + left * sizes[k] * rank, rank
            best = min(best, storage + left * sizes[-1] * start)
    return best


def svd_rank(matrix: torch.Tensor, allowed: float) -> tuple[int, torch.Tensor]:
    _, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    rank = next(r for r in range(1, len(s) + 1) if float(s[r:].square().sum()) <= allowed)
    return rank, s[:rank, None] * vh[:rank]


@pytest.mark.parametrize("shape", [(1, 7, 6, 3), (1, 8, 6, 3, 3), (1, 6, 6, 2, 3, 2)])
@pytest.mark.parametrize("eps", [0.2, 0.5])
def test_bounds_give_nothing_away(shape: tuple[int, ...], eps: float) -> None:
    spectra = Spectra(decaying(*shape), eps)
    for modes in groupings(shape[1:]):
        search = RingSearch(spectra, 10**9, lambda _: True)
        search.over(modes)
        assert search.limit == exhaustive(spectra, modes)


def test_groupings_hold_every_axis_once_from_one_spatial_mode_to_an_axis_each() -> None:
    assert groupings((4, 5, 3)) == [((0,), (1,), (2,))]
    assert groupings((4, 5, 3, 3)) == [((0,), (1,), (2, 3)), ((0,), (1,), (2,), (3,))]
    assert groupings((4, 5, 3, 3, 3)) == [
        ((0,), (1,), (2, 3, 4)),
        ((0,), (1,), (2,), (3, 4)),
        ((0,), (1,), (2,), (3,), (4,)),
    ]
    assert groupings((4, 5, 1, 3, 3)) == [((0,), (1,), (2, 3, 4)), ((0,), (1,), (2, 3), (4,))]
    assert groupings((4, 5, 1, 1)) == []


@pytest.mark.parametrize("shape", SHAPES)
def test_the_smallest_has_less_storage_and_no_more_macs_than_dense(shape: tuple[int, ...]) -> None:
    layer, kernel = geometry(shape), kernel_like(shape)
    sides = nominal(layer)
    for eps in (0.1, 0.4, 0.7):
        found, spectra = smallest(kernel, layer, RingConfig(eps))
        if found is None:
            continue
        assert error_of(found, spectra) <= eps
        assert found.storage < prod(layer.block_shape)
        assert macs_of(found, layer, sides) <= layer.macs(sides)


@pytest.mark.parametrize("shape", [(1, 12, 10, 3, 3), (1, 8, 8, 3, 3, 3)])
def test_the_smallest_is_smaller_than_the_papers(shape: tuple[int, ...]) -> None:
    layer, kernel = geometry(shape), kernel_like(shape)
    for eps in (0.4, 0.6):
        found, _ = smallest(kernel, layer, RingConfig(eps))
        assert found is not None
        assert found.storage < paper_ring(kernel, layer, eps).storage


@pytest.mark.skipif(not RESNETS.is_dir(), reason="the pretrained networks of ../shared are absent")
@pytest.mark.parametrize(
    ("eps", "most", "fewer_macs"),
    [(0.3, 212_161, 1.05), (0.5, 0.82 * 130_402, 1.39), (0.7, 0.70 * 73_140, 2.97)],
)
def test_pretrained_kernels_are_within_the_error_and_smaller_than_the_papers(
    eps: float, most: float, fewer_macs: float
) -> None:
    """Against the paper's code on ResNet-20: numbers of its kernels, and its ratio of MACs or better."""
    weights = load_file(RESNETS / "resnet20.safetensors")
    storage = dense_macs = macs = 0
    for name, kernel in weights.items():
        if not (name.startswith("layer") and ".conv" in name):
            continue
        outputs, inputs = kernel.shape[:2]
        stride, side = outputs // inputs, 32 * 16 // inputs
        layer = Geometry(inputs, outputs, (3, 3), (stride, stride), ((1, 1), (1, 1)), (1, 1))
        found, spectra = smallest(kernel, layer, RingConfig(eps), (side, side))
        assert found is None or error_of(found, spectra) <= eps * (1 + 1e-6)
        dense = layer.macs((side, side))
        storage += kernel.numel() if found is None else found.storage
        dense_macs += dense
        macs += dense if found is None else macs_of(found, layer, (side, side))
    assert storage <= most
    assert dense_macs / macs >= fewer_macs


def macs_of(shape: RingShape | LowRankShape, layer: Geometry, sides: tuple[int, ...]) -> int:
    if isinstance(shape, RingShape):
        return fewest_macs(layer, shape, sides)
    return cost_of(layer, shape.steps(), sides).macs


def test_what_cannot_be_made_smaller_stays_dense() -> None:
    kernel = normal(6, 5, 3, 3)
    found, _ = smallest(kernel, geometry((1, 6, 5, 3, 3)), RingConfig(1e-3))
    assert found is None
    depthwise = normal(8, 1, 3, 3)
    assert smallest(depthwise, geometry((8, 1, 1, 3, 3)), RingConfig(1e-3))[0] is None


def test_a_zero_kernel_is_met_exactly() -> None:
    found, spectra = smallest(torch.zeros(6, 5, 3, 3), geometry((1, 6, 5, 3, 3)), RingConfig(0.3))
    assert found is not None
    assert error_of_zero(found, spectra) == 0


def error_of_zero(shape: RingShape | LowRankShape, spectra: Spectra) -> float:
    if isinstance(shape, RingShape):
        return ring_of(spectra, shape).relative_error(spectra.arrays)
    return float(low_rank_kernel(shape, *low_rank_of(spectra, shape)).norm())


def test_the_same_kernel_gives_the_same_bytes() -> None:
    kernel, layer = kernel_like((1, 12, 10, 3, 3)), geometry((1, 12, 10, 3, 3))
    config = RingConfig(0.4, low_rank=False)
    (one, here), (two, there) = (smallest(kernel, layer, config) for _ in range(2))
    assert one == two
    assert isinstance(one, RingShape)
    assert all(map(torch.equal, ring_of(here, one).cores, ring_of(there, one).cores))


def test_bad_settings_and_kernels_are_refused() -> None:
    with pytest.raises(InvalidConfig, match="eps"):
        RingConfig(eps=0)
    with pytest.raises(InvalidConfig, match="modes"):
        RingConfig(modes=(2,))
    with pytest.raises(InvalidConfig, match="modes"):
        RingConfig(modes=(), low_rank=False)
    with pytest.raises(NonFinite):
        smallest(torch.full((2, 2, 3), float("nan")), geometry((1, 2, 2, 3)), RingConfig())
