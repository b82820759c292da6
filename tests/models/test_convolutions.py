"""Geometry of convolutions: what PyTorch's own layers say, for every kind of them."""

from __future__ import annotations

from math import prod

import pytest
import torch
from torch import nn

from models.convolutions import Geometry, geometry_of, kernel_of, plain_layer
from models.errors import InvalidShape, NonFinite

LAYERS = [
    nn.Conv1d(3, 4, 5, stride=2, padding=2, dtype=torch.float64),
    nn.Conv2d(4, 6, (3, 5), stride=(2, 1), padding=(1, 4), dilation=(1, 2), dtype=torch.float64),
    nn.Conv2d(4, 6, (2, 4), padding="same", dilation=(3, 1), dtype=torch.float64),
    nn.Conv2d(4, 6, 3, padding="valid", bias=False, dtype=torch.float64),
    nn.Conv2d(4, 6, (4, 3), padding="same", padding_mode="circular", groups=2, dtype=torch.float64),
    nn.Conv2d(4, 6, 3, padding=(2, 1), padding_mode="reflect", stride=2, dtype=torch.float64),
    nn.Conv3d(2, 4, (3, 1, 2), padding=(1, 0, 2), padding_mode="replicate", groups=2, dtype=torch.float64),
    nn.ConvTranspose1d(6, 4, 4, stride=3, padding=1, output_padding=2, groups=2, dtype=torch.float64),
    nn.ConvTranspose2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 3), dtype=torch.float64),
    nn.ConvTranspose3d(2, 4, 3, stride=2, padding=1, output_padding=1, dtype=torch.float64),
]
SPATIAL = (7, 8, 6)


def input_of(layer: nn.Module) -> torch.Tensor:
    geometry = geometry_of(layer)
    shape = (2, geometry.inputs, *SPATIAL[: len(geometry.kernel)])
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_a_layers_kernel_and_geometry_do_what_the_layer_does(layer: nn.Module) -> None:
    geometry, x = geometry_of(layer), input_of(layer)
    y = geometry.convolved(x, kernel_of(layer), layer.bias)
    assert torch.equal(y, layer(x))
    assert geometry.output_shape(tuple(x.shape[2:])) == y.shape[2:]
    assert geometry.activation(tuple(x.shape[2:])) == (x.numel() + y.numel()) // 2
    assert geometry.parameters(bias=layer.bias is not None) == sum(p.numel() for p in layer.parameters())


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_macs_are_those_of_the_voxels_written_or_of_a_transposed_one_read(layer: nn.Module) -> None:
    geometry, x = geometry_of(layer), input_of(layer)
    voxels = prod(x.shape[2:]) if geometry.transposed else prod(layer(x).shape[2:])
    assert geometry.macs(tuple(x.shape[2:])) == voxels * kernel_of(layer).numel()


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_a_plain_layer_is_the_same_layer(layer: nn.Module) -> None:
    again, x = plain_layer(geometry_of(layer), kernel_of(layer), layer.bias), input_of(layer)
    assert type(again) is type(layer)
    assert geometry_of(again) == geometry_of(layer)
    assert torch.equal(again(x), layer(x))
    assert again.weight.data_ptr() != layer.weight.data_ptr()


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_one_axis_after_the_other_is_the_whole_for_a_product_of_axes(layer: nn.Module) -> None:
    """Depthwise: each group's kernel is a product of vectors along the axes."""
    geometry, generator = geometry_of(layer), torch.Generator().manual_seed(2)
    channels, axes = geometry.groups, len(geometry.kernel)
    x = torch.randn(1, channels, *SPATIAL[:axes], dtype=torch.float64, generator=generator)
    whole, y = torch.ones(channels, 1, *[1] * axes, dtype=torch.float64), x
    for axis, size in enumerate(geometry.kernel):
        shape = [channels, 1, *(size if axis == other else 1 for other in range(axes))]
        part = torch.randn(shape, dtype=torch.float64, generator=generator)
        whole, y = whole * part, geometry.convolved(y, part, axes=[axis])
        assert y.shape[2:] == geometry.output_shape(tuple(x.shape[2:]), range(axis + 1))
    torch.testing.assert_close(y, geometry.convolved(x, whole), rtol=1e-12, atol=1e-12)


def test_a_linear_layer_has_no_axes() -> None:
    layer = nn.Linear(5, 3)
    geometry, x = geometry_of(layer), torch.randn(4, 5)
    assert geometry == Geometry(5, 3)
    assert (geometry.macs(()), geometry.parameters(bias=True), geometry.activation(())) == (15, 18, 8)
    assert torch.equal(geometry.convolved(x, kernel_of(layer), layer.bias), layer(x))
    assert torch.equal(plain_layer(geometry, layer.weight, layer.bias)(x), layer(x))


def test_what_is_no_convolution_is_refused() -> None:
    with pytest.raises(InvalidShape, match="a ReLU is no convolution"):
        geometry_of(nn.ReLU())
    with pytest.raises(InvalidShape, match="LazyConv2d has no kernel before its first input"):
        geometry_of(nn.LazyConv2d(3, 3))
    with pytest.raises(InvalidShape, match="no multiples of 3 groups"):
        Geometry(4, 6, groups=3)
    with pytest.raises(InvalidShape, match="takes 2 axes"):
        geometry_of(nn.Conv2d(1, 1, 3)).output_shape((5,))
    with pytest.raises(InvalidShape, match="nothing is left"):
        geometry_of(nn.Conv2d(1, 1, 3, dilation=3)).output_shape((6, 9))


def test_a_kernel_that_is_not_finite_is_refused_by_name() -> None:
    layer = nn.Conv2d(1, 1, 3)
    with torch.no_grad():
        layer.weight[0, 0, 1, 2] = float("nan")
    with pytest.raises(NonFinite, match=r"layer1\.conv must be finite"):
        kernel_of(layer, "layer1.conv")
