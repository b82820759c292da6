"""Certificates against norms: by Fourier transform, of whole Jacobians, and of pairs of inputs."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from models.errors import InvalidConfig, InvalidShape
from models.sttp.apply import sttp_, svdp_
from models.sttp.bounds import layer_bound, operator_bound, residual

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def _fourier_norm(kernel: Tensor, side: int) -> float:
    """The norm of a circular convolution with stride 1 on `side` voxels per axis."""
    axes = tuple(range(2, kernel.ndim))
    spectrum = torch.fft.fftn(kernel.double(), s=[side] * len(axes), dim=axes).flatten(2)
    return float(torch.linalg.matrix_norm(spectrum.movedim(2, 0), 2).max())


def _jacobian_norm(module: nn.Module, x: Tensor) -> float:
    jacobian = torch.autograd.functional.jacobian(module, x)
    return float(torch.linalg.matrix_norm(jacobian.reshape(-1, x.numel()), 2))


def _drawn(module: nn.Module, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return module.double()


def test_no_kernel_of_sixty_is_above_its_certificate_and_constant_ones_reach_it() -> None:
    nearest = 0.0
    for seed in range(60):
        axes = 1 + seed % 3
        kernel = (3, (3, 2), (3, 1, 2))[axes - 1]
        layer = _drawn(CONVOLUTIONS[axes](1 + seed % 4, 1 + seed % 5, kernel), seed)
        if seed % 2:
            layer.weight.data += 5 * torch.rand((), generator=torch.Generator().manual_seed(seed))
        norm, bound = _fourier_norm(layer.weight.detach(), 7), layer_bound(layer)
        assert norm <= bound
        nearest = max(nearest, norm / bound)
    assert nearest > 0.9
    layer = nn.Conv2d(2, 3, 3).double()
    layer.weight.data = torch.randn(3, 2, 1, 1, dtype=torch.float64).expand(3, 2, 3, 3).clone()
    assert _fourier_norm(layer.weight.detach(), 8) == pytest.approx(layer_bound(layer), rel=1e-10)


def test_certificates_of_spectral_layers_are_the_root_of_the_kernel_times_the_bound() -> None:
    for axes, apply_, seed in ((1, svdp_, 0), (2, sttp_, 1), (3, sttp_, 2)):
        layer = _drawn(CONVOLUTIONS[axes](4, 6, 3), seed).float()
        apply_(layer, rank=4, bound=0.7)
        certificate = layer_bound(layer)
        assert certificate <= 0.7 * math.sqrt(3**axes) * (1 + 2e-5)
        assert _fourier_norm(layer.weight.detach(), 8) <= certificate


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(5, 4), (1, 5)),
        (nn.Conv1d(4, 6, 3, stride=2, padding=2, groups=2), (1, 4, 9)),
        (nn.Conv2d(2, 3, 3, padding=1), (1, 2, 6, 5)),
        (nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (1, 2, 6, 5)),
        (nn.Conv2d(2, 3, 2, padding=2, padding_mode="circular"), (1, 2, 4, 4)),
        (nn.Conv1d(2, 2, 3, padding=3, padding_mode="reflect"), (1, 2, 4)),
        (nn.Conv1d(2, 2, 3, padding=(4,), padding_mode="replicate"), (1, 2, 1)),
        (nn.Conv2d(2, 2, (1, 3), padding="same", dilation=2, padding_mode="replicate"), (1, 2, 4, 5)),
        (nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2), (1, 4, 5)),
        (nn.ConvTranspose2d(2, 3, 3, stride=1, dilation=2), (1, 2, 4, 4)),
        (nn.MaxPool2d(3, stride=2, padding=1), (1, 2, 6, 6)),
        (nn.MaxPool1d(4, stride=1), (1, 1, 7)),
        (nn.AvgPool2d(3, stride=1, padding=1), (1, 1, 6, 6)),
        (nn.AdaptiveAvgPool3d(1), (1, 2, 3, 3, 3)),
        (nn.LeakyReLU(-2.0), (20,)),
        (nn.ELU(1.5), (20,)),
    ],
    ids=str,
)
def test_jacobians_are_never_above_the_certificate(layer: nn.Module, shape: tuple[int, ...]) -> None:
    for seed in range(5):
        _drawn(layer, seed)
        if hasattr(layer, "weight") and seed > 2:
            layer.weight.data = layer.weight.data.abs()
        x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        assert _jacobian_norm(layer, x) <= operator_bound(layer) * (1 + 1e-12)


def test_slopes_of_activations_are_below_their_certificates_and_near() -> None:
    x = torch.linspace(-6, 6, 20_001, dtype=torch.float64, requires_grad=True)
    for layer in (nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Sigmoid(), nn.Tanh(), nn.ReLU(), nn.Softsign()):
        (slopes,) = torch.autograd.grad(layer(x).sum(), x)
        assert 0.99 * operator_bound(layer) <= slopes.max() <= operator_bound(layer)


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.second(self.first(x)))


def test_a_network_moves_no_pair_of_inputs_further_than_its_certificate() -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        _Block(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 3),
    )
    sttp_(model, rank=4, bound=1.0, start="identity")
    generator = torch.Generator().manual_seed(0)
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.running_var = 0.1 + torch.rand(4, generator=generator)
        norm.weight.data = torch.randn(4, generator=generator)
    model.double().eval()
    bound = operator_bound(model, {_Block: lambda block, of: residual(of(block.second) * of(block.first))})
    norms = [
        float((m.weight.detach().abs() / (m.running_var + m.eps).sqrt()).max())
        for m in (model[1], model[3].second)
    ]
    assert bound == pytest.approx(3 * norms[0] * (1 + 3 * norms[1]), rel=1e-5)
    twice = nn.Linear(3, 3)
    assert operator_bound(nn.Sequential(twice, twice)) == operator_bound(twice) ** 2
    for _ in range(50):
        x, step = (torch.randn(1, 2, 6, 6, generator=generator, dtype=torch.float64) for _ in range(2))
        moved = (model(x + 1e-3 * step) - model(x)).norm()
        assert moved <= bound * 1e-3 * step.norm()


def test_what_has_no_certificate_is_refused() -> None:
    class Doubled(nn.Linear):
        pass

    for module, match in (
        (nn.Sequential(nn.LayerNorm(4)), "no bound is known of LayerNorm: give a rule"),
        (Doubled(3, 3), "of Doubled"),
        (svdp_(Doubled(3, 3), rank=2), "of Doubled"),
    ):
        with pytest.raises(InvalidShape, match=match):
            operator_bound(module)
    for module in (
        nn.BatchNorm1d(3),
        nn.BatchNorm1d(3, track_running_stats=False).eval(),
        nn.Dropout(),
        nn.AvgPool2d(2, padding=1, count_include_pad=False),
        nn.AvgPool2d(2, divisor_override=1),
        nn.AdaptiveAvgPool2d(2),
    ):
        with pytest.raises(InvalidConfig):
            operator_bound(module)
