"""Factorised layers: every plan is the convolution with the rebuilt kernel, in every geometry."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from test_rsdtr_rings import normal
from torch import nn

from models.convolutions import Geometry, geometry_of, kernel_of
from models.errors import InvalidConfig, InvalidShape, NonFinite
from models.rsdtr.candidates import RingConfig
from models.rsdtr.factorise import factorised
from models.rsdtr.layers import FactorisedLayer, LowRankConv, LowRankLinear, RingConv
from models.rsdtr.low_rank import LowRankShape
from models.rsdtr.plans import choose_plan_
from models.rsdtr.ring import RingShape, TensorRing
from models.rsdtr.search import groupings
from models.rsdtr.steps import ring_steps

LAYERS: dict[str, nn.Module] = {
    "1d": nn.Conv1d(4, 6, 3, stride=2, padding=1),
    "2d": nn.Conv2d(4, 6, 3, padding=1),
    "2d, stride 2": nn.Conv2d(4, 6, 3, stride=2, padding=1),
    "2d, anisotropic": nn.Conv2d(4, 6, (3, 2), stride=(1, 2), padding=(2, 0), dilation=(1, 3)),
    "2d, same": nn.Conv2d(4, 6, (3, 4), padding="same", dilation=(2, 1)),
    "2d, reflect": nn.Conv2d(4, 6, 3, stride=(2, 1), padding=(1, 2), padding_mode="reflect"),
    "2d, circular": nn.Conv2d(4, 6, (3, 5), padding="same", padding_mode="circular", bias=False),
    "2d, groups": nn.Conv2d(8, 6, 3, padding=1, groups=2),
    "2d, transposed": nn.ConvTranspose2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), output_padding=(1, 0)),
    "2d, transposed, groups": nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, groups=2, dilation=(1, 2)),
    "3d": nn.Conv3d(4, 3, 3, padding=(1, 0, 1)),
    "3d, mixed": nn.Conv3d(4, 6, (3, 2, 3), stride=(2, 1, 2), padding=1, dilation=(1, 2, 1), groups=2),
    "3d, replicate": nn.Conv3d(3, 4, (2, 3, 3), padding=1, padding_mode="replicate"),
    "3d, transposed": nn.ConvTranspose3d(4, 3, (3, 2, 3), stride=(1, 2, 2), padding=1),
}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6}
SPATIAL = (9, 7, 8)


def ring_layers(layer: nn.Module) -> list[RingConv]:
    """Rings of every grouping, rotated so that the inputs' core has neighbours on both sides and on one."""
    geometry, made = geometry_of(layer), []
    for modes in groupings(geometry.block_shape):
        for shift in range(len(modes)):
            spread = tuple(modes[(shift + 2 * k) % len(modes)] for k in range(len(modes)))
            turned = (*modes[shift:], *modes[:shift])
            for order in {turned, spread if len(set(spread)) == len(modes) else turned[::-1]}:
                ranks = tuple(2 + k % 3 for k in range(len(order)))
                shape = RingShape(geometry.block_shape, order, ranks)
                cores = tuple(
                    normal(geometry.groups, left, n, right, seed=left + 7 * n)
                    for n, (left, right) in zip(shape.lengths, shape.bonds, strict=True)
                )
                ring = TensorRing(shape, cores).balanced()
                made.append(RingConv(geometry, ring, normal(geometry.outputs)))
    return made


def low_rank_layers(layer: nn.Module) -> list[LowRankConv]:
    geometry, made = geometry_of(layer), []
    for late in [(), (0,), tuple(geometry.axes)]:
        shape = LowRankShape(geometry.block_shape, late, 3)
        second, first = (
            normal(geometry.groups * sizes[0], *sizes[1:]) for sizes in (shape.out_shape, shape.in_shape)
        )
        made.append(LowRankConv(geometry, shape, (second, first), normal(geometry.outputs)))
    return made


