"""Compressed models in PyTorch's hands: exported, compiled, under ONNX, descended, copied, cast, pruned."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from models.compression.applying import compress_
from models.compression.folding import fold_
from models.compression.planning import plan
from models.compression.plans import CompressionPlan
from models.rsdtr.candidates import RingConfig
from models.rsdtr.layers import FactorisedLayer, LowRankConv, RingConv
from models.sttp.apply import SpectralConfig
from models.sttp.parametrizations import spectral_of

CONVOLUTIONS = {2: nn.Conv2d, 3: nn.Conv3d}
NORMS = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
CONFIGS = {
    "ring": RingConfig(0.6, low_rank=False),
    "low-rank": RingConfig(0.6, modes=()),
    "svdp": SpectralConfig("svdp", rank=3),
    "sttp": SpectralConfig("sttp", rank=3),
}
QUICK = [pytest.param(kind, marks=[pytest.mark.slow] * (kind in ("low-rank", "svdp"))) for kind in CONFIGS]


class Block(nn.Module):
    """Two convolutions beside a shortcut of one voxel."""

    def __init__(self, axes: int, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        kind, norm = CONVOLUTIONS[axes], NORMS[axes]
        self.conv1, self.bn1 = kind(inputs, outputs, 3, stride=stride, padding=1, bias=False), norm(outputs)
        self.conv2, self.bn2 = kind(outputs, outputs, 3, padding=1, bias=False), norm(outputs)
        self.short = kind(inputs, outputs, 1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + self.short(x))


def residual(axes: int) -> nn.Sequential:
    torch.manual_seed(axes)
    pool = {2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}[axes](1)
    stem = CONVOLUTIONS[axes](1, 6, 3, padding=1)
    blocks = (Block(axes, 6, 8, 2), Block(axes, 8, 10, 1))
    return nn.Sequential(stem, *blocks, pool, nn.Flatten(), nn.Linear(10, 12), nn.Linear(12, 2)).eval()


def volumes(axes: int, count: int = 2) -> Tensor:
    return torch.randn(count, 1, *(6,) * axes, generator=torch.Generator().manual_seed(axes))


@cache
def planned(axes: int, kind: str, execution: str) -> CompressionPlan:
    config = CONFIGS[kind]
    rings = {"execution": execution} if isinstance(config, RingConfig) else {}
    return plan(residual(axes), volumes(axes, 1), config, **rings)


def compact(axes: int, kind: str, execution: str = "rebuild") -> nn.Sequential:
    model, made = residual(axes), planned(axes, kind, execution)
    compress_(model, made)
    expected = {"ring": RingConv, "low-rank": LowRankConv}.get(kind)
    layers = [model.get_submodule(name) for name in made.forms]
    assert len(layers) >= 3
    assert any(spectral_of(layer) if expected is None else isinstance(layer, expected) for layer in layers)
    return model


def some(*quick: tuple[int, str]) -> list[Any]:
    """All axes and kinds; but for a few they are slow."""
    every = [(axes, kind) for axes in CONVOLUTIONS for kind in CONFIGS]
    return [pytest.param(*one, marks=[pytest.mark.slow] * (one not in quick)) for one in every]


def difference(one: Tensor, other: Tensor) -> float:
    assert one.shape == other.shape
    return float((one - other).detach().abs().max())


@pytest.fixture
def compiling() -> Iterator[None]:
    """Compilers' own warnings are none of ours."""
    torch.compiler.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    torch.compiler.reset()


@pytest.mark.usefixtures("compiling")
@pytest.mark.parametrize(("axes", "kind"), some((3, "ring")))
def test_a_whole_network_is_exported_and_folded_for_onnx(axes: int, kind: str, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    model, x = compact(axes, kind), volumes(axes)
    with torch.no_grad():
        wanted = model(x)
        exported = torch.export.export(model, (x,)).module()
        assert difference(exported(x), wanted) <= 1e-6
        folded = fold_(copy.deepcopy(model))
        torch.onnx.export(folded, (x,), str(tmp_path / "model.onnx"), dynamo=True, verbose=False)
    session = runtime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert difference(torch.from_numpy(found), wanted) <= 1e-5


@pytest.mark.usefixtures("compiling")
@pytest.mark.parametrize(("axes", "kind"), some())
def test_a_whole_network_compiles_without_a_break(axes: int, kind: str) -> None:
    model, x = compact(axes, kind, "fewest"), volumes(axes)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert difference(compiled(x), model(x)) <= 1e-6
    names = [name for name, _ in model.named_parameters()]
    ours, theirs = (
        torch.autograd.grad(given(x).square().sum(), list(model.parameters())) for given in (model, compiled)
    )
    for name, one, other in zip(names, ours, theirs, strict=True):
        assert difference(one, other) <= 1e-4 * max(1.0, float(one.abs().max())), name


OPTIMISERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda own: torch.optim.SGD(own, 0.02, momentum=0.9, weight_decay=1e-4),
    "adamw": lambda own: torch.optim.AdamW(own, 5e-3),
    "rmsprop": lambda own: torch.optim.RMSprop(own, 1e-3),
}


