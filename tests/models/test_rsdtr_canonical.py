"""Sums of rank-one terms: their factors, the layer, and what a search makes of them."""

import pytest
import torch
from torch import Tensor, nn

from models.compression.applying import compressed
from models.compression.budgets import BudgetConfig
from models.compression.curvature import curvature
from models.compression.files import from_bytes_, to_bytes
from models.compression.folding import fold_
from models.compression.planning import plan
from models.convolutions import geometry_of
from models.errors import InvalidShape
from models.rsdtr.candidates import RingConfig
from models.rsdtr.canonical import CanonicalPath, CanonicalShape, Factors
from models.rsdtr.canonical_layer import CanonicalConv, balanced
from models.rsdtr.layers import REBUILD, SEPARABLE
from models.rsdtr.metric import KernelMetric


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def factors_of(groups: int, sizes: tuple[int, ...], rank: int) -> Factors:
    a, b, c = (drawn(groups, size, rank, seed=size) for size in sizes)
    return a, b, c


def full(factors: Factors, sizes: tuple[int, ...]) -> Tensor:
    return torch.einsum("gor,gir,gkr->goik", *factors).reshape(len(factors[0]), *sizes)


def test_a_kernel_of_few_terms_is_found_again() -> None:
    sizes = (10, 8, 3, 3)
    kernel = full(factors_of(2, (10, 8, 9), 4), sizes)
    path = CanonicalPath(kernel)
    rank = path.rank(1e-4 * float(kernel.square().sum()))
    assert rank is not None
    assert rank <= 5
    found = full(path.factors(rank), sizes)
    assert float((found - kernel).square().sum()) == pytest.approx(path.error2(rank), abs=1e-9)


def test_ranks_grow_until_the_error_is_small_enough_or_nothing_is_gained() -> None:
    kernel = drawn(1, 12, 10, 3, 3)
    norm2 = float(kernel.square().sum())
    path = CanonicalPath(kernel)
    coarse, fine = path.rank(0.5 * norm2), path.rank(0.2 * norm2)
    assert coarse is not None
    assert fine is not None
    assert coarse < fine
    assert path.error2(coarse) <= 0.5 * norm2
    assert path.errors == sorted(path.errors, reverse=True)
    assert path.rank(1e-9 * norm2) is None
    assert CanonicalShape(path.sizes, path.ranks[-1]).storage < kernel.numel()
    with pytest.raises(InvalidShape, match="none of those tried"):
        CanonicalPath(kernel).factors(10**4)


def test_the_same_kernel_gives_the_same_factors_however_they_are_asked_for() -> None:
    kernel = drawn(1, 12, 10, 3, 3)
    asked = CanonicalPath(kernel)
    rank = asked.rank(0.4 * float(kernel.square().sum()))
    assert rank is not None
    first = [factor.clone() for factor in asked.factors(rank)]
    again = CanonicalPath(kernel).factors(rank)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


LAYERS = {
    "2-D": nn.Conv2d(6, 8, 3, padding=1),
    "3-D, strides": nn.Conv3d(4, 6, 3, stride=(1, 2, 2), padding=1, bias=False),
    "1-D, reflect": nn.Conv1d(4, 6, 5, padding=2, padding_mode="reflect"),
    "groups, dilation": nn.Conv2d(6, 4, (3, 2), dilation=(2, 1), padding=(2, 1), groups=2),
    "circular": nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
    "transposed": nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1),
    "transposed, groups": nn.ConvTranspose3d(4, 6, (1, 3, 2), stride=(1, 2, 1), groups=2),
}


def canonical(layer: nn.Module, rank: int = 3) -> CanonicalConv:
    geometry = geometry_of(layer)
    o, i, *k = geometry.block_shape
    voxels = int(torch.tensor(k).prod())
    factors = factors_of(geometry.groups, (o, i, voxels), rank)
    return CanonicalConv(geometry, CanonicalShape(geometry.block_shape, rank), factors, layer.bias).double()


