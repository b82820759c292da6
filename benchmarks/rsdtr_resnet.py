"""Tensor rings of pretrained ResNets: the paper's search against its code's figures, and ours.

Compressed are the convolutions of the blocks, each within the relative error eps; PCR and FCR are parameters
and MACs of the whole network, dense over compressed.

    pcr_deviation, fcr_deviation   of the reference mode from what the paper's code gave, the largest
    storage_ratio_50, _70          numbers of the blocks' kernels, ours over the reference's, at that eps
    equal_error_50, _70            the same where each layer's eps is the error that the reference's has
    seconds_over_official          of our search of ResNet-20, CPU time of one thread, over what the paper's
                                   code took: the larger of eps 0.5 and 0.7
    fcr_30                         of our mode at eps 0.3
    latency_ratio_dense            CPU time of the compressed over the dense for a batch of BATCH, each layer
                                   by the plan that it chose: the largest of the networks' (a median of turns)
                                   and of the layers' (of a millisecond each: the least of as many turns)
    max_activation_ratio           numbers read and written at once by a layer's plan, over the dense layer's

Keys that are ratios stand for the worst of the networks.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.cifar_resnet import BLOCKS, SIDE, block_convolutions, missing, pretrained
from benchmarks.targets import Target, judged, number, show_targets
from models.convolutions import geometry_of
from models.rsdtr.candidates import RingConfig
from models.rsdtr.factorise import factorised
from models.rsdtr.layers import SEPARABLE, FactorisedLayer
from models.rsdtr.plans import choose_plan_

BATCH, REPEATS, SEARCHES = 32, 40, 3
EPS = (0.3, 0.4, 0.5, 0.6, 0.7)
TIMED = (0.5, 0.7)
OFFICIAL_PCR: dict[str, dict[float, float]] = {
    "resnet20": {0.3: 1.257, 0.4: 1.569, 0.5: 2.030, 0.6: 2.555, 0.7: 3.568},
    "resnet32": {0.3: 1.302, 0.5: 2.095, 0.7: 3.816},
    "resnet56": {0.3: 1.316, 0.5: 2.124, 0.7: 3.894},
}
OFFICIAL_FCR: dict[str, dict[float, float]] = {
    "resnet20": {0.3: 0.908, 0.4: 1.153, 0.5: 1.385, 0.6: 2.153, 0.7: 2.972},
    "resnet32": {0.3: 0.879, 0.5: 1.615, 0.7: 3.082},
    "resnet56": {0.3: 0.906, 0.5: 1.724, 0.7: 3.509},
}
OFFICIAL_SECONDS = {0.5: 1.42, 0.7: 0.99}
TARGETS = (
    Target("pcr_deviation", 0.01),
    Target("fcr_deviation", 0.03),
    Target("storage_ratio_50", 0.82),
    Target("storage_ratio_70", 0.70),
    Target("equal_error_50", 0.95),
    Target("equal_error_70", 0.97),
    Target("seconds_over_official", 0.25),
    Target("fcr_30", 1.05, at_least=True),
    Target("latency_ratio_dense", 1.10),
    Target("max_activation_ratio", 1.0),
)

Spatial = tuple[int, ...]
Found = dict[str, FactorisedLayer]


def run(only: Sequence[str] | None = None) -> dict[str, Any]:
    """All networks, or those of these names."""
    if reason := missing():
        raise SystemExit(reason)
    if unknown := sorted(set(only or ()) - set(BLOCKS)):
        raise SystemExit(f"no network {', '.join(unknown)}: there are {', '.join(BLOCKS)}")
    torch.set_num_threads(1)
    networks = {name: measured(name) for name in only or BLOCKS}
    keys = worst(networks)
    return {**keys, "networks": networks, "targets": judged(keys, TARGETS)}


def measured(name: str) -> dict[str, Any]:
    """A network at every eps that the paper's code was run at."""
    network = pretrained(name)
    layers, sizes = block_convolutions(network), input_sizes(network)
    compressed(layers, sizes, RingConfig(0.5))  # what is loaded once
    rows = {str(eps): at_eps(name, network, layers, sizes, eps) for eps in OFFICIAL_PCR[name]}
    return {"parameters": parameters(network), "macs": macs(network, sizes, {}, None), "eps": rows}