@pytest.mark.parametrize(
    ("kind", "optimiser"),
    [
        pytest.param(kind, name, marks=[pytest.mark.slow] * ((kind, name) != ("sttp", "sgd")))
        for kind in CONFIGS
        for name in OPTIMISERS
    ],
)
def test_optimisers_descend_and_go_on_from_their_states(kind: str, optimiser: str) -> None:
    model, x = compact(2, kind).train(), volumes(2, 8)
    y = torch.randn(8, 2, generator=torch.Generator().manual_seed(5))

    def stepped(given: nn.Module, steps: torch.optim.Optimizer) -> float:
        steps.zero_grad()
        loss = (given(x) - y).square().mean()
        loss.backward()
        steps.step()
        return float(loss.detach())

    steps = OPTIMISERS[optimiser](model.parameters())
    losses = [stepped(model, steps) for _ in range(12)]
    assert losses[-1] < losses[0]
    again = compact(2, kind).train()
    again.load_state_dict(pickle.loads(pickle.dumps(model.state_dict())), strict=True)
    resumed = OPTIMISERS[optimiser](again.parameters())
    resumed.load_state_dict(copy.deepcopy(steps.state_dict()))
    assert [stepped(model, steps) for _ in range(2)] == [stepped(again, resumed) for _ in range(2)]


@pytest.mark.parametrize("kind", QUICK)
def test_copies_casts_and_states_compute_the_same(kind: str) -> None:
    model, x = compact(3, kind), volumes(3)
    with torch.no_grad():
        wanted = model(x)
        copied = copy.deepcopy(model)
        assert torch.equal(copied(x), wanted)
        assert not {id(p) for p in copied.parameters()} & {id(p) for p in model.parameters()}
        wide = copy.deepcopy(model).to(torch.float64)
        assert {p.dtype for p in wide.parameters()} == {torch.float64}
        assert 0 < difference(wide(x.double()), wanted.double()) <= 1e-5
        assert torch.equal(copied.to("cpu")(x), wanted)
        for parameter in copied.parameters():
            parameter.mul_(0.9)
        assert not torch.equal(copied(x), wanted)
        copied.load_state_dict(pickle.loads(pickle.dumps(model.state_dict())), strict=True)
        assert torch.equal(copied(x), wanted)
        with parametrize.cached():
            assert torch.equal(model(x), wanted)
            assert torch.equal(model(x), wanted)
        assert model.to("meta")(x.to("meta")).shape == wanted.shape


@pytest.mark.parametrize("kind", QUICK)
def test_parameters_of_a_layer_are_pruned_and_made_permanent(kind: str) -> None:
    model, x = compact(2, kind), volumes(2)
    layer = next(m for m in model.modules() if isinstance(m, FactorisedLayer) or spectral_of(m) is not None)
    module: Any = layer
    name = "core_in"
    if spectral_of(layer) is not None:
        module, name = layer.parametrizations.weight, "original1"
    before = model(x)
    prune.l1_unstructured(module, name, amount=0.5)
    masked = model(x)
    assert difference(masked, before) > 0
    assert float((getattr(module, name) == 0).float().mean()) == pytest.approx(0.5, abs=0.1)
    masked.square().sum().backward()
    gradient = getattr(module, f"{name}_orig").grad
    assert torch.equal(gradient != 0, (gradient != 0) & (getattr(module, f"{name}_mask") != 0))
    prune.remove(module, name)
    with torch.no_grad():
        assert difference(model(x), masked) <= 1e-6


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A process group of one, that meets in a file."""
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        yield
        torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("kind", QUICK)
def test_distributed_training_steps_and_keeps_its_state(kind: str) -> None:
    model, x = compact(2, kind).train(), volumes(2, 4)
    single = copy.deepcopy(model)
    together = nn.parallel.DistributedDataParallel(model)
    for given in (together, single):
        optimiser = torch.optim.SGD(given.parameters(), 0.05)
        for _ in range(2):
            optimiser.zero_grad()
            given(x).square().sum().backward()
            optimiser.step()
    ours, theirs = single.state_dict(), together.state_dict()
    assert [f"module.{name}" for name in ours] == list(theirs)
    assert all(difference(value, theirs[f"module.{name}"]) <= 1e-6 for name, value in ours.items())
    fresh = compact(2, kind).train()
    fresh.load_state_dict(together.module.state_dict(), strict=True)
    assert torch.equal(fresh.eval()(x), together.module.eval()(x))
