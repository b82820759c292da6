"""rsdtr_resnet, sttp_counts and sttp_speed at tiny sizes: ratios of what they say, figures of the papers."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import redirect_stdout
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import cifar_resnet, rsdtr_resnet, sttp_counts, sttp_speed
from models.convolutions import kernel_of
from models.rsdtr.layers import FactorisedLayer


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    count = torch.get_num_threads()
    yield
    torch.set_num_threads(count)


def shown(module: ModuleType, result: dict[str, Any]) -> str:
    text = io.StringIO()
    with redirect_stdout(text):
        module.show(result)
    return text.getvalue()


def decaying(network: nn.Module) -> nn.Module:
    """With kernels that are worth compressing."""
    generator = torch.Generator().manual_seed(0)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            rows, columns = len(layer.weight), layer.weight[0].numel()
            fall = torch.arange(1, rows + 1)[:, None] ** -1.2 * torch.arange(1, columns + 1) ** -0.4
            noise = torch.randn(rows, columns, generator=generator)
            layer.weight.data = (noise * fall).reshape(layer.weight.shape)
    return network.eval()


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> cifar_resnet.CifarResNet:
    """A network of one block per stage in the place of the pretrained ones, with the first at two eps."""
    torch.manual_seed(0)
    network = decaying(cifar_resnet.CifarResNet(1))
    monkeypatch.setattr(rsdtr_resnet, "pretrained", lambda name: network)
    monkeypatch.setattr(rsdtr_resnet, "missing", lambda: None)
    monkeypatch.setattr(rsdtr_resnet, "BLOCKS", {"resnet20": 1})
    for name in ("OFFICIAL_PCR", "OFFICIAL_FCR"):
        kept = {eps: getattr(rsdtr_resnet, name)["resnet20"][eps] for eps in (0.3, 0.5, 0.7)}
        monkeypatch.setattr(rsdtr_resnet, name, {"resnet20": kept})
    for name, value in (("BATCH", 2), ("REPEATS", 2), ("SEARCHES", 1), ("TIMED", (0.7,))):
        monkeypatch.setattr(rsdtr_resnet, name, value)
    assert isinstance(network, cifar_resnet.CifarResNet)
    return network


def test_figures_of_the_papers_code_are_those_of_the_research() -> None:
    """Section 2 of the research: PCR, FCR and seconds of the official code."""
    pcr, fcr = rsdtr_resnet.OFFICIAL_PCR, rsdtr_resnet.OFFICIAL_FCR
    assert list(pcr["resnet20"].values()) == [1.257, 1.569, 2.030, 2.555, 3.568]
    assert list(fcr["resnet20"].values()) == [0.908, 1.153, 1.385, 2.153, 2.972]
    assert [list(pcr[name].values()) for name in ("resnet32", "resnet56")] == [
        [1.302, 2.095, 3.816],
        [1.316, 2.124, 3.894],
    ]
    assert [list(fcr[name].values()) for name in ("resnet32", "resnet56")] == [
        [0.879, 1.615, 3.082],
        [0.906, 1.724, 3.509],
    ]
    assert rsdtr_resnet.OFFICIAL_SECONDS == {0.5: 1.42, 0.7: 0.99}
    limits = {target.key: (target.limit, target.at_least) for target in rsdtr_resnet.TARGETS}
    assert limits == {
        "pcr_deviation": (0.01, False),
        "fcr_deviation": (0.03, False),
        "storage_ratio_50": (0.82, False),
        "storage_ratio_70": (0.70, False),
        "equal_error_50": (0.95, False),
        "equal_error_70": (0.97, False),
        "seconds_over_official": (0.25, False),
        "fcr_30": (1.05, True),
        "latency_ratio_dense": (1.10, False),
        "max_activation_ratio": (1.0, False),
    }


def test_ratios_of_rings_are_recounted_from_their_layers(tiny: cifar_resnet.CifarResNet) -> None:
    result = rsdtr_resnet.run(["resnet20"])
    network = result["networks"]["resnet20"]
    dense = {name: layer.weight.numel() for name, layer in cifar_resnet.block_convolutions(tiny).items()}
    assert network["parameters"] == sum(p.numel() for p in tiny.parameters())
    layers, sizes = cifar_resnet.block_convolutions(tiny), rsdtr_resnet.input_sizes(tiny)
    config = rsdtr_resnet.RingConfig(0.7)
    found = {name: rsdtr_resnet.factorised(layer, config, sizes[name]) for name, layer in layers.items()}
    storage = sum(dense[name] if layer is None else layer.storage for name, layer in found.items())
    ours = network["eps"]["0.7"]["ours"]
    assert ours["storage"] == storage < sum(dense.values())
    assert ours["pcr"] == network["parameters"] / (network["parameters"] - sum(dense.values()) + storage)
    assert ours["error"] == max(error(layers[name], layer) for name, layer in found.items() if layer) <= 0.7
    for eps, row in network["eps"].items():
        assert row["reference"]["error"] <= float(eps) * (1 + 1e-5)
        assert row["storage_ratio"] == row["ours"]["storage"] / row["reference"]["storage"]
        assert (row["speed"] is None) == (eps != "0.7")
    assert result["storage_ratio_70"] == network["eps"]["0.7"]["storage_ratio"] < 1
    assert result["fcr_30"] == network["eps"]["0.3"]["ours"]["fcr"]
    reference = [network["eps"][eps]["reference"] for eps in ("0.3", "0.5", "0.7")]
    for key in ("pcr", "fcr"):
        worst = max(abs(row[key] / row[f"official_{key}"] - 1) for row in reference)
        assert result[f"{key}_deviation"] == worst
    speed = network["eps"]["0.7"]["speed"]
    assert result["latency_ratio_dense"] == max(speed["network"], *speed["layers"].values())
    assert result["max_activation_ratio"] == speed["activation_ratio"] <= 1
    slower = [
        network["eps"][eps]["ours"]["seconds"] / official for eps, official in (("0.5", 1.42), ("0.7", 0.99))
    ]
    assert result["seconds_over_official"] == max(slower)
    assert [answer["key"] for answer in result["targets"]] == [t.key for t in rsdtr_resnet.TARGETS]
    text = shown(rsdtr_resnet, result)
    assert "resnet20" in text
    assert "reference" in text


def error(dense: nn.Conv2d, layer: FactorisedLayer) -> float:
    with torch.no_grad():
        return float((layer.kernel() - kernel_of(dense)).norm() / kernel_of(dense).norm())


def test_networks_that_are_not_there_are_named(
    tiny: cifar_resnet.CifarResNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit, match="no network vgg: there are resnet20"):
        rsdtr_resnet.run(["vgg"])
    with pytest.raises(SystemExit, match="no network vgg: there are wrn_28_10"):
        sttp_counts.run(["vgg"])
    with pytest.raises(SystemExit, match="no case speed: there are frames, layer, generation"):
        sttp_speed.run(["speed"])
    monkeypatch.setattr(rsdtr_resnet, "missing", lambda: "no pretrained networks: x is not there")
    with pytest.raises(SystemExit, match="no pretrained networks"):
        rsdtr_resnet.run()


def test_every_count_of_the_official_code_is_met_to_the_unit() -> None:
    result = sttp_counts.run()
    assert result["mismatches"] == 0
    assert result["size_error"] < 0.0005
    assert all(answer["holds"] for answer in result["targets"])
    known = {(r["network"], r["method"], r["rank"]): r["parameters"] for r in result["rows"]}
    assert len(known) == 22
    assert known["wrn_28_10", "sttp", 64] == 1_020_720
    assert known["wrn_28_10", "svdp", 64] == 5_370_032
    assert known["wrn_16_8", "sttp-C", 64] == 397_993
    assert known["wrn_16_8", "svdp-C", 64] == 2_002_601
    assert known["resnet_34_3d", "sttp", 128] == 3_651_008
    assert sum(row["official_percent"] is not None for row in result["rows"]) == 16
    assert {row["official_percent"] for row in result["rows"]} >= {
        0.209,
        2.012,
        20.433,
        53.219,
        4.068,
        18.691,
    }
    assert "1,020,720" in shown(sttp_counts, result)


@pytest.mark.parametrize("place", [0, 1])
def test_a_count_or_a_size_that_is_off_by_the_least_is_seen(
    place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = ("wrn_16_8", 64, False)
    counts, sizes = list(sttp_counts.COUNTS[key]), list(sttp_counts.SIZES["wrn_16_8", 64])
    counts[place] += 1
    sizes[place] += 0.001
    monkeypatch.setitem(sttp_counts.COUNTS, key, tuple(counts))
    monkeypatch.setitem(sttp_counts.SIZES, ("wrn_16_8", 64), tuple(sizes))
    result = sttp_counts.run(["wrn_16_8"])
    assert result["mismatches"] == 1
    assert result["size_error"] > 0.0005
    assert not any(answer["holds"] for answer in result["targets"])


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Calls take what a table says; returned is who was called."""
    called: list[str] = []
    seconds = {"ours": 1e-3, sttp_speed.LINALG: 20e-3, sttp_speed.HOUSEHOLDER: 8e-3}
    seconds |= {"dense": 10e-3, "svdp": 3e-3, "sttp": 4e-3}
    kept = sttp_speed.milliseconds

    def told(works: dict[str, Any]) -> dict[str, float]:
        for work in works.values():
            work()
        named = {name: (lambda name=name: called.append(name)) for name in works}
        return kept(named)

    monkeypatch.setattr(sttp_speed, "milliseconds", told)
    monkeypatch.setattr(sttp_speed, "seconds", lambda work: (work(), seconds[called[-1]])[1])
    monkeypatch.setattr(sttp_speed, "FRAMES", {"512x64": (2, 9, 4)})
    monkeypatch.setattr(sttp_speed, "RANK", 2)
    monkeypatch.setattr(sttp_speed, "convolution", lambda: nn.Conv2d(4, 4, 3, padding=1))
    monkeypatch.setattr(sttp_speed.torch, "randn", tiny_input(torch.randn))
    monkeypatch.setattr(sttp_speed, "wide_resnet", lambda *_: ([(8, 4, 3, 3), (3, 8)], 0))
    return called