def at_eps(
    name: str, network: nn.Module, layers: dict[str, nn.Conv2d], sizes: dict[str, Spatial], eps: float
) -> dict[str, Any]:
    """The reference's and our layers, and how fast ours are."""
    reference, reference_seconds = compressed(layers, sizes, RingConfig(eps, reference=True))
    ours, seconds = compressed(layers, sizes, RingConfig(eps))
    row: dict[str, Any] = {
        "reference": {
            **ratios(network, sizes, layers, reference, SEPARABLE),
            "official_pcr": OFFICIAL_PCR[name][eps],
            "official_fcr": OFFICIAL_FCR[name][eps],
            "seconds": reference_seconds,
        },
        "ours": {**ratios(network, sizes, layers, ours, None), "seconds": seconds, "layers": len(ours)},
    }
    row["storage_ratio"] = row["ours"]["storage"] / row["reference"]["storage"]
    row["equal_error"] = equal_error_storage(layers, sizes, reference) / row["reference"]["storage"]
    row["speed"] = speed(network, layers, sizes, ours) if eps in TIMED else None
    return row


def compressed(
    layers: dict[str, nn.Conv2d], sizes: dict[str, Spatial], config: RingConfig
) -> tuple[Found, float]:
    """The layers that do not stay dense, and the CPU seconds of the search: the median of SEARCHES."""
    taken = []
    for _ in range(SEARCHES):
        start = time.process_time()
        found = {name: factorised(layer, config, sizes[name], name) for name, layer in layers.items()}
        taken.append(time.process_time() - start)
    return {name: layer for name, layer in found.items() if layer is not None}, statistics.median(taken)


def equal_error_storage(layers: dict[str, nn.Conv2d], sizes: dict[str, Spatial], reference: Found) -> int:
    """Numbers of the kernels where each of ours may err by as much as the reference's does."""
    total = 0
    for name, layer in layers.items():
        config = RingConfig(error(layer, reference[name]))
        found = factorised(layer, config, sizes[name], name)
        total += layer.weight.numel() if found is None else found.storage
    return total


def ratios(
    network: nn.Module,
    sizes: dict[str, Spatial],
    layers: dict[str, nn.Conv2d],
    found: Found,
    plan: str | None,
) -> dict[str, Any]:
    """Numbers of the kernels, PCR and FCR. Without a plan each layer counts by its cheapest in MACs."""
    kept = sum(layer.weight.numel() for name, layer in layers.items() if name not in found)
    storage = kept + sum(layer.storage for layer in found.values())
    dense = sum(layer.weight.numel() for layer in layers.values())
    total = parameters(network)
    return {
        "storage": storage,
        "pcr": total / (total - dense + storage),
        "fcr": macs(network, sizes, {}, None) / macs(network, sizes, found, plan),
        "error": max((error(layers[name], layer) for name, layer in found.items()), default=0.0),
    }


def error(dense: nn.Conv2d, layer: FactorisedLayer) -> float:
    """The relative error of a layer's kernel."""
    with torch.no_grad():
        distance = torch.linalg.vector_norm(layer.kernel() - dense.weight)
        return float(distance / torch.linalg.vector_norm(dense.weight))


def parameters(network: nn.Module) -> int:
    """Numbers that are learnt."""
    return sum(parameter.numel() for parameter in network.parameters())


def macs(network: nn.Module, sizes: dict[str, Spatial], found: Found, plan: str | None) -> int:
    """Of one image: convolutions and the last layer."""
    total = 0
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            spatial = sizes[name]
            plans = found[name].plans[1:] if plan is None and name in found else (plan,)
            total += (
                min(found[name].cost(spatial, each).macs for each in plans)
                if name in found
                else geometry_of(layer).macs(spatial)
            )
    return total


def input_sizes(network: nn.Module) -> dict[str, Spatial]:
    """The spatial sizes that each layer reads of an image."""
    sizes: dict[str, Spatial] = {}
    hooks = [
        layer.register_forward_hook(
            lambda _, given, __, name=name: sizes.update({name: tuple(given[0].shape[2:])})
        )
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear)
    ]
    with torch.no_grad():
        network(torch.zeros(1, 3, SIDE, SIDE))
    for hook in hooks:
        hook.remove()
    return sizes


