"""The whole matrix of geometries, every plan against the rebuilt kernel; errors and budgets of networks."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from test_rsdtr_layers import TOLERANCE, low_rank_layers, relative, ring_layers
from test_rsdtr_rings import decaying, normal
from torch import nn

from benchmarks.cifar_resnet import BLOCKS, block_convolutions, missing, pretrained
from models.compression.applying import compressed
from models.compression.budgets import BudgetConfig
from models.compression.files import to_bytes
from models.compression.planning import plan
from models.convolutions import Geometry, geometry_of
from models.rsdtr.candidates import RingConfig, paper_ring, smallest
from models.rsdtr.layers import FactorisedLayer
from models.rsdtr.low_rank import LowRankShape, low_rank_kernel, low_rank_of
from models.rsdtr.ring import RingShape
from models.rsdtr.search import RingSearch, groupings, ring_of
from models.rsdtr.spectra import Spectra

KINDS = {2: (nn.Conv2d, nn.ConvTranspose2d), 3: (nn.Conv3d, nn.ConvTranspose3d)}
SIDES = (9, 8, 7)
EPS = (0.3, 0.4, 0.5, 0.6, 0.7)


def mixed(axes: int, values: tuple[int, int]) -> tuple[int, ...]:
    return tuple(values[axis % 2] for axis in range(axes))


def forward_cases(axes: int) -> list[dict[str, Any]]:
    strides = [1, 2, mixed(axes, (1, 2))]
    dilations = [1, mixed(axes, (1, 2)), mixed(axes, (2, 1))]
    paddings: list[Any] = [0, 1, mixed(axes, (2, 0)), "same"]
    modes = ["zeros", "reflect", "replicate", "circular"]
    return [
        {"stride": stride, "dilation": dilation, "padding": padding, "padding_mode": mode}
        | {"groups": groups, "bias": bias}
        for stride, dilation, padding, mode, (groups, bias) in product(
            strides, dilations, paddings, modes, [(1, True), (2, False)]
        )
        if not (padding == "same" and stride != 1) and not (mode == "reflect" and axes == 3 and padding == 0)
    ]


def transposed_cases(axes: int) -> list[dict[str, Any]]:
    return [
        {"stride": stride, "dilation": dilation, "padding": padding, "groups": groups, "bias": bias}
        | {"output_padding": stride - 1}
        for stride, dilation, padding, (groups, bias) in product(
            [1, 2], [1, mixed(axes, (1, 2))], [0, 1, mixed(axes, (1, 0))], [(1, True), (2, False)]
        )
    ]


def layers_of(axes: int) -> list[nn.Module]:
    forward, transposed = KINDS[axes]
    return [forward(4, 6, 3, **case) for case in forward_cases(axes)] + [
        transposed(4, 6, 3, **case) for case in transposed_cases(axes)
    ]


def agrees(made: FactorisedLayer, dtype: torch.dtype) -> None:
    """All plans of a layer are the dense layer with its kernel."""
    geometry = made.geometry
    x = normal(2, geometry.inputs, *SIDES[: len(geometry.kernel)], seed=5).to(dtype)
    made.to(dtype)
    with torch.no_grad():
        wanted = made.folded()(x)
        for name in made.plans:
            made.plan = name
            assert relative(made(x), wanted) <= TOLERANCE[dtype], (geometry, name)


def test_the_matrix_has_every_case() -> None:
    for axes, count in ((2, 240), (3, 222)):
        geometries = [geometry_of(layer) for layer in layers_of(axes)]
        assert len(set(geometries)) >= count - 60
        assert {g.padding_mode for g in geometries} == {"zeros", "reflect", "replicate", "circular"}
        assert {g.groups for g in geometries} == {1, 2}
        assert {g.transposed for g in geometries} == {False, True}
        assert any(len(set(g.dilation)) > 1 for g in geometries)
        assert any(len(set(g.stride)) > 1 for g in geometries)


@pytest.mark.parametrize("axes", KINDS)
def test_every_geometry_by_one_ring_and_one_svd(axes: int) -> None:
    """In turn through the rings and SVDs that there are, so that neighbours differ."""
    for number, layer in enumerate(layers_of(axes)[:: 7 * axes]):
        rings, svds = ring_layers(layer), low_rank_layers(layer)
        agrees(rings[(5 * number) % len(rings)], torch.float64)
        agrees(svds[number % len(svds)], torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("axes", KINDS)
def test_every_geometry_by_every_ring_and_svd(axes: int, dtype: torch.dtype) -> None:
    for layer in layers_of(axes):
        for made in (*ring_layers(layer), *low_rank_layers(layer)):
            agrees(made, dtype)


def error_of(shape: RingShape | LowRankShape, spectra: Spectra) -> float:
    if isinstance(shape, RingShape):
        return ring_of(spectra, shape).relative_error(spectra.arrays)
    made = low_rank_kernel(shape, *low_rank_of(spectra, shape))
    return float((made - spectra.arrays).norm() / spectra.arrays.norm())


def within(kernel: torch.Tensor, geometry: Geometry, eps: float, sides: tuple[int, ...] | None) -> bool:
    """Both searches are within eps; whether ours changes the layer, with less storage and no more MACs."""
    blocks = kernel.double()[None]
    assert paper_ring(kernel.double(), geometry, eps).relative_error(blocks) <= eps * (1 + 1e-6)
    found, spectra = smallest(kernel, geometry, RingConfig(eps), sides)
    if found is None:
        return False
    assert error_of(found, spectra) <= eps * (1 + 1e-6)
    assert found.storage < kernel.numel()
    return True


@pytest.mark.skipif(missing() is not None, reason="the pretrained networks of ../shared are absent")
@pytest.mark.slow
@pytest.mark.parametrize("eps", EPS)
@pytest.mark.parametrize("name", BLOCKS)
def test_all_convolutions_of_pretrained_blocks_are_within_the_error(name: str, eps: float) -> None:
    layers = block_convolutions(pretrained(name))
    changed = 0
    for layer in layers.values():
        side = 32 * 16 // layer.in_channels
        changed += within(layer.weight.detach(), geometry_of(layer), eps, (side, side))
    assert len(layers) == 6 * BLOCKS[name]
    assert changed >= 0.7 * len(layers)


@pytest.mark.parametrize("eps", [0.3, 0.7])
def test_kernels_of_three_dimensions_are_within_the_error_in_every_grouping(eps: float) -> None:
    layer = nn.Conv3d(10, 12, 3)
    spectra = Spectra(decaying(1, 12, 10, 3, 3, 3), eps)
    counts = []
    for modes in groupings(spectra.sizes):
        search = RingSearch(spectra, 10**9, lambda _: True)
        search.over(modes)
        assert search.found is not None
        assert error_of(search.found, spectra) <= eps * (1 + 1e-6)
        counts.append(len(search.found.modes))
    assert counts == [3, 4, 5]
    assert within(spectra.arrays[0], geometry_of(layer), eps, (8, 8, 8))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv3d(1, 8, 3, padding=1),
        nn.Conv3d(8, 16, 3, stride=2, padding=1),
        nn.Conv3d(16, 16, 3, padding=1, groups=2),
        nn.ConvTranspose3d(16, 12, 3, stride=2, dilation=(1, 2, 1)),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Linear(12, 30),
        nn.Linear(30, 2),
    )
    for layer in model:
        if isinstance(layer, nn.Linear | nn.Conv3d | nn.ConvTranspose3d):
            shape = layer.weight.shape
            layer.weight.data = decaying(1, *shape, seed=len(shape))[0].float()
    return model.eval()


@pytest.mark.parametrize("eps", [0.3, 0.7])
def test_no_layer_grows_in_any_way(eps: float) -> None:
    made = plan(network(), torch.zeros(1, 1, 7, 7, 7), RingConfig(eps), execution="fewest")
    changed = [layer for layer in made.layers if layer.form is not None]
    assert len(changed) >= 3
    for layer in made.layers:
        assert layer.after.parameters <= layer.before.parameters
        assert layer.after.macs <= layer.before.macs
        assert layer.after.executed <= layer.before.executed
        assert layer.error <= eps * (1 + 1e-6)
    assert made.macs_after < made.macs


@pytest.mark.skipif(missing() is not None, reason="the pretrained networks of ../shared are absent")
@pytest.mark.slow
def test_at_a_small_error_a_pretrained_network_has_fewer_macs() -> None:
    model = pretrained("resnet20")
    made = plan(model, torch.zeros(1, 3, 32, 32), RingConfig(0.3), lambda _, name: name.startswith("layer"))
    assert made.macs / made.macs_after >= 1.05
    for layer in made.layers:
        assert layer.after.parameters <= layer.before.parameters
        assert layer.after.macs <= layer.before.macs


@pytest.mark.skipif(missing() is not None, reason="the pretrained networks of ../shared are absent")
@pytest.mark.slow
@pytest.mark.parametrize("pcr", [1.5, 2.0, 3.0, 4.0])
def test_a_target_is_met_within_three_per_cent_and_the_artifact_is_the_same(pcr: float) -> None:
    contents = []
    for _ in range(2):
        model = pretrained("resnet20")
        made = plan(model, torch.zeros(1, 3, 32, 32), BudgetConfig(pcr=pcr))
        assert pcr <= made.pcr <= 1.03 * pcr
        contents.append(to_bytes(compressed(model, made), made))
    assert contents[0] == contents[1]


def test_macs_are_never_above_a_target_and_the_artifact_is_the_same() -> None:
    model, x = network(), torch.zeros(1, 1, 7, 7, 7)
    dense = plan(model, x, RingConfig(0.5)).macs
    limit = int(0.6 * dense)
    made, again = (plan(network(), x, BudgetConfig(macs=limit, modes=(3,))) for _ in range(2))
    assert 0.5 * dense <= made.macs_executed <= limit
    assert to_bytes(compressed(model, made), made) == to_bytes(compressed(network(), again), again)