@pytest.mark.parametrize("name", LAYERS)
def test_the_layer_is_the_convolution_with_its_kernel(name: str) -> None:
    made = canonical(LAYERS[name])
    sides = {1: (11,), 2: (9, 8), 3: (5, 7, 6)}[len(made.geometry.kernel)]
    x = drawn(2, made.geometry.inputs, *sides, seed=5)
    expected = made.folded()(x)
    for execution in made.plans:
        made.plan = execution
        torch.testing.assert_close(made(x), expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(made(x[0]), expected[0], rtol=1e-12, atol=1e-12)
    assert made.plans == (REBUILD, SEPARABLE)
    assert made.storage == made.geometry.groups * made.shape.storage


def test_gradients_reach_all_factors_by_both_plans() -> None:
    made = canonical(LAYERS["2-D"]).train()
    x = drawn(1, 6, 5, 5, seed=5)
    gradients = []
    for execution in made.plans:
        made.plan = execution
        gradients.append(torch.autograd.grad(made(x).square().sum(), list(made.parameters())))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
        assert one.abs().sum() > 0


def test_balanced_factors_are_of_the_same_kernel() -> None:
    factors = factors_of(2, (5, 4, 9), 3)
    uneven = (factors[0] * 1e6, factors[1] * 1e-3, factors[2])
    even = balanced(uneven)
    torch.testing.assert_close(full(even, (5, 4, 9)), full(uneven, (5, 4, 9)))
    norms = torch.stack([factor.norm(dim=1) for factor in even])
    torch.testing.assert_close(norms, norms[:1].expand_as(norms))


def test_factors_of_the_weighted_kernel_are_those_of_the_kernel_in_the_metric() -> None:
    sizes = (5, 4, 3, 2)
    roots = [drawn(2, n, n, seed=n) for n in sizes]
    metric = KernelMetric.of([root @ root.mT for root in roots])
    weighted = factors_of(2, (5, 4, 6), 3)
    found = full(metric.canonical(weighted), sizes)
    torch.testing.assert_close(metric.weighted(found), full(weighted, sizes))


def test_another_kernels_factors_are_refused() -> None:
    geometry = geometry_of(LAYERS["2-D"])
    with pytest.raises(InvalidShape, match="factors of a sum of 3 terms"):
        CanonicalConv(geometry, CanonicalShape(geometry.block_shape, 3), factors_of(1, (8, 6, 8), 3))
    with pytest.raises(InvalidShape, match="no sum of 0 terms"):
        CanonicalShape((8, 6, 3, 3), 0)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(12, 16, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 2),
    )


EXAMPLE = drawn(1, 3, 10, 10, dtype=torch.float32)


def test_a_search_takes_what_is_smaller_and_keeps_its_promises() -> None:
    net = network()
    for eps in (0.6, 0.8):
        plain = plan(net, EXAMPLE, RingConfig(eps=eps))
        told = plan(net, EXAMPLE, RingConfig(eps=eps, canonical=True))
        assert told.parameters_after <= plain.parameters_after
        assert any(form.method == "canonical" for form in told.forms.values())
        assert all(layer.error <= eps * (1 + 1e-5) for layer in told.layers)
        assert all(layer.after.macs <= layer.before.macs for layer in told.layers)


def test_a_compressed_model_of_terms_goes_to_a_file_and_back() -> None:
    net = network().eval()
    found = curvature(net, [drawn(8, 3, 10, 10, seed=4, dtype=torch.float32)])
    config = BudgetConfig(pcr=2.5, canonical=True)
    told = plan(net, EXAMPLE, config, curvature=found, execution="fewest")
    made = compressed(net, told, found)
    assert any(form.method == "canonical" for form in told.forms.values())
    assert {form.execution for form in told.forms.values()} == {SEPARABLE}
    content = to_bytes(made, told)
    assert to_bytes(compressed(net, told, found), told) == content
    fresh = network().eval()
    from_bytes_(fresh, content)
    assert torch.equal(fresh(EXAMPLE), made(EXAMPLE))
    before = made(EXAMPLE)
    torch.testing.assert_close(fold_(made)(EXAMPLE), before, rtol=1e-5, atol=1e-5)