def speed(
    network: nn.Module, layers: dict[str, nn.Conv2d], sizes: dict[str, Spatial], found: Found
) -> dict[str, Any]:
    """CPU times of each layer and of the network, dense and compressed, and the plans that were chosen."""
    small = copy.deepcopy(network)
    per_layer, activations, plans = {}, [1.0], {}
    for name, layer in found.items():
        x = torch.randn(
            BATCH, layer.geometry.inputs, *sizes[name], generator=torch.Generator().manual_seed(0)
        )
        plans[name] = choose_plan_(layer, x).plan
        per_layer[name] = ratio_of_times(layer, layers[name], x, min)
        dense = layer.geometry.activation(sizes[name])
        activations.append(layer.cost(sizes[name]).activation / dense)
        small.set_submodule(name, layer)
    images = torch.randn(BATCH, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    return {
        "layers": per_layer,
        "network": ratio_of_times(small, network, images, statistics.median),
        "plans": plans,
        "activation_ratio": max(activations),
    }


def ratio_of_times(
    one: nn.Module, other: nn.Module, x: Tensor, of_all: Callable[[list[float]], float]
) -> float:
    """CPU time of one over the other, of REPEATS turns, each first in every other one."""
    times: tuple[list[float], list[float]] = ([], [])
    with torch.no_grad():
        one(x), other(x)
        for turn in range(REPEATS):
            for which in (turn % 2, 1 - turn % 2):
                times[which].append(seconds(partial((one, other)[which], x)))
    return of_all(times[0]) / of_all(times[1])


def seconds(work: Callable[[], object]) -> float:
    """CPU seconds of a call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def worst(networks: dict[str, Any]) -> dict[str, float]:
    """The keys, of all networks together."""
    rows = [(name, float(eps), row) for name, found in networks.items() for eps, row in found["eps"].items()]
    speeds = [row["speed"] for _, _, row in rows if row["speed"]]

    def deviation(key: str) -> float:
        found = [row["reference"] for *_, row in rows]
        return max(abs(float(row[key]) / float(row[f"official_{key}"]) - 1) for row in found)

    keys = {
        "pcr_deviation": deviation("pcr"),
        "fcr_deviation": deviation("fcr"),
        "storage_ratio_50": max(row["storage_ratio"] for _, eps, row in rows if eps == 0.5),
        "storage_ratio_70": max(row["storage_ratio"] for _, eps, row in rows if eps == 0.7),
        "equal_error_50": max(row["equal_error"] for _, eps, row in rows if eps == 0.5),
        "equal_error_70": max(row["equal_error"] for _, eps, row in rows if eps == 0.7),
        "fcr_30": min(row["ours"]["fcr"] for _, eps, row in rows if eps == 0.3),
        "latency_ratio_dense": max(max([found["network"], *found["layers"].values()]) for found in speeds),
        "max_activation_ratio": max(found["activation_ratio"] for found in speeds),
    }
    over = [
        row["ours"]["seconds"] / OFFICIAL_SECONDS[eps]
        for name, eps, row in rows
        if name == "resnet20" and eps in OFFICIAL_SECONDS
    ]
    return {**keys, "seconds_over_official": max(over)} if over else keys


COLUMNS = ("storage", "pcr", "fcr", "error", "seconds")


def show(result: dict[str, Any]) -> None:
    """A table for each network."""
    for name, network in result["networks"].items():
        print(f"\n{name}: {network['parameters']:,} parameters, {network['macs'] / 1e6:.3f} M MACs")
        print(f"{'eps':<6}{'mode':<12}" + "".join(f"{column:>12}" for column in COLUMNS))
        for eps, row in network["eps"].items():
            for mode in ("reference", "ours"):
                print(f"{eps:<6}{mode:<12}" + "".join(f"{number(row[mode][c]):>12}" for c in COLUMNS))
            if found := row["speed"]:
                layers = found["layers"].values()
                print(
                    f"      time over dense: network {number(found['network'])}, layers "
                    f"{number(min(layers))} to {number(max(layers))}"
                )
    show_targets(result["targets"])
