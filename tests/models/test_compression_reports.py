"""What a report says of two models: counts, errors, agreement, a metric with its interval."""

import pytest
import torch
from torch import Tensor, nn

from models.compression.applying import compressed
from models.compression.files import to_bytes
from models.compression.planning import plan
from models.compression.reports import agreement, bootstrapped, report
from models.errors import InvalidConfig, InvalidShape, NonFinite
from models.rsdtr.candidates import RingConfig
from models.sttp.apply import SpectralConfig

EXAMPLE = torch.linspace(-1, 1, 2 * 100).reshape(1, 2, 10, 10)


def network() -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Conv2d(2, 12, 3),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 16, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 24),
        nn.Linear(24, 1),
    )


def rmse(answers: Tensor, targets: Tensor) -> float:
    return float((answers - targets).square().mean().sqrt())


def given() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(4)
    return [
        (torch.randn(5, 2, 10, 10, generator=generator), torch.randn(5, 1, generator=generator))
        for _ in range(4)
    ]


@pytest.mark.parametrize("config", [RingConfig(0.6), SpectralConfig("svdp", rank=4)])
def test_a_report_says_what_is_saved_and_what_changes(config: RingConfig | SpectralConfig) -> None:
    before = network().train()
    made = plan(before, EXAMPLE, config)
    after = compressed(before, made)
    found = report(before, after, EXAMPLE, given(), rmse, plan=made, repeats=3)
    assert found.parameters == (made.parameters, made.parameters_after)
    assert found.pcr == pytest.approx(made.pcr)
    assert found.macs == (made.macs, made.macs_after)
    assert found.fcr == pytest.approx(made.macs / made.macs_after)
    assert found.fcr_executed == pytest.approx(made.macs / made.macs_executed)
    assert found.bytes == (len(to_bytes(before)), len(to_bytes(after, made)))
    assert found.layer_errors == {
        layer.name: pytest.approx(layer.error, rel=1e-4) for layer in made.layers if layer.form
    }
    assert found.largest_layer_error == max(found.layer_errors.values())
    assert all(0 < times.median <= times.p95 for times in found.latency)
    answers = [torch.cat([model.eval()(x) for x, _ in given()]).detach() for model in (before, after)]
    assert found.change is not None
    assert found.change.largest == pytest.approx(float((answers[1] - answers[0]).abs().max()), rel=1e-5)
    targets = torch.cat([y for _, y in given()])
    assert found.metric is not None
    assert found.metric.before == pytest.approx(rmse(answers[0], targets))
    assert found.metric.after == pytest.approx(rmse(answers[1], targets))
    assert found.metric.lower <= found.metric.difference <= found.metric.upper


def test_bounds_hold_where_they_are_known() -> None:
    before = network().eval()
    after = compressed(before, plan(before, EXAMPLE, RingConfig(0.6)))
    found = report(before, after, EXAMPLE, repeats=1)
    x, y = torch.randn(2, 8, 2, 10, 10)
    for model, bound in zip((before, after), found.bounds, strict=True):
        assert bound is not None
        with torch.no_grad():
            moved = (model(x) - model(y)).flatten(1).norm(dim=1) / (x - y).flatten(1).norm(dim=1)
        assert float(moved.max()) <= bound
    assert found.change is found.metric is None
    unknown = nn.Sequential(network(), nn.LocalResponseNorm(2)).eval()
    assert report(unknown[0], unknown[0], EXAMPLE, repeats=1).layer_errors == {}
    odd = nn.Sequential(nn.Conv2d(2, 4, 3), nn.LocalResponseNorm(2))
    assert report(odd, odd, EXAMPLE, repeats=1).bounds == (None, None)


def test_a_report_leaves_both_models_as_they_were() -> None:
    before = network().train()
    after = compressed(before, plan(before, EXAMPLE, RingConfig(0.6)))
    states = [
        {name: value.clone() for name, value in model.state_dict().items()} for model in (before, after)
    ]
    report(before, after, EXAMPLE, given(), rmse, repeats=1)
    for model, state in zip((before, after), states, strict=True):
        assert all(module.training for module in model.modules())
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_limits_of_agreement_are_those_of_bland_and_altman() -> None:
    before = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    after = before + torch.tensor([[1.0], [-1.0], [2.0], [0.0]])
    found = agreement(before, after)
    assert (found.largest, found.mean) == (2.0, 0.5)
    assert found.lower == pytest.approx(0.5 - 1.96 * (5 / 3) ** 0.5)
    assert found.upper == pytest.approx(0.5 + 1.96 * (5 / 3) ** 0.5)
    with pytest.raises(InvalidShape, match="cannot be compared"):
        agreement(before, before[:2])


def test_the_interval_of_a_metric_is_the_paired_bootstraps() -> None:
    generator = torch.Generator().manual_seed(0)
    targets = torch.randn(400, generator=generator)
    before = targets + torch.randn(400, generator=generator)
    same = bootstrapped(before, before, targets, rmse)
    assert (same.difference, same.lower, same.upper) == (0, 0, 0)

    def mean(answers: Tensor, _: Tensor) -> float:
        return float(answers.mean())

    noise = torch.randn(400, generator=generator)
    found = bootstrapped(before, before + 1 + noise, targets, mean)
    width = 2 * 1.96 * float(noise.std()) / 20
    assert found.upper - found.lower == pytest.approx(width, rel=0.15)
    assert found.lower < 1 < found.upper
    assert bootstrapped(before, before + 1 + noise, targets, mean) == found


def test_what_cannot_be_compared_is_refused() -> None:
    model = network()
    with pytest.raises(InvalidShape, match="needs batches"):
        report(model, model, EXAMPLE, metric=rmse)
    with pytest.raises(InvalidShape, match="no batch"):
        report(model, model, EXAMPLE, [], rmse)
    with pytest.raises(InvalidConfig, match="repeats"):
        report(model, model, EXAMPLE, repeats=0)
    other = network()
    other[6], other[7] = nn.Linear(16, 20), nn.Linear(20, 1)
    with pytest.raises(InvalidShape, match="6 has another kernel"):
        report(model, other, EXAMPLE, repeats=1)


class Pair(nn.Module):
    """A model with two answers."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        made = self.inner(x)
        return made, made


def test_answers_that_cannot_be_compared_say_why() -> None:
    before = network().eval()
    after = compressed(before, plan(before, EXAMPLE, RingConfig(0.6)))
    (x, y), *_ = given()
    with pytest.raises(InvalidShape, match="batch 0 has 3 targets, and the first model 5 answers"):
        report(before, after, EXAMPLE, [(x, y[:3])], rmse, repeats=1)
    with pytest.raises(InvalidShape, match="the first model answers with tuple"):
        report(Pair(before), Pair(after), EXAMPLE, [(x, y)], rmse, repeats=1)
    with pytest.raises(NonFinite, match="the first model's answers to batch 1"):
        report(before, after, EXAMPLE, [(x, y), (x * float("nan"), y)], rmse, repeats=1)
