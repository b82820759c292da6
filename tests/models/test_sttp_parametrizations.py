"""Spectral weights of layers: what is imported, what is kept over steps, and what torch does with them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from models.errors import InvalidConfig, InvalidShape, NonFinite
from models.sttp.apply import SpectralConfig, spectral_, sttp_, svdp_
from models.sttp.parametrizations import originals, regularised, spectral_of
from models.sttp.spectrum import d_optimal
from models.sttp.weights import METHODS

LAYERS = {
    "linear": (nn.Linear(20, 12), (3, 20)),
    "conv1d": (nn.Conv1d(6, 8, 3, padding="same", dilation=2), (2, 6, 11)),
    "grouped": (nn.Conv2d(8, 12, 3, stride=2, groups=2, padding=1, padding_mode="reflect"), (2, 8, 9, 8)),
    "depthwise": (nn.Conv2d(4, 4, 3, groups=4), (1, 4, 6, 6)),
    "conv3d": (nn.Conv3d(4, 6, 3, stride=(1, 2, 1), bias=False), (1, 4, 5, 6, 5)),
    "transposed": (
        nn.ConvTranspose3d(6, 4, 3, stride=2, padding=1, output_padding=1, groups=2),
        (1, 6, 3, 4, 3),
    ),
    "one output": (nn.Linear(30, 1), (2, 30)),
}
FULL = 10_000


def _layer(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor]:
    layer, shape = LAYERS[name]
    generator = torch.Generator().manual_seed(0)
    for parameter in layer.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return copy.deepcopy(layer).to(dtype), torch.randn(shape, generator=generator, dtype=torch.float64).to(
        dtype
    )


def _singular_values(layer: nn.Module) -> Tensor:
    spectral = spectral_of(layer)
    assert spectral is not None
    return torch.linalg.svdvals(spectral.shape.matrices(layer.weight.detach()).double())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", LAYERS)
def test_a_trained_layer_is_imported_to_rounding_and_given_back(name: str, method: str) -> None:
    layer, x = _layer(name)
    weight, expected = layer.weight.detach().clone(), layer(x)
    spectral_(layer, SpectralConfig(method, rank=FULL))
    assert (layer.weight - weight).abs().max() <= 1e-12
    assert (layer(x) - expected).abs().max() <= 1e-12
    assert sum(tensor.numel() for tensor in originals(layer)) == weight.numel()
    parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    assert (layer.weight - weight).abs().max() <= 1e-12
    assert {name for name, _ in layer.named_parameters()} <= {"weight", "bias"}
    assert (layer(x) - expected).abs().max() <= 1e-12


@pytest.mark.parametrize("spectrum", ["learned", "constant"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", LAYERS)
def test_a_weight_of_the_layout_is_imported_to_rounding_with_the_counted_parameters(
    name: str, method: str, spectrum: str
) -> None:
    layer, _ = _layer(name)
    spectral_(layer, SpectralConfig(method, rank=3, spectrum=spectrum, bound=1.7))
    generator = torch.Generator().manual_seed(1)
    for parameter in originals(layer):
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    made = layer.weight.detach().clone()
    anew, _ = _layer(name)
    spectral_(anew, SpectralConfig(method, rank=3, spectrum=spectrum, bound=1.7))
    anew.weight = made
    assert (anew.weight - made).abs().max() <= 1e-12
    spectral = spectral_of(anew)
    assert spectral is not None
    assert sum(t.numel() for t in originals(anew)) == spectral.shape.groups * spectral.layout.parameters
    assert spectral.bound == 1.7


def test_truncated_svdp_is_the_truncated_svd() -> None:
    layer, _ = _layer("conv3d")
    matrix = layer.weight.detach().flatten(1)
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    svdp_(layer, rank=3)
    assert (layer.weight.flatten(1) - (u[:, :3] * s[:3]) @ vh[:3]).abs().max() <= 1e-12


def test_truncated_sttp_is_within_the_bound_of_tt_svd() -> None:
    layer, _ = _layer("conv3d")
    weight = layer.weight.detach().clone()
    sttp_(layer, rank=3)
    spectral = spectral_of(layer)
    assert spectral is not None
    modes = (*spectral.layout.output_modes, *spectral.layout.input_modes)
    tails = []
    for k in range(1, len(modes)):
        unfolding = weight.reshape(torch.Size(modes[:k]).numel(), -1)
        tails.append(torch.linalg.svdvals(unfolding)[spectral.layout.ranks[k] :].square().sum())
    error = (layer.weight - weight).square().sum()
    assert max(tails) * (1 - 1e-12) <= error <= sum(tails) * (1 + 1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_the_bound_is_the_largest_singular_value_at_every_step(method: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.Flatten(1))
    model.append(nn.Linear(8, 4))
    spectral_(model, SpectralConfig(method, rank=4, bound=1.5, start="identity", spectrum="regularised"))
    x, y = torch.randn(16, 3, 5, 5), torch.randint(4, (16,))
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for _ in range(100):
        for layer in model[0], model[2], model[4]:
            assert abs(_singular_values(layer).max() / 1.5 - 1) <= 2e-5
        loss = nn.functional.cross_entropy(model(x), y)
        optimiser.zero_grad()
        (loss + d_optimal(regularised(model))).backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


def test_of_a_constant_spectrum_all_singular_values_are_the_bound() -> None:
    layer, _ = _layer("grouped", torch.float32)
    sttp_(layer, rank=4, spectrum="constant", bound=0.8)
    for parameter in originals(layer):
        parameter.data += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5))
    assert (_singular_values(layer)[:, :4] / 0.8 - 1).abs().max() <= 2e-5
    assert _singular_values(layer)[:, 4:].abs().max() <= 1e-6
    assert regularised(layer) == []


def test_gradients_are_those_of_the_definition() -> None:
    for spectrum in ("learned", "constant"):
        layer = nn.Conv1d(4, 6, 3, groups=2).double()
        sttp_(layer, rank=2, spectrum=spectrum, start="identity")
        spectral = spectral_of(layer)
        assert spectral is not None
        generator = torch.Generator().manual_seed(2)
        entries = [
            torch.randn(p.shape, generator=generator, dtype=torch.float64, requires_grad=True)
            for p in originals(layer)
        ]
        assert torch.autograd.gradcheck(spectral, entries)


def test_cached_computes_a_weight_once_and_lets_go_of_it() -> None:
    for execution in ("dense", "low-rank"):
        layer, x = _layer("conv1d")
        sttp_(layer, rank=4, execution=execution)
        spectral = spectral_of(layer)
        assert spectral is not None
        calls = []
        factors = spectral.factors
        spectral.factors = lambda *given, f=factors, c=calls: (c.append(1), f(*given))[1]
        with parametrize.cached():
            first = layer(x)
            assert torch.equal(layer(x), first)
        assert calls == [1]
        originals(layer)[0].data.add_(1)
        with parametrize.cached():
            assert not torch.equal(layer(x), first)


@pytest.mark.parametrize("execution", ["dense", "low-rank"])
def test_layers_are_copied_cast_traced_and_exported(execution: str) -> None:
    layer, x = _layer("conv3d", torch.float32)
    sttp_(layer, rank=4, execution=execution)
    expected = layer(x)
    copied = copy.deepcopy(layer)
    originals(layer)[0].data.zero_()
    assert torch.equal(copied(x), expected)
    assert (copied.double()(x.double()) - expected).abs().max() <= 1e-5
    assert copied.half().weight.dtype == torch.float16
    copied.float()
    again = copied(x)
    assert (again - expected).abs().max() <= 2e-2
    exported = torch.export.export(copied, (x,)).module()
    assert (exported(x) - again).abs().max() <= 1e-6
    compiled = torch.compile(copied, backend="aot_eager", fullgraph=True)
    assert (compiled(x) - again).abs().max() <= 1e-6


def test_a_state_dict_is_loaded_strictly_by_a_model_that_was_never_trained() -> None:
    def made(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.Flatten(), nn.Linear(32, 3))
        return sttp_(model, rank=4, spectrum="constant", execution="low-rank")

    trained, fresh, x = made(0), made(1), torch.randn(2, 4, 4, 4)
    assert not torch.equal(fresh(x), trained(x))
    fresh.load_state_dict(trained.state_dict(), strict=True)
    assert torch.equal(fresh(x), trained(x))


def test_ranks_of_a_model_are_by_share_by_budget_or_one_for_all() -> None:
    def ranks(**settings: float) -> list[int]:
        model = nn.Sequential(nn.Linear(40, 20), nn.ReLU(), nn.Linear(20, 10))
        svdp_(model, lambda layer, name: name != "1", start="identity", **settings)
        return [spectral_of(model[k]).layout.width for k in (0, 2)]

    assert ranks(rank=12) == [12, 10]
    assert ranks(rho=0.5) == [10, 5]
    assert ranks(parameters=100) == [1, 1]
    with pytest.raises(InvalidConfig, match="parameters = 80: must be at least 88"):
        ranks(parameters=80)


def test_what_cannot_be_parametrised_is_refused_and_the_model_left_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    model[1].weight.data[1, 2] = torch.nan
    with pytest.raises(NonFinite, match=r"the weight of 1 must be finite, but the one at \(1, 2\) is nan"):
        sttp_(model, rank=2)
    with pytest.raises(InvalidConfig, match="spectrum"):
        sttp_(model[0], rank=2, spectrum="flat")
    with pytest.raises(InvalidConfig, match="bound"):
        sttp_(model[0], rank=2, bound=-1.0)
    with pytest.raises(InvalidConfig, match="start"):
        sttp_(model[0], rank=2, start="zero")
    for wrong in ({}, {"rank": 2, "rho": 0.5}):
        with pytest.raises(InvalidConfig, match="one of rank, rho and parameters"):
            sttp_(model[0], **wrong)
    with pytest.raises(InvalidConfig, match="execution"):
        sttp_(model[0], rank=2, execution="fast")
    with pytest.raises(InvalidShape, match="no linear layer or convolution"):
        sttp_(nn.ReLU(), rank=2)
    assert not any(parametrize.is_parametrized(layer) for layer in model)
    sttp_(model[0], rank=2)
    with pytest.raises(InvalidConfig, match="parametrised"):
        sttp_(model[0], rank=2)
    with pytest.raises(NonFinite, match="a weight to be parametrised"):
        model[0].weight = torch.full((4, 4), torch.inf)


def test_a_weight_of_zeros_is_imported_as_one() -> None:
    layer = nn.Linear(6, 4)
    layer.weight.data.zero_()
    for method in METHODS:
        made = spectral_(copy.deepcopy(layer), SpectralConfig(method, rank=2))
        assert torch.equal(made.weight, torch.zeros(4, 6))


def test_half_of_the_parameters_digits_keep_the_bound() -> None:
    layer, _ = _layer("conv3d", torch.float32)
    sttp_(layer, rank=4, bound=1.0)
    for dtype in (torch.float16, torch.bfloat16):
        rounded = copy.deepcopy(layer).to(dtype).float()
        assert abs(_singular_values(rounded).max() - 1) <= 2e-5
