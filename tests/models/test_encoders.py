"""Encoders of cubes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.cpic.encoder import ENCODERS, RECEPTIVE_FIELD, CpicEncoder, random_cpic
from models.errors import InvalidConfig, InvalidShape
from models.intensities import IntensityStatistics

CPU = torch.device("cpu")
STATISTICS = IntensityStatistics(-100.0, 1900.0, 400.0, 250.0)
CONSTANT = IntensityStatistics(7.0, 7.0, 7.0, 0.0)


def cubes(count: int, channels: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return 2000 * torch.rand(count, channels, 9, 9, 9, generator=generator, dtype=torch.float64) - 100


@pytest.mark.parametrize(("n_dim", "parameters"), [(8, 17_738), (16, 23_146), (32, 33_962)])
def test_the_network_has_the_papers_parameters(n_dim: int, parameters: int) -> None:
    assert sum(p.numel() for p in CpicEncoder(1, n_dim, 0).parameters()) == parameters


def test_the_receptive_field_is_the_whole_cube_and_smaller_boxes_are_refused() -> None:
    network = CpicEncoder(1, 4, 0)
    assert RECEPTIVE_FIELD == 9
    seen = torch.randn(64, 1, 9, 9, 9, generator=torch.Generator().manual_seed(1)).requires_grad_()
    (gradient,) = torch.autograd.grad(network(seen).sum(), seen)
    assert bool(gradient.abs().amax(dim=(0, 1)).all())
    with pytest.raises(InvalidShape, match=r"receptive field is 9\^3: a box of \(9, 8, 30\) is too small"):
        network(torch.zeros(1, 1, 9, 8, 30))


@pytest.mark.parametrize("name", ENCODERS)
def test_a_box_has_the_features_of_the_cubes_in_it(name: str) -> None:
    encoder = ENCODERS[name](2, 4, 0, STATISTICS, CPU)
    box = 2000 * torch.rand(2, 2, 11, 9, 13, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    d = encoder.cube_size
    cubes = box.unfold(2, d, 1).unfold(3, d, 1).unfold(4, d, 1)
    one_by_one = encoder(cubes.permute(0, 2, 3, 4, 1, 5, 6, 7).reshape(-1, 2, d, d, d))
    together = encoder(box).permute(0, 2, 3, 4, 1).reshape(one_by_one.shape[0], -1)
    assert torch.allclose(together, one_by_one.flatten(1), rtol=0, atol=1e-6)


def test_encoders_are_differentiable() -> None:
    encoder = random_cpic(1, 4, 0, STATISTICS, CPU)
    weights = list(encoder.network.parameters())
    assert all(bool(g.any()) for g in torch.autograd.grad(encoder(cubes(3)).sum(), weights))
    assert ENCODERS["identity"](1, 4, 0, STATISTICS, CPU).network is None


def test_weights_come_from_the_seed_alone_and_leave_torchs_state_as_it_was() -> None:
    state = torch.get_rng_state()
    first = CpicEncoder(1, 8, 3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(123)
    again, other = CpicEncoder(1, 8, 3), CpicEncoder(1, 8, 4)
    torch.set_rng_state(state)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first(cubes(1).float()), other(cubes(1).float()))


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("channels", [1, 3])
def test_encoders_keep_what_they_announce(name: str, channels: int) -> None:
    encoder = ENCODERS[name](channels, 8, 0, STATISTICS, CPU)
    middle = RECEPTIVE_FIELD // 2 - encoder.cube_size // 2
    part = slice(middle, middle + encoder.cube_size)
    values = encoder(cubes(64, channels)[:, :, part, part, part]).detach()
    low, high = encoder.value_range
    assert values.shape == (64, encoder.features, 1, 1, 1)
    assert low <= float(values.min()) < float(values.max()) <= high


def test_identity_standardises() -> None:
    encoder = ENCODERS["identity"](2, 16, 0, STATISTICS, CPU)
    voxels = torch.tensor([[-100.0, 400.0], [1900.0, 650.0]], dtype=torch.float64).reshape(2, 2, 1, 1, 1)
    assert encoder(voxels).flatten(1).tolist() == [[-2.0, 0.0], [6.0, 1.0]]
    assert encoder.value_range == (-2.0, 6.0)


@pytest.mark.parametrize("name", ENCODERS)
def test_constant_scans_have_constant_features(name: str) -> None:
    encoder = ENCODERS[name](1, 4, 0, CONSTANT, CPU)
    values = encoder(torch.full((5, 1, *[encoder.cube_size] * 3), 7.0, dtype=torch.float64))
    assert bool((values == values[0]).all())
    assert bool(torch.isfinite(values).all())


def test_random_features_vary_across_cubes() -> None:
    encoder = ENCODERS["random_cpic"](1, 16, 0, STATISTICS, CPU)
    levels = torch.linspace(-100, 1900, 50, dtype=torch.float64)
    values = encoder(levels[:, None, None, None, None] + 0 * cubes(50)).detach()
    assert float(values.std(dim=0).mean()) > 0.05  # torch's own initialisation: 0.0006 on an MRI


@pytest.mark.parametrize(
    ("statistics", "name"),
    [
        ((0.0, np.inf, 0.0, 1.0), "statistics.maximum"),
        ((0.0, 1.0, np.nan, 1.0), "statistics.mean"),
        ((2.0, 1.0, 1.5, 1.0), "statistics.minimum"),
        ((0.0, 1.0, 0.5, -1.0), "statistics.std"),
    ],
)
def test_statistics_that_no_scan_has_are_refused(statistics: tuple[float, ...], name: str) -> None:
    with pytest.raises(InvalidConfig, match=name):
        IntensityStatistics(*statistics)
