"""Averages anew from inputs alone, plans by a score, and compressed models as plain ones."""

import pytest
import torch
from torch import nn

from models.compression.applying import compress_, compressed
from models.compression.folding import fold_
from models.compression.planning import plan
from models.compression.recalibration import recalibrate_
from models.compression.tolerance import plan_within_drop
from models.errors import InvalidConfig, InvalidShape, NonFinite
from models.rsdtr.candidates import RingConfig
from models.sttp.apply import SpectralConfig


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv3d(1, 8, 3),
        nn.BatchNorm3d(8),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Conv3d(8, 12, 3, bias=False),
        nn.BatchNorm3d(12, momentum=0.3),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Linear(12, 3),
    )


def batches(count: int = 3, size: int = 4) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(size, 1, 8, 8, 8, generator=generator) + 0.5 for _ in range(count)]


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_averages_are_the_means_over_the_batches_and_nothing_else_changes() -> None:
    model = network().train()
    model[1].eval()
    before, modes = state(model), [module.training for module in model.modules()]
    given = batches()
    assert recalibrate_(model, iter(given)) is model
    with torch.no_grad():
        made = [model[0](batch) for batch in given]
        mean = torch.stack([x.mean((0, 2, 3, 4)) for x in made]).mean(0)
        variance = torch.stack([x.transpose(0, 1).flatten(1).var(1) for x in made]).mean(0)
    torch.testing.assert_close(model[1].running_mean, mean)
    torch.testing.assert_close(model[1].running_var, variance)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {
        f"{layer}.{name}"
        for layer in (1, 5)
        for name in ("running_mean", "running_var", "num_batches_tracked")
    }
    assert [module.training for module in model.modules()] == modes
    assert (model[1].momentum, model[5].momentum) == (0.1, 0.3)


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ([], InvalidShape, "no batch"),
        ([*batches(1), torch.randn(4, 2, 8, 8, 8)], InvalidShape, r"0 \(Conv3d\)"),
        ([*batches(1), torch.full((4, 1, 8, 8, 8), float("nan"))], NonFinite, "calibration batch 1"),
    ],
)
def test_a_calibration_set_that_does_not_fit_leaves_the_model_as_it_was(
    given: list[torch.Tensor], error: type[Exception], words: str
) -> None:
    model = network().train()
    before = state(model)
    with pytest.raises(error, match=words):
        recalibrate_(model, given)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert (model[1].momentum, model[5].momentum) == (0.1, 0.3)
    assert all(module.training for module in model.modules())


def test_recalibration_undoes_a_shift_that_compression_makes() -> None:
    model = network().eval()
    recalibrate_(model, batches())
    compress_(model, plan(model, batches()[0][:1], RingConfig(0.9)))
    outputs: list[torch.Tensor] = []
    model[5].register_forward_hook(lambda *given: outputs.append(given[2].detach()))
    for _ in range(2):
        with torch.no_grad():
            model(torch.cat(batches()))
        recalibrate_(model, batches())
    shifts = [float(made.mean((0, 2, 3, 4)).abs().max()) for made in (outputs[0], outputs[4])]
    assert shifts[1] < 0.02 < shifts[0]


@pytest.mark.parametrize(
    "config", [RingConfig(0.7), SpectralConfig("svdp", rank=4), SpectralConfig("sttp", rank=4)]
)
def test_a_folded_model_is_plain_and_the_same_map(config: RingConfig | SpectralConfig) -> None:
    model = network().eval()
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    made = plan(model, batches()[0], config)
    assert made.forms
    compress_(model, made)
    x = batches()[0]
    with torch.no_grad():
        before = model(x)
        assert fold_(model) is model
        torch.testing.assert_close(model(x), before, rtol=1e-5, atol=1e-5)
    assert {name: value.shape for name, value in model.state_dict().items()} == shapes
    assert type(model[4]) is nn.Conv3d
    layers = list(model)
    assert all(a is b for a, b in zip(fold_(model), layers, strict=True))


def test_the_coarsest_plan_within_a_drop_is_taken() -> None:
    model = network().eval()
    recalibrate_(model, batches())
    x = torch.cat(batches())
    with torch.no_grad():
        targets = model(x)

    def score(candidate: nn.Module) -> float:
        with torch.no_grad():
            return -float((candidate.eval()(x) - targets).square().mean().sqrt())

    before = state(model)
    plans = [plan_within_drop(model, x[:1], score, drop, batches=batches()) for drop in (1e-6, 0.02, 0.08)]
    drops = [-score(recalibrate_(compressed(model, made), batches())) for made in plans]
    assert all(drop <= limit for drop, limit in zip(drops, (1e-6, 0.02, 0.08), strict=True))
    assert 1 == plans[0].pcr < plans[1].pcr < plans[2].pcr
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(InvalidConfig, match="max_drop = -1"):
        plan_within_drop(model, x[:1], score, -1)
    scores = iter([1.0, 0.25])
    with pytest.raises(InvalidConfig, match=r"at least 0\.75"):
        plan_within_drop(model, x[:1], lambda _: next(scores), 0.5)


@pytest.mark.parametrize(
    ("layers", "shape"),
    [
        ([nn.Conv1d(6, 12, 5, stride=2, padding=2), nn.Conv1d(12, 12, 3, groups=2)], (2, 6, 24)),
        ([nn.Conv3d(4, 8, 3, dilation=(1, 2, 1), padding=2, padding_mode="circular")], (1, 4, 7, 7, 7)),
        ([nn.ConvTranspose3d(8, 6, 3, stride=2, output_padding=1, groups=2)], (1, 8, 3, 3, 3)),
        ([nn.Conv2d(4, 8, (3, 5), padding="same"), nn.ConvTranspose2d(8, 8, 3)], (2, 4, 9, 9)),
        ([nn.Linear(12, 20), nn.Linear(20, 8)], (2, 5, 12)),
    ],
)
@pytest.mark.parametrize("execution", ["rebuild", "fewest"])
def test_every_kind_of_layer_is_compressed_to_the_map_of_its_folded_kernel(
    layers: list[nn.Module], shape: tuple[int, ...], execution: str
) -> None:
    model = nn.Sequential(*layers).double().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, dtype=torch.float64, generator=generator))
    x = torch.randn(shape, dtype=torch.float64, generator=generator)
    made = plan(model, x, RingConfig(0.9), lambda *_: True, execution=execution)
    assert len(made.forms) == len(layers)
    assert (made.macs_executed < made.macs) == (execution == "fewest")
    compact = compressed(model, made)
    with torch.no_grad():
        answer = compact(x)
        torch.testing.assert_close(fold_(compact)(x), answer, rtol=1e-11, atol=1e-11)
