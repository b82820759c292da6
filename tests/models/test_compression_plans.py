"""Plans of compression: what they say, that it is so, and what is refused."""

import json

import pytest
import torch
from torch import nn
from torch.nn import functional

from benchmarks.cifar_resnet import block_convolutions, missing, pretrained
from models.compression.applying import choose_plans_, compress_, compressed, exchange_
from models.compression.budgets import BudgetConfig
from models.compression.forms import dense_kernel
from models.compression.planning import plan
from models.compression.plans import CompressionPlan, digest_of
from models.convolutions import kernel_of
from models.errors import InvalidConfig, InvalidShape, NonFinite
from models.rsdtr.candidates import RingConfig
from models.rsdtr.layers import FactorisedLayer
from models.sttp.apply import SpectralConfig


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv2(functional.relu(self.norm(self.conv1(x))))


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 12, 3, padding=1),
        Residual(12),
        nn.Conv2d(12, 24, 3, stride=2, padding=1, padding_mode="reflect"),
        nn.Conv2d(24, 24, 3, groups=24),
        nn.Conv2d(24, 16, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 32),
        nn.Linear(32, 2),
    )


EXAMPLE = torch.linspace(-1, 1, 2 * 10 * 10).reshape(1, 2, 10, 10)


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def unchanged(model: nn.Module, before: dict[str, torch.Tensor]) -> bool:
    now = model.state_dict()
    return list(now) == list(before) and all(torch.equal(now[name], before[name]) for name in now)


def test_each_layer_is_planned_or_left_for_a_reason() -> None:
    told = {layer.name: layer for layer in plan(network(), EXAMPLE, RingConfig(0.6)).layers}
    left = {name: layer.reason for name, layer in told.items() if layer.form is None}
    assert left == {"0": "stem", "3": "depthwise", "4": "1x1", "8": "head"}
    assert {name for name in told if name not in left} == {"1.conv1", "1.conv2", "2", "7"}
    assert all(0.3 < told[name].error <= 0.6 for name in told if name not in left)
    tight = plan(network(), EXAMPLE, RingConfig(0.01)).layers
    assert all(layer.form is None for layer in tight)
    assert "no gain" in {layer.name: layer for layer in tight}["1.conv1"].reason


