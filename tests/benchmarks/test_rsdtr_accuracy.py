"""Accuracy of compressed networks: who is compared, at how many parameters, and how tuning is chosen."""

from __future__ import annotations

import io
from contextlib import redirect_stdout

import pytest
import torch
from torch import Tensor

from benchmarks import cifar_tuning, rsdtr_accuracy
from benchmarks.cifar_resnet import CifarResNet, block_convolutions
from benchmarks.kernel_peers import OWN, at_parameters, factorised, parameters
from benchmarks.rsdtr_accuracy import peers
from models.compression.budgets import BudgetConfig


def few_images(split: str, count: int | None = None, every: int = 1) -> tuple[Tensor, Tensor]:
    """Noise, of two labels."""
    generator = torch.Generator().manual_seed(len(split))
    pixels = torch.randint(0, 256, (32, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return pixels[::every], torch.arange(32)[::every] % 2


def network() -> CifarResNet:
    torch.manual_seed(0)
    return CifarResNet(1).eval()


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A narrow part of everything: one block a stage, noise for images, one step in one way."""
    for module in (cifar_tuning, rsdtr_accuracy):
        monkeypatch.setattr(module, "images", few_images)
    monkeypatch.setattr(cifar_tuning, "BATCH", 8)
    monkeypatch.setattr(cifar_tuning, "CALIBRATION", 16)
    monkeypatch.setattr(cifar_tuning, "WAYS", {"sgd": cifar_tuning.sgd(0.01)})
    monkeypatch.setattr(rsdtr_accuracy, "missing", lambda: None)
    monkeypatch.setattr(rsdtr_accuracy, "no_images", lambda: None)
    monkeypatch.setattr(rsdtr_accuracy, "adapted", network)
    monkeypatch.setattr(rsdtr_accuracy, "POINTS", (2.0,))
    monkeypatch.setattr(
        rsdtr_accuracy,
        "BudgetConfig",
        lambda **asked: BudgetConfig(**{**asked, "canonical": False}, modes=()),
    )
    real = cifar_tuning.tuned
    monkeypatch.setattr(
        rsdtr_accuracy,
        "tuned",
        lambda made, calibrating: real(made, calibrating, ways=cifar_tuning.WAYS, steps=1),
    )


@pytest.mark.usefixtures("tiny")
def test_every_method_is_judged_at_no_fewer_parameters_than_ours() -> None:
    result = rsdtr_accuracy.run(["svd", "tucker2"])
    (point,) = result["points"]
    assert set(point) == {"pcr", "ours", "ours_rings", "svd", "tucker2"}
    for name in ("svd", "tucker2"):
        assert point[name]["parameters"] >= point["ours"]["parameters"]
    assert point["ours"]["pcr"] >= 2
    assert result["pcr_35"] >= 3.5
    assert result["fcr_35"] >= 2.9
    for stage in ("recalibrated", "tuned"):
        others = max(point[name][stage] for name in ("svd", "tucker2"))
        assert result[f"least_lead_{stage}"] == point["ours"][stage] - others
    assert [target["key"] for target in result["targets"]] == [
        target.key for target in rsdtr_accuracy.TARGETS
    ]
    text = io.StringIO()
    with redirect_stdout(text):
        rsdtr_accuracy.show(result)
    assert "tucker2" in text.getvalue()
    with pytest.raises(SystemExit, match="no peer nobody"):
        rsdtr_accuracy.run(["nobody"])


@pytest.mark.parametrize("name", ["svd", "tucker2", "tltorch_tucker", "tltorch_tt"])
def test_a_peer_is_the_smallest_with_so_many_parameters(name: str) -> None:
    if name not in peers():
        pytest.skip("TensorLy-Torch is not installed: it is in the extra bench")
    dense = network()
    count = int(parameters(dense) / 1.5)
    made = at_parameters(dense, tuple(block_convolutions(dense)), peers()[name], count)
    assert count <= parameters(made) < parameters(dense)
    assert torch.isfinite(made(torch.zeros(1, 3, 32, 32))).all()


@pytest.mark.parametrize("name", ["svd", "tucker2"])
def test_the_finest_peer_is_nearly_the_network(name: str) -> None:
    dense = network()
    names = tuple(block_convolutions(dense))
    x = torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)
    with torch.no_grad():
        made = [factorised(dense, names, OWN[name].make, fineness)(x) for fineness in (0.3, 0.9)]
        coarse, fine = (float((answer - dense(x)).norm()) for answer in made)
    assert fine < 0.5 * coarse


@pytest.mark.usefixtures("tiny")
def test_tuning_is_never_taken_where_it_does_harm() -> None:
    dense = network()
    ways = {"far too fast": cifar_tuning.sgd(1e6)}
    name, made = cifar_tuning.tuned(dense, cifar_tuning.calibration(), ways=ways, steps=1)
    before = {key: value.clone() for key, value in network().state_dict().items()}
    assert cifar_tuning.accuracy(made, *cifar_tuning.validation()) >= cifar_tuning.accuracy(
        dense, *cifar_tuning.validation()
    )
    assert name == "not at all" or made is not dense
    assert all(torch.equal(dense.state_dict()[key], value) for key, value in before.items())
    with pytest.raises(ValueError, match="more than one epoch"):
        cifar_tuning.descended(dense, cifar_tuning.sgd(0.01), 100, 0)
