"""Bounds over whole runs: frames and singular values at every step; certificates, imports and files."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from models.errors import InvalidConfig
from models.sttp.apply import SpectralConfig, spectral_, svdp_
from models.sttp.bounds import layer_bound
from models.sttp.folding import fold_
from models.sttp.packing import from_bytes_, to_bytes
from models.sttp.parametrizations import originals, regularised, spectral_of
from models.sttp.products import product
from models.sttp.spectrum import d_optimal
from models.sttp.weights import METHODS

MOST = {torch.float32: 5e-6, torch.float64: 1e-13, torch.bfloat16: 5e-6, torch.float16: 5e-6}


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.Flatten(), nn.Linear(8, 4)
    ).to(dtype)


def spectral_layers(model: nn.Module) -> list[nn.Module]:
    return [layer for layer in model.modules() if spectral_of(layer) is not None]


def from_orthonormal(layer: nn.Module) -> float:
    """The largest entry of Q^T Q - I over both frames of a layer."""
    spectral = spectral_of(layer)
    assert spectral is not None
    outputs, inputs, *_ = originals(layer)
    worst = 0.0
    for packed, chain, back in (
        (outputs, spectral.layout.output_chain, False),
        (inputs, spectral.layout.input_chain, True),
    ):
        made = product(packed.detach(), chain, backwards=back)
        gram = made.mT @ made
        worst = max(worst, float((gram - torch.eye(gram.shape[-1]).to(gram)).abs().max()))
    return worst


def largest(layer: nn.Module) -> float:
    spectral = spectral_of(layer)
    assert spectral is not None
    weight = layer.weight.detach().double()
    return float(torch.linalg.matrix_norm(spectral.shape.matrices(weight), 2).max())


def descended(model: nn.Module, steps: int, rate: float, watch: object = None) -> list[float]:
    """Classification of noise by SGD with momentum and, where it is learnt, the D-optimal penalty."""
    dtype = next(model.parameters()).dtype
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(16, 3, 5, 5, generator=generator).to(dtype)
    y = torch.randint(4, (16,), generator=generator)
    optimiser = torch.optim.SGD(model.parameters(), rate, momentum=0.9)
    losses = []
    for step in range(steps):
        if callable(watch):
            watch(step)
        loss = nn.functional.cross_entropy(model(x).float(), y)
        penalty = d_optimal(regularised(model)) if regularised(model) else 0.0
        optimiser.zero_grad()
        (loss + penalty).backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("dtype", "rate"),
    [(torch.float32, 0.01), (torch.float32, 0.1), (torch.float64, 0.1), (torch.bfloat16, 0.1)],
)
def test_frames_are_orthonormal_after_a_thousand_steps(method: str, dtype: torch.dtype, rate: float) -> None:
    config = SpectralConfig(method, rank=4, start="identity", bound=1.0)
    model = spectral_(network(dtype), config)
    before = [entries.detach().clone() for layer in spectral_layers(model) for entries in originals(layer)]
    losses = descended(model, 1000, rate)
    after = [entries for layer in spectral_layers(model) for entries in originals(layer)]
    assert (
        max(float((a - b).detach().abs().max()) for a, b in zip(after, before, strict=True) if a.numel())
        > 0.1
    )
    assert losses[-1] < 0.9 * losses[0]
    assert all(from_orthonormal(layer) <= MOST[dtype] for layer in spectral_layers(model))
    stored = model.to(torch.float16)
    assert all(from_orthonormal(layer) <= MOST[torch.float16] for layer in spectral_layers(stored))


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_the_largest_singular_value_is_the_bound_at_every_of_three_hundred_steps(method: str) -> None:
    model = spectral_(
        network(), SpectralConfig(method, rank=4, bound=1.5, start="identity", spectrum="regularised")
    )
    seen: list[float] = []
    losses = descended(
        model, 300, 0.1, lambda _: seen.extend(abs(largest(m) / 1.5 - 1) for m in spectral_layers(model))
    )
    assert len(seen) == 900
    assert max(seen) <= 2e-5
    assert losses[-1] < losses[0]


def fourier_norm(weight: Tensor, side: int, stride: tuple[int, ...]) -> float:
    """The norm of a circular convolution: at each frequency of the coarse grid all those that fold to it."""
    axes = tuple(range(2, weight.ndim))
    spectrum = torch.fft.fftn(weight.double(), s=[side] * len(axes), dim=axes)
    for axis, step in zip(axes, stride, strict=True):
        spectrum = spectrum.unflatten(axis, (step, side // step)).movedim(axis, 1).flatten(1, 2)
    blocks = spectrum.flatten(2).movedim(2, 0) / math.sqrt(math.prod(stride))
    return float(torch.linalg.matrix_norm(blocks, 2).max())


def test_the_fourier_norm_is_that_of_the_convolution() -> None:
    weight = torch.randn(3, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for stride in (1, 2):
        layer = nn.Conv1d(2, 3, 3, stride=stride, padding=1, padding_mode="circular", bias=False).double()
        layer.weight.data = weight
        whole = torch.autograd.functional.jacobian(layer, torch.zeros(1, 2, 8, dtype=torch.float64))
        norm = torch.linalg.matrix_norm(whole.reshape(-1, 16), 2)
        assert fourier_norm(weight, 8, (stride,)) == pytest.approx(float(norm), rel=1e-10)


@pytest.mark.parametrize("method", ["svdp", pytest.param("sttp", marks=pytest.mark.slow)])
def test_no_certificate_of_sixty_kernels_is_exceeded(method: str) -> None:
    nearest = 0.0
    for seed in range(60):
        axes, stride = 2 + seed % 2, 1 + (seed // 2) % 2
        steps = (stride, *(1,) * (axes - 1)) if seed % 3 else (stride,) * axes
        torch.manual_seed(seed)
        kind = {2: nn.Conv2d, 3: nn.Conv3d}[axes]
        layer = kind(1 + seed % 4, 1 + seed % 5, 3, stride=steps, padding=1, padding_mode="circular")
        if seed % 5 == 0:
            layer.weight.data += 1.0
        spectral_(layer, SpectralConfig(method, rank=1 + seed % 4, bound=0.7))
        norm, bound = fourier_norm(layer.weight.detach(), 6, steps), layer_bound(layer)
        assert norm <= bound <= 0.7 * math.sqrt(3**axes) * (1 + 2e-5)
        nearest = max(nearest, norm / bound)
    assert nearest > 0.8


@pytest.mark.parametrize("axes", [2, 3])
def test_full_svdp_gives_a_trained_weight_back_in_single_precision(axes: int) -> None:
    layer = {2: nn.Conv2d, 3: nn.Conv3d}[axes](6, 8, 3)
    weight = layer.weight.detach().clone()
    svdp_(layer, rank=10_000)
    assert float((layer.weight - weight).detach().norm() / weight.norm()) <= 1e-6


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("spectrum", ["learned", "constant"])
def test_a_file_is_four_bytes_for_each_degree_of_freedom(method: str, spectrum: str) -> None:
    model = nn.Sequential(
        nn.Conv3d(16, 32, 3), nn.BatchNorm3d(32), nn.ConvTranspose3d(32, 16, 3), nn.Conv2d(64, 64, 3)
    )
    model.append(nn.Linear(128, 64))
    spectral_(model, SpectralConfig(method, rank=12, start="identity", spectrum=spectrum))
    layers = spectral_layers(model)
    freedom = sum(spectral_of(layer).parameters_count for layer in layers)
    assert freedom == sum(entries.numel() for layer in layers for entries in originals(layer))
    others = sum(layer.bias.numel() for layer in layers) + 4 * 32 + 2
    content = to_bytes(model)
    assert len(content) <= 4 * freedom + 4 * others + 65_536
    assert len(content) <= 4 * freedom + 4 * others + 4096
    anew = nn.Sequential(
        nn.Conv3d(16, 32, 3), nn.BatchNorm3d(32), nn.ConvTranspose3d(32, 16, 3), nn.Conv2d(64, 64, 3)
    )
    anew.append(nn.Linear(128, 64))
    from_bytes_(anew, content)
    assert to_bytes(anew) == content


def test_a_layer_under_two_names_is_folded_to_one() -> None:
    shared = nn.Conv2d(4, 4, 3, padding=1)
    model = nn.Sequential(shared, nn.ReLU(), nn.Sequential(shared))
    spectral_(model, SpectralConfig(rank=2))
    x = torch.randn(1, 4, 5, 5)
    wanted = model(x)
    assert fold_(model) is model
    assert model[0] is model[2][0]
    assert spectral_layers(model) == []
    assert float((model(x) - wanted).detach().abs().max()) <= 1e-6


def test_ranks_that_are_no_whole_numbers_are_refused() -> None:
    for settings in ({"rank": 1.5}, {"rank": 0}, {"parameters": 0}, {"rho": 0}, {"rho": math.nan}):
        with pytest.raises(InvalidConfig, match=next(iter(settings))):
            SpectralConfig(**settings)