def tiny_input(randn: Any) -> Any:
    return lambda *shape: randn(*((2, 4, 3, 3) if shape == (8, 512, 8, 8) else shape))


@pytest.mark.parametrize("there", [False, True])
def test_speeds_are_over_the_peer_that_the_key_says(
    there: bool, clock: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if there:
        pytest.importorskip("torch_householder", reason="torch-householder is not installed")
    monkeypatch.setattr(sttp_speed, "find_spec", lambda _: there or None)
    result = sttp_speed.run()
    assert result["over_torch_linalg_512x64"] == pytest.approx(20)
    assert result["peers"] == sorted([sttp_speed.LINALG] + [sttp_speed.HOUSEHOLDER] * there)
    assert ("speedup_512x64" in result) == there
    assert result.get("speedup_512x64", 8) == pytest.approx(8)
    assert result["step_over_dense_svdp"] == pytest.approx(0.3)
    assert result["step_over_dense_sttp"] == pytest.approx(0.4)
    assert (result["generation_ms_svdp"], result["generation_ms_sttp"]) == pytest.approx((3, 4))
    keys = ["speedup_512x64"] * there + ["step_over_dense_svdp", "step_over_dense_sttp"]
    assert [answer["key"] for answer in result["targets"]] == keys
    assert all(answer["holds"] for answer in result["targets"])
    calls = 1 + sttp_speed.TURNS * (1 + sttp_speed.CALLS)
    assert clock.count("ours") == clock.count(sttp_speed.LINALG) == calls
    text = shown(sttp_speed, result)
    assert (sttp_speed.HOUSEHOLDER in text) == there


def test_slow_calls_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    taken = {"slow": 2.5, "quick": 0.5}
    monkeypatch.setattr(sttp_speed, "seconds", lambda work: (work(), taken[called[-1]])[1])
    found = sttp_speed.milliseconds({name: (lambda name=name: called.append(name)) for name in taken})
    assert found == {"slow": 2500, "quick": 500}
    assert called.count("slow") == 1


def test_peers_make_the_frames_that_we_make() -> None:
    """And the same gradients: what is timed is the same work."""
    shape = sttp_speed.Frame(9, 4)
    packed = torch.randn(2, shape.parameters, dtype=torch.float64, requires_grad=True)
    vectors = torch.eye(9, 4, dtype=torch.float64).repeat(2, 1, 1)
    row, column = torch.tril_indices(4, 4, -1)
    vectors[:, row, column] = packed.detach()[:, :6]
    vectors[:, 4:] = packed.detach()[:, 6:].reshape(2, 5, 4)
    vectors.requires_grad_()
    ours, theirs = sttp_speed.frame(packed, shape), sttp_speed.householder_product(vectors)
    assert (ours - theirs).abs().max() <= 1e-13
    toward = torch.randn(2, 9, 4, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(ours, packed, toward)
    (reference,) = torch.autograd.grad(theirs, vectors, toward)
    assert (gradient[:, 6:].reshape(2, 5, 4) - reference[:, 4:]).abs().max() <= 1e-12
    assert {target.key: target.limit for target in sttp_speed.TARGETS} == {
        "speedup_512x64": 4,
        "speedup_4608x64": 7,
        "speedup_24x128x64": 10,
        "step_over_dense_svdp": 0.6,
        "step_over_dense_sttp": 0.6,
    }
    assert sttp_speed.FRAMES == {"512x64": (1, 512, 64), "4608x64": (1, 4608, 64), "24x128x64": (24, 128, 64)}
    assert sttp_speed.RANK == 64