def input_of(geometry: Geometry, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return normal(2, geometry.inputs, *SPATIAL[: len(geometry.kernel)], seed=5).to(dtype)


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    assert found.shape == wanted.shape
    return float(((found - wanted).abs().max() / wanted.abs().max()).detach())


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", list(LAYERS))
def test_every_plan_is_the_convolution_with_the_rebuilt_kernel(name: str, dtype: torch.dtype) -> None:
    tried = set()
    for made in (*ring_layers(LAYERS[name]), *low_rank_layers(LAYERS[name])):
        made.to(dtype)
        x = input_of(made.geometry, dtype)
        with torch.no_grad():
            wanted = made.folded()(x)
            for plan in made.plans:
                made.plan = plan
                assert relative(made(x), wanted) <= TOLERANCE[dtype]
                tried.add((type(made), plan))
    assert {(RingConv, "rebuild"), (RingConv, "separable"), (LowRankConv, "separable")} <= tried
    assert len(LAYERS[name].kernel_size) == 1 or (RingConv, "merged") in tried


def test_all_interleavings_of_both_sides_are_one_map() -> None:
    geometry = geometry_of(LAYERS["3d"])
    shape = RingShape(geometry.block_shape, ((2,), (1,), (3,), (4,), (0,)), (2, 3, 2, 4, 3))
    cores = tuple(
        normal(1, left, n, right) for n, (left, right) in zip(shape.lengths, shape.bonds, strict=True)
    )
    made = RingConv(geometry, TensorRing(shape, cores))
    x = input_of(geometry)
    wanted = made.folded()(x)
    for order in [(0, 1, 1), (1, 0, 1), (1, 1, 0)]:
        made._steps["separable"] = ring_steps(shape, False, order)
        assert relative(made.stepwise(x, "separable"), wanted) <= 1e-12


@pytest.mark.parametrize("name", ["2d, groups", "3d", "2d, transposed"])
def test_macs_and_activations_are_those_of_the_convolutions_that_run(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run: list[tuple[int, int]] = []
    whole = Geometry.convolved

    def counted(self: Geometry, x: Any, kernel: Any, bias: Any = None, axes: Any = None) -> torch.Tensor:
        y = whole(self, x, kernel, bias, axes)
        places = (x if self.transposed else y)[:, 0].numel()
        run.append((places * kernel.numel(), x.numel() + y.numel()))
        return y

    monkeypatch.setattr(Geometry, "convolved", counted)
    for made in (*ring_layers(LAYERS[name]), *low_rank_layers(LAYERS[name])):
        x = input_of(made.geometry)[:1]
        for plan in made.plans:
            run.clear()
            made.plan = plan
            made(x)
            cost = made.cost(tuple(x.shape[2:]))
            assert cost.macs == sum(macs for macs, _ in run)
            assert cost.activation == max(numbers for _, numbers in run)


@pytest.mark.parametrize("plan", ["rebuild", "merged", "separable"])
def test_gradients_of_factors_bias_and_input(plan: str) -> None:
    layer = nn.Conv2d(2, 2, (2, 3), stride=(2, 1), padding=1, groups=1)
    (made,) = [made for made in ring_layers(layer) if made.shape.modes == ((2,), (3,), (0,), (1,))][:1]
    made.plan = plan
    names = [name for name, _ in made.named_parameters()]
    assert {"bias", "core_in", "core_out", "core_spatial_0", "core_spatial_1"} == set(names)
    values = tuple(parameter.detach().requires_grad_() for _, parameter in made.named_parameters())

    def given(x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(made, dict(zip(names, parameters, strict=True)), (x,))

    x = normal(1, 2, 4, 3).requires_grad_()
    assert torch.autograd.gradcheck(given, (x, *values))


def trained_like(layer: nn.Module) -> nn.Module:
    """The same layer with a kernel of decaying entries."""
    layer = copy.deepcopy(layer)
    with torch.no_grad():
        layer.weight.copy_(normal(*layer.weight.shape))
        for axis, size in enumerate(layer.weight.shape):
            fall = torch.arange(1, size + 1) ** -1.0
            layer.weight.mul_(fall.reshape(*(size if k == axis else 1 for k in range(layer.weight.ndim))))
    return layer


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("name", list(LAYERS))
def test_a_factorised_layer_has_a_kernel_within_the_error(name: str, reference: bool) -> None:
    layer = trained_like(LAYERS[name]).eval()
    made = factorised(layer, RingConfig(0.3, reference=reference))
    assert made is not None
    assert not made.training
    with torch.no_grad():
        kernel = kernel_of(layer)
        assert float((made.kernel() - kernel).norm() / kernel.norm()) <= 0.3 + 1e-6
    assert made.kernel().dtype == torch.float32
    assert reference or made.storage < kernel.numel()
    assert (made.bias is None) == (layer.bias is None)
    assert made.bias is None or torch.equal(made.state_dict()["bias"], layer.bias)
    assert isinstance(made.folded(), type(layer))
    assert geometry_of(made.folded()) == geometry_of(layer)


def test_a_linear_layer_is_two_of_the_smallest_rank() -> None:
    layer = nn.Linear(20, 12, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(normal(12, 3) @ normal(3, 20))
    made = factorised(layer, RingConfig(1e-5))
    assert isinstance(made, LowRankLinear)
    assert (made.core_out.shape, made.core_in.shape) == ((12, 3), (3, 20))
    x = normal(5, 4, 20)
    for plan in made.plans:
        made.plan = plan
        torch.testing.assert_close(made(x), layer(x), rtol=1e-10, atol=1e-10)
    assert (made.cost(()).macs, made.cost((), "rebuild").macs) == (3 * 32, 240)


def test_a_pointwise_layer_with_a_stride_is_two_convolutions() -> None:
    layer = trained_like(nn.Conv2d(12, 16, 1, stride=2))
    made = factorised(layer, RingConfig(0.3))
    assert isinstance(made, LowRankConv)
    x = input_of(made.geometry, torch.float32)
    made.plan = "separable"
    assert relative(made(x), made.folded()(x)) <= 2e-6


def ring_layer() -> RingConv:
    return ring_layers(LAYERS["2d"])[-1]


def test_the_kernel_is_kept_in_evaluation_until_a_factor_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    made, calls = ring_layer().eval(), []
    kernel = RingConv.kernel
    monkeypatch.setattr(RingConv, "kernel", lambda self: calls.append(1) or kernel(self))
    x = input_of(made.geometry)
    with torch.no_grad():
        first = made(x)
        assert torch.equal(made(x), first)
        assert len(calls) == 1
        made.core_in.mul_(2)
        assert relative(made(x) - made.bias[:, None, None], 2 * (first - made.bias[:, None, None])) < 1e-12
        assert len(calls) == 2
        made.load_state_dict({name: 0 * value for name, value in made.state_dict().items()})
        assert not made(x).any()
        assert len(calls) == 3
        made.train()
        made(x), made(x)
        assert len(calls) == 5
    made.eval()(x).sum().backward()
    assert made.core_in.grad is not None
    with torch.inference_mode():
        made(x)
    for parameter in made.parameters():
        parameter.requires_grad_(False)
    x.requires_grad_()
    made(x).sum().backward()
    assert x.grad is not None


def test_copies_pickles_and_moves_give_the_same() -> None:
    made = ring_layer().eval()
    x = input_of(made.geometry)
    with torch.no_grad():
        wanted = made(x)
        for again in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
            assert again._kept._kernel is None
            assert torch.equal(again(x), wanted)
        assert made._kept._kernel is not None
        made.to(torch.float32).to(torch.float64)
        assert made._kept._kernel is None
        assert 0 < relative(made(x), wanted) < 1e-5
        assert made.to(torch.float32)(x.float()).dtype == torch.float32
        assert relative(made(x.float()).double(), wanted) < 1e-5


@pytest.mark.parametrize("plan", ["rebuild", "merged", "separable"])
def test_one_sample_or_none(plan: str) -> None:
    made = ring_layers(LAYERS["2d"])[-1]
    made.plan = plan if plan in made.plans else "rebuild"
    x = input_of(made.geometry)
    torch.testing.assert_close(made(x[0]), made(x)[0], rtol=1e-12, atol=1e-12)
    assert made(x[:0]).shape == (0, *made(x).shape[1:])


@pytest.mark.parametrize("plan", ["rebuild", "separable"])
def test_a_factorised_layer_can_be_exported(plan: str) -> None:
    made = ring_layer().eval()
    made.plan = plan
    x = input_of(made.geometry)
    exported = torch.export.export(made, (x,)).module()
    assert relative(exported(x), made(x)) <= 1e-12


@pytest.mark.parametrize("plan", ["rebuild", "separable"])
def test_a_factorised_layer_compiles_without_a_break(plan: str) -> None:
    made = ring_layer().eval()
    made.plan = plan
    x = input_of(made.geometry)
    with torch.no_grad():
        compiled = torch.compile(made, backend="eager", fullgraph=True)
        assert relative(compiled(x), made(x)) <= 1e-12


def slow_rebuild(layer: FactorisedLayer, factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"rebuild": 1.0, "merged": factor, "separable": 2 * factor}
    monkeypatch.setattr("models.rsdtr.plans._seconds", lambda made, x: times[made.plan])


def test_the_fastest_plan_within_the_activation_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    made = next(m for m in ring_layers(LAYERS["3d"]) if len(m.plans) == 3).train()
    x = input_of(made.geometry)
    dense = made.geometry.activation(tuple(x.shape[2:]))
    assert min(made.cost(tuple(x.shape[2:]), plan).activation for plan in ("merged", "separable")) > dense
    strict = choose_plan_(made, x)
    assert (strict.plan, made.plan, strict.seconds) == ("rebuild", "rebuild", {})
    assert all(numbers > dense for numbers in strict.refused.values())
    assert set(strict.refused) == {"merged", "separable"}
    for factor, plan in [(0.5, "merged"), (0.99, "rebuild"), (2.0, "rebuild")]:
        slow_rebuild(made, factor, monkeypatch)
        assert choose_plan_(made, x, max_activation=100).plan == made.plan == plan
    assert made.training


def test_plans_are_timed_by_running_them() -> None:
    made = ring_layer()
    choice = choose_plan_(made, input_of(made.geometry), max_activation=100, repeats=2)
    assert set(choice.seconds) == set(made.plans)
    assert all(0 < seconds < 60 for seconds in choice.seconds.values())
    assert choice.plan == made.plan


def test_bad_factors_plans_and_kernels_are_refused() -> None:
    made = ring_layer()
    with pytest.raises(InvalidConfig, match="one of rebuild"):
        made.plan = "fast"
    with pytest.raises(InvalidConfig, match="max_activation"):
        choose_plan_(made, input_of(made.geometry), max_activation=0.5)
    with pytest.raises(InvalidShape, match="is none of"):
        RingConv(geometry_of(nn.Conv2d(4, 7, 3)), made.ring())
    shared = TensorRing(
        RingShape((6, 4, 3, 3), ((0, 1), (2, 3)), (2, 3)), (normal(1, 2, 24, 3), normal(1, 3, 9, 2))
    )
    with pytest.raises(InvalidShape, match="no core of its own"):
        RingConv(made.geometry, shared)
    with pytest.raises(InvalidShape, match="are none of"):
        LowRankConv(made.geometry, LowRankShape((6, 4, 3, 3), (), 2), (normal(6, 3), normal(3, 4, 3, 3)))
    with pytest.raises(InvalidShape, match="no factorisation"):
        LowRankShape((6, 4, 3), (1,), 2)
    layer = nn.Conv2d(2, 2, 3)
    with torch.no_grad():
        layer.weight.fill_(float("inf"))
    with pytest.raises(NonFinite, match=r"encoder\.first"):
        factorised(layer, RingConfig(), name="encoder.first")
    with pytest.raises(InvalidShape, match="no convolution"):
        factorised(nn.BatchNorm2d(3), RingConfig())
