"""Layers computed from their factors, and folded to plain ones: the same outputs, fewer multiplications."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.flop_counter import FlopCounterMode

from models.errors import InvalidShape
from models.sttp.apply import sttp_, svdp_
from models.sttp.folding import fold_, folded
from models.sttp.lowrank import multiplications
from models.sttp.parametrizations import factors_of, spectral_of

CASES = [
    (nn.Linear(24, 18), (2, 5, 24)),
    (nn.Conv1d(6, 8, 3, padding="same", dilation=2, padding_mode="circular"), (2, 6, 11)),
    (nn.Conv2d(6, 8, (3, 2), stride=(2, 1), padding=(1, 0), bias=False), (2, 6, 9, 8)),
    (nn.Conv2d(8, 12, 3, groups=2, padding=1, padding_mode="reflect"), (2, 8, 6, 7)),
    (nn.Conv3d(4, 6, 3, stride=(1, 2, 1), dilation=(1, 1, 2), padding=1), (1, 4, 5, 6, 7)),
    (nn.ConvTranspose1d(6, 4, 4, stride=3, dilation=2), (2, 6, 5)),
    (nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, output_padding=1, groups=2), (2, 6, 4, 5)),
    (nn.ConvTranspose3d(4, 6, 2, stride=2), (1, 4, 3, 2, 3)),
]


def _case(number: int, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor]:
    layer, shape = CASES[number]
    generator = torch.Generator().manual_seed(number)
    for parameter in layer.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    return copy.deepcopy(layer).to(dtype), x.to(dtype)


@pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
@pytest.mark.parametrize("apply_", [svdp_, sttp_])
@pytest.mark.parametrize("number", range(len(CASES)), ids=[str(layer) for layer, _ in CASES])
def test_every_execution_gives_the_same_outputs_and_gradients(
    number: int, apply_: type, dtype: torch.dtype, most: float
) -> None:
    layer, x = _case(number, dtype)
    dense, low = (apply_(copy.deepcopy(layer), rank=3, execution=kind) for kind in ("dense", "low-rank"))
    expected, found = dense(x), low(x)
    scale = float(expected.detach().abs().max())
    assert (found - expected).abs().max() <= most * scale
    for parts in (1, 2):
        plain = folded(low, parts=parts)
        assert not any(parametrize.is_parametrized(module) for module in plain.modules())
        assert {type(m) for m in plain.modules()} <= {nn.Sequential, *(type(layer) for layer, _ in CASES)}
        assert (plain(x) - expected).abs().max() <= most * scale
    ours = torch.autograd.grad(found.square().sum(), list(low.parameters()))
    theirs = torch.autograd.grad(expected.square().sum(), list(dense.parameters()))
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).abs().max() <= 100 * most * max(1.0, float(other.abs().max()))


@pytest.mark.parametrize("execution", ["dense", "low-rank"])
def test_layers_of_half_precision_compute_in_it_and_take_nothing_else(execution: str) -> None:
    layer, x = _case(3, torch.float32)
    sttp_(layer, rank=4, execution=execution)
    expected = layer(x)
    layer.bfloat16()
    assert layer(x.bfloat16()).dtype == torch.bfloat16
    assert (layer(x.bfloat16()) - expected).abs().max() <= 0.1
    with pytest.raises(RuntimeError):
        layer(x)


def test_an_output_size_is_honoured() -> None:
    layer, x = nn.ConvTranspose2d(8, 4, 3, stride=2), torch.randn(1, 8, 4, 4)
    sttp_(layer, rank=2, execution="low-rank")
    assert layer(x, [10, 10]).shape == (1, 4, 10, 10)
    assert layer(x, output_size=[10, 10]).shape == (1, 4, 10, 10)


def test_auto_chooses_what_takes_fewer_multiplications_and_they_are_counted_right() -> None:
    for layer, shape, places, expected in (
        (nn.Conv2d(16, 16, 3, padding=1), (1, 16, 8, 8), 64, "FactoredConv2d"),
        (nn.Conv2d(4, 4, 3, padding=1), (1, 4, 8, 8), 64, "Conv2d"),
        (nn.ConvTranspose2d(16, 16, 2, stride=2), (1, 16, 4, 4), 16, "FactoredConvTranspose2d"),
        (nn.ConvTranspose2d(4, 4, 2, stride=2), (1, 4, 4, 4), 16, "ConvTranspose2d"),
        (nn.Linear(16, 8), (1, 16), 1, "FactoredLinear"),
        (nn.Linear(8, 8), (1, 8), 1, "Linear"),
    ):
        dense, low = (svdp_(copy.deepcopy(layer), rank=4, execution=kind) for kind in ("dense", "low-rank"))
        counted = [_multiplications(kind, torch.randn(shape)) for kind in (low, dense)]
        spectral = spectral_of(low)
        assert spectral is not None
        assert [count / places for count in counted] == list(multiplications(low, spectral))
        assert (counted[0] < counted[1]) == expected.startswith("Factored")
        assert type(svdp_(layer, rank=4)).__name__ == f"Parametrized{expected}"


def _multiplications(layer: nn.Module, x: Tensor) -> int:
    """What torch counts, the making of weights and factors left out."""
    with torch.no_grad(), parametrize.cached():
        layer(x)
        with FlopCounterMode(display=False) as counter:
            layer(x)
    return counter.get_total_flops() // 2


def test_a_class_that_computes_something_else_is_never_factored() -> None:
    class Doubled(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:  # noqa: A002
            return 2 * super().forward(input)

    model = nn.Sequential(nn.Linear(32, 32), Doubled(32, 32))
    with pytest.raises(InvalidShape, match="Doubled is no layer of"):
        sttp_(model, rank=2, execution="low-rank")
    assert not any(parametrize.is_parametrized(layer) for layer in model)
    x = torch.randn(3, 32)
    expected = model(x)
    sttp_(model, rank=1000, bound=None)
    assert (model(x) - expected).abs().max() <= 1e-5
    assert type(svdp_(Doubled(32, 32), rank=2)).__name__ == "ParametrizedDoubled"


def test_a_model_is_folded_in_place_and_keeps_its_names_and_mode() -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Sequential(nn.ReLU(), nn.Conv2d(8, 4, 1)), nn.Flatten())
    sttp_(model, rank=2).eval()
    x = torch.randn(2, 8, 5, 5)
    expected = model(x)
    assert fold_(model) is model
    assert [type(m) for m in model[0]] == [nn.Conv2d, nn.Conv2d]
    assert not any(m.training or parametrize.is_parametrized(m) for m in model.modules())
    assert (model(x) - expected).abs().max() <= 1e-6
    assert isinstance(fold_(svdp_(nn.Linear(4, 4), rank=4)), nn.Linear)
    with pytest.raises(InvalidShape, match="no spectral weight"):
        folded(nn.Linear(3, 3))


def test_a_layer_without_its_parametrization_computes_as_before() -> None:
    layer, x = _case(2)
    svdp_(layer, rank=3, execution="low-rank")
    expected = layer(x)
    parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    assert (layer(x) - expected).abs().max() <= 1e-12


def test_autocast_computes_factors_in_full_and_layers_in_half() -> None:
    layer, x = _case(3, torch.float32)
    sttp_(layer, rank=4, execution="low-rank")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
        _, right = factors_of(layer)
    assert y.dtype == torch.bfloat16
    assert (right.mT @ right - torch.eye(right.shape[-1])).abs().max() <= 5e-6
    assert (y - layer(x)).abs().max() <= 0.05


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("apply_", [svdp_, sttp_])
@pytest.mark.parametrize("axes", [2, 3])
def test_folded_layers_run_under_onnx(apply_: type, axes: int, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    kind = (nn.Conv2d, nn.Conv3d)[axes - 2]
    model = nn.Sequential(kind(4, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 2**axes, 3)).eval()
    apply_(model, rank=3)
    x = torch.randn(1, 4, *(4,) * axes)
    expected = model(x).detach()
    torch.onnx.export(fold_(model), (x,), str(tmp_path / "model.onnx"), dynamo=True, verbose=False)
    session = runtime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert (torch.from_numpy(found) - expected).abs().max() <= 1e-5