def test_what_cannot_be_replaced_is_named() -> None:
    class Own(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).abs()

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own = Own(8, 8, 3)
            self.idle = nn.Conv2d(8, 8, 3)
            self.up = nn.ConvTranspose2d(8, 8, 3, stride=2)
            self.first, self.second = nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)
            self.second.weight = self.first.weight
            self.hooked = nn.Conv2d(8, 8, 3)
            self.hooked.register_forward_hook(lambda *_: None)
            self.normed = torch.nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 3))
            self.state = nn.GRU(8, 8, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.second(self.first(self.up(self.own(x), output_size=[30, 30])))
            return self.state(self.normed(self.hooked(x)).flatten(2).mT)[0]

    model = Odd()
    made = plan(model, torch.randn(1, 8, 16, 16), RingConfig(0.9), lambda *_: True)
    told = {layer.name: layer.reason for layer in made.layers}
    assert set(told) == {"own", "idle", "up", "first", "second", "hooked", "normed", "state"}
    assert "Own" in told["own"]
    assert "GRU" in told["state"]
    assert "hooks" in told["hooked"]
    assert "example input" in told["idle"]
    assert "more than its input" in told["up"]
    assert "second" in told["first"]
    assert "first" in told["second"]
    assert "parametrised" in told["normed"]
    single = nn.Conv2d(8, 8, 3)
    assert "nn.Sequential" in plan(single, torch.randn(1, 8, 9, 9), RingConfig(0.9)).layers[0].reason


def test_layers_whose_weights_are_read_by_others_stay() -> None:
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(16, 2, 64, batch_first=True)
    model = nn.Sequential(nn.Linear(16, 16), nn.TransformerEncoder(block, 1)).eval()
    x = torch.randn(1, 5, 16)
    made = plan(model, x, RingConfig(0.8), lambda *_: True)
    assert set(made.forms) == {"0"}
    told = {layer.name: layer.reason for layer in made.layers}
    assert "TransformerEncoderLayer reads" in told["1.layers.0.linear1"]
    with torch.no_grad():
        assert compressed(model, made)(x).shape == x.shape


def test_a_filter_decides_itself() -> None:
    made = plan(network(), EXAMPLE, RingConfig(0.8), lambda layer, name: name in ("4", "2"))
    assert set(made.forms) == {"2", "4"}
    assert {layer.name: layer.reason for layer in made.layers}["1.conv1"] == "left out by the filter"


def test_a_layer_used_twice_is_replaced_once_and_counted_twice() -> None:
    torch.manual_seed(1)
    shared = nn.Conv2d(12, 12, 3, padding=1)
    model = nn.Sequential(nn.Conv2d(2, 12, 3), shared, nn.ReLU(), shared)
    made = plan(model, torch.randn(1, 2, 8, 8), RingConfig(0.7))
    told = {layer.name: layer for layer in made.layers}
    assert set(told) == {"0", "1"}
    assert told["1"].before.macs == 2 * 36 * 12 * 12 * 9
    compress_(model, made)
    assert model[1] is model[3]
    assert isinstance(model[1], FactorisedLayer)
    assert sum(own.numel() for own in model.parameters()) == made.parameters_after


@pytest.mark.parametrize(
    "config",
    [
        RingConfig(0.7),
        RingConfig(0.7, reference=True),
        SpectralConfig("svdp", rank=4),
        SpectralConfig(rho=0.3),
    ],
)
def test_a_plan_is_what_is_carried_out(config: RingConfig | SpectralConfig) -> None:
    dense = network()
    model, made = network(), plan(dense, EXAMPLE, config)
    assert compress_(model, made) is model
    assert made.pcr > 1.2
    assert sum(own.numel() for own in model.parameters()) == made.parameters_after
    for layer in made.layers:
        now = model.get_submodule(layer.name)
        assert sum(own.numel() for own in now.parameters()) == layer.after.parameters
        if layer.form is None:
            assert type(now).__name__ == layer.kind
            continue
        weight = kernel_of(dense.get_submodule(layer.name)).double()
        error = (weight - dense_kernel(now).double()).norm() / weight.norm()
        assert float(error) == pytest.approx(layer.error, rel=1e-4)
    names = {name for name, _ in model.named_modules() if "parametrizations" not in name}
    assert names == {name for name, _ in dense.named_modules()}


def test_the_same_model_gives_the_same_plan_byte_for_byte() -> None:
    first, second = (plan(network(), EXAMPLE, BudgetConfig(pcr=1.6)) for _ in range(2))
    assert first.to_json() == second.to_json()
    assert str(first) == str(second)
    read = CompressionPlan.from_json(first.to_json())
    assert read == first
    assert read.to_json() == first.to_json()
    assert "1.conv1" in str(first)
    assert "stem" in str(first)
    with pytest.raises(InvalidConfig, match="version"):
        CompressionPlan.from_json(json.dumps({"version": 2}))
    with pytest.raises(InvalidConfig, match="JSON of a plan"):
        CompressionPlan.from_json("[1, 2]")


def test_planning_leaves_the_model_as_it_was() -> None:
    model = network().train()
    model[1].eval()
    before, modes = state(model), [module.training for module in model.modules()]
    plan(model, EXAMPLE, RingConfig(0.6))
    with pytest.raises(InvalidShape, match=r"0 \(Conv2d\)"):
        plan(model, torch.randn(1, 3, 10, 10), RingConfig(0.6))
    with pytest.raises(InvalidShape, match=r"2 \(Conv2d\)"):
        plan(model, torch.randn(1, 2, 1, 1), RingConfig(0.6))
    assert unchanged(model, before)
    assert modes == [module.training for module in model.modules()]
    assert not any(module._forward_pre_hooks for module in model.modules())
    lazy = nn.Sequential(nn.LazyConv2d(4, 3), nn.Conv2d(4, 4, 3))
    with pytest.raises(InvalidShape, match=r"0\.weight of the model has no values"):
        plan(lazy, EXAMPLE, RingConfig(0.6))
    with torch.no_grad():
        model[1].conv2.weight[0, 0, 1, 1] = float("nan")
    with pytest.raises(NonFinite, match=r"1\.conv2\.weight"):
        plan(model, EXAMPLE, RingConfig(0.6))


@pytest.mark.parametrize("pcr", [1.2, 1.5, 2.0])
def test_a_ratio_of_parameters_is_met_within_three_per_cent(pcr: float) -> None:
    made = plan(network(), EXAMPLE, BudgetConfig(pcr=pcr))
    assert pcr <= made.pcr <= 1.03 * pcr
    model = compressed(network(), made)
    total = sum(own.numel() for own in network().parameters())
    assert pcr <= total / sum(own.numel() for own in model.parameters()) <= 1.03 * pcr


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_macs_and_bytes_are_never_exceeded(share: float) -> None:
    dense = plan(network(), EXAMPLE, RingConfig(0.01))
    macs = int(share * dense.macs)
    made = plan(network(), EXAMPLE, BudgetConfig(macs=macs))
    assert 0.9 * macs < made.macs_executed <= macs
    assert made.macs_executed == made.macs_after
    limit = int(share * dense.bytes)
    by_bytes = plan(network(), EXAMPLE, BudgetConfig(bytes=limit))
    tensors = compressed(network(), by_bytes).state_dict().values()
    assert 0.95 * limit < by_bytes.bytes_after <= limit
    assert by_bytes.bytes_after == sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def test_a_budget_that_cannot_be_met_says_what_can() -> None:
    with pytest.raises(InvalidConfig, match=r"pcr = 50: must be at most (\d+\.\d+)") as refused:
        plan(network(), EXAMPLE, BudgetConfig(pcr=50))
    most = float(refused.value.allowed.split()[2].rstrip(","))
    assert plan(network(), EXAMPLE, BudgetConfig(pcr=most - 1e-3)).pcr >= most - 1e-3
    with pytest.raises(InvalidConfig, match="macs = 10: must be at least"):
        plan(network(), EXAMPLE, BudgetConfig(macs=10))
    with pytest.raises(InvalidConfig, match="bytes = 10: must be at least"):
        plan(network(), EXAMPLE, BudgetConfig(bytes=10))
    with pytest.raises(InvalidConfig, match="one of the three"):
        BudgetConfig()
    with pytest.raises(InvalidConfig, match="execution"):
        plan(network(), EXAMPLE, BudgetConfig(macs=10), execution="rebuild")
    assert plan(network(), EXAMPLE, BudgetConfig(pcr=1)).forms == {}


def test_compressing_is_idempotent_and_checks_the_weights() -> None:
    made = plan(network(), EXAMPLE, RingConfig(0.6))
    model = compress_(network(), made)
    layers, before = list(model.modules()), state(model)
    assert compress_(model, made) is model
    assert all(a is b for a, b in zip(layers, model.modules(), strict=True))
    assert unchanged(model, before)
    again = {layer.name: layer for layer in plan(model, EXAMPLE, RingConfig(0.6)).layers}
    assert again["2"].form is None
    assert again["2"].reason == "factorised already"
    other = network(seed=1)
    before = state(other)
    with pytest.raises(InvalidConfig, match="plan anew"):
        compress_(other, made)
    assert unchanged(other, before)
    with pytest.raises(InvalidShape, match=r"no layer 1\.conv1"):
        compress_(nn.Sequential(nn.Linear(2, 2)), made)


def test_a_copy_is_compressed_and_the_model_stays() -> None:
    model = network()
    before, made = state(model), plan(model, EXAMPLE, RingConfig(0.6))
    copy = compressed(model, made)
    assert unchanged(model, before)
    assert isinstance(copy[2], FactorisedLayer)
    assert digest_of(model) == made.digest != digest_of(copy)


def test_a_model_that_fails_half_way_is_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    before, made = state(model), plan(model, EXAMPLE, RingConfig(0.6))
    monkeypatch.setattr(Residual, "__setattr__", _refusing)
    with pytest.raises(RuntimeError, match="no conv2"):
        exchange_(model, {name: nn.Identity() for name in ("2", "1.conv1", "1.conv2")})
    with pytest.raises(RuntimeError, match="no conv2"):
        compress_(model, made)
    assert unchanged(model, before)


def _refusing(module: nn.Module, name: str, value: object) -> None:
    if name == "conv2" and not isinstance(value, nn.Conv2d):
        raise RuntimeError("no conv2")
    nn.Module.__setattr__(module, name, value)


def test_types_modes_and_frozen_weights_are_kept() -> None:
    model = network().double()
    model[1].eval()
    model[2].weight.requires_grad_(False)
    compress_(model, plan(model, EXAMPLE.double(), RingConfig(0.6)))
    assert not model[1].conv1.training
    assert model[2].training
    assert not model[2].core_in.requires_grad
    assert model[2].bias.requires_grad
    assert model[1].conv1.core_in.requires_grad
    assert model[1].conv1.core_in.dtype == torch.float64


def test_executions_by_the_clock_are_the_same_map() -> None:
    model = network().eval()
    compress_(model, plan(model, EXAMPLE, RingConfig(0.6), execution="fewest"))
    assert any(layer.plan != "rebuild" for layer in model.modules() if isinstance(layer, FactorisedLayer))
    with torch.no_grad():
        before = model(EXAMPLE)
        choices = choose_plans_(model, EXAMPLE, repeats=2)
        assert set(choices) == {"1.conv1", "1.conv2", "2", "7"}
        assert all(model.get_submodule(name).plan == choice.plan for name, choice in choices.items())
        torch.testing.assert_close(model(EXAMPLE), before, rtol=1e-4, atol=1e-5)


def test_a_spectral_bound_holds_after_import() -> None:
    model = network()
    compress_(model, plan(model, EXAMPLE, SpectralConfig("svdp", rank=3, bound=0.5)))
    largest = torch.linalg.matrix_norm(model[2].weight.detach().flatten(1), 2)
    assert float(largest) == pytest.approx(0.5, rel=2e-5)
    with pytest.raises(InvalidConfig, match="start"):
        plan(network(), EXAMPLE, SpectralConfig("svdp", rank=3, start="identity"))


@pytest.mark.skipif(missing() is not None, reason="the pretrained networks of ../shared are absent")
@pytest.mark.parametrize("pcr", [1.5, pytest.param(2.0, marks=pytest.mark.slow), 4.0])
def test_a_pretrained_network_meets_its_ratio_within_three_per_cent(pcr: float) -> None:
    network = pretrained("resnet20").eval()
    made = plan(network, torch.zeros(1, 3, 32, 32), BudgetConfig(pcr=pcr))
    assert pcr <= made.pcr <= 1.03 * pcr
    assert all(layer.after.macs <= layer.before.macs for layer in made.layers)
    assert {layer.name for layer in made.layers if layer.form} == set(block_convolutions(network))


def test_what_a_budget_leaves_goes_to_single_ranks() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(300, 400), nn.Linear(400, 1))
    total, one_rank = sum(own.numel() for own in model.parameters()), 300 + 400
    for pcr in (1.3, 1.6, 2.0, 3.3):
        made = plan(model, torch.zeros(1, 300), BudgetConfig(pcr=pcr, modes=()))
        spare = int(total / pcr) - (total - 300 * 400)
        assert made.forms["0"].ranks == (spare // one_rank,)


@pytest.mark.parametrize("stride", [1, 2])
def test_what_has_fewer_parameters_but_more_macs_stays_dense(stride: int) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 8, 3, stride=stride, padding=1)
    with torch.no_grad():
        product = torch.randn(8 * 3, 10) @ torch.randn(10, 8 * 3)
        layer.weight.copy_(product.reshape(8, 3, 8, 3).transpose(1, 2))
    model = nn.Sequential(nn.Conv2d(1, 8, 1), layer)
    made = plan(model, torch.zeros(1, 1, 16, 16), RingConfig(1e-3))
    told = {planned.name: planned for planned in made.layers}["1"]
    if stride == 1:
        assert told.form is not None
        assert (told.form.ranks, told.form.late) == ((10,), (0,))
    else:
        assert told.form is None
        assert told.reason.startswith("no gain")


@pytest.mark.parametrize("config", [RingConfig(0.5), BudgetConfig(pcr=1.5), SpectralConfig("svdp", rank=2)])
def test_planning_is_watched_layer_by_layer_and_ended_by_what_watches(
    config: RingConfig | BudgetConfig | SpectralConfig,
) -> None:
    model, seen = network(), list[tuple[str, int, int | None]]()
    before = state(model)
    made = plan(model, EXAMPLE, config, report=lambda *told: seen.append(told))
    assert made == plan(model, EXAMPLE, config)
    searched = [told for told in seen if told[0] == "searching"]
    assert seen[len(searched) :] == [("factorising", k, len(made.layers)) for k in range(len(made.layers))]
    assert [done for _, done, _ in searched] == list(range(len(searched)))
    assert (len(searched) > 0) == (not isinstance(config, SpectralConfig))

    def ending(phase: str, done: int, total: int | None) -> None:
        if len(ended) == 2:
            raise KeyboardInterrupt
        ended.append(phase)

    ended: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        plan(model, EXAMPLE, config, report=ending)
    assert unchanged(model, before)
