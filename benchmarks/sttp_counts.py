"""Parameters of networks with STTP and SVDP weights, against what the official code and the paper count.

WRN-28-10 and WRN-16-8 with biases, all convolutions and the linear layer parametrised; a ResNet-34 of three
dimensions whose stem stays dense.

    mismatches    how many counts differ by a unit or more
    size_error    the largest difference of a size in percent (eq. 11) from the official code's, which has
                  three decimals
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from benchmarks.targets import Target, judged, number, show_targets
from models.sttp.weights import WeightShape

Shapes = list[tuple[int, ...]]

TARGETS = (Target("mismatches", 0), Target("size_error", 0.0005))

SIZES = {  # Z in percent of the official code: network, rank, (STTP, SVDP)
    ("wrn_28_10", 8): (0.209, 2.012),
    ("wrn_28_10", 16): (0.396, 3.877),
    ("wrn_28_10", 32): (1.016, 7.567),
    ("wrn_28_10", 64): (2.922, 14.836),
    ("wrn_28_10", 128): (8.206, 28.936),
    ("wrn_28_10", 256): (20.433, 53.219),
    ("wrn_16_8", 16): (0.568, 4.952),
    ("wrn_16_8", 64): (4.068, 18.691),
}
COUNTS = {  # network, rank, constant spectrum: (STTP, SVDP), None where none is known
    ("wrn_28_10", 8, False): (30_344, 688_488),
    ("wrn_28_10", 16, False): (98_688, 1_369_520),
    ("wrn_28_10", 32, False): (325_008, 2_716_336),
    ("wrn_28_10", 64, False): (1_020_720, 5_370_032),
    ("wrn_28_10", 128, False): (2_949_808, 10_517_680),
    ("wrn_28_10", 256, False): (7_413_424, 19_382_960),
    ("wrn_16_8", 16, False): (43_376, 524_464),
    ("wrn_16_8", 64, False): (427_440, 2_032_048),
    ("wrn_16_8", 64, True): (397_993, 2_002_601),
    ("resnet_34_3d", 16, False): (132_288, None),
    ("resnet_34_3d", 32, False): (391_616, None),
    ("resnet_34_3d", 64, False): (1_213_888, None),
    ("resnet_34_3d", 128, False): (3_651_008, None),
}


def wide_resnet(depth: int, widening: int) -> tuple[Shapes, int]:
    """The weights of a wide residual network, and its other numbers: biases and normalisations, four each."""
    shapes: Shapes = [(16, 3, 3, 3)]
    normalised, inputs = 0, 16
    for width in (16 * widening, 32 * widening, 64 * widening):
        for _ in range((depth - 4) // 6):
            normalised += inputs + width
            shapes += [(width, inputs, 3, 3), (width, width, 3, 3)]
            shapes += [(width, inputs, 1, 1)] if width != inputs else []
            inputs = width
    biases = sum(shape[0] for shape in shapes) + 10
    return [*shapes, (10, inputs)], biases + 4 * (normalised + inputs)


def resnet_34_3d() -> tuple[Shapes, int]:
    """The weights of the blocks of a ResNet-34 of three dimensions; its stem of one channel beside them."""
    shapes: Shapes = []
    inputs = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for _ in range(blocks):
            shapes += [(width, inputs, 3, 3, 3), (width, width, 3, 3, 3)]
            shapes += [(width, inputs, 1, 1, 1)] if width != inputs else []
            inputs = width
    return shapes, 64 * 7**3


NETWORKS = {
    "wrn_28_10": lambda: wide_resnet(28, 10),
    "wrn_16_8": lambda: wide_resnet(16, 8),
    "resnet_34_3d": resnet_34_3d,
}


def run(only: Sequence[str] | None = None) -> dict[str, Any]:
    """All networks, or those of these names."""
    if unknown := sorted(set(only or ()) - set(NETWORKS)):
        raise SystemExit(f"no network {', '.join(unknown)}: there are {', '.join(NETWORKS)}")
    rows = [
        row(network, rank, constant, method, official)
        for (network, rank, constant), pair in COUNTS.items()
        if only is None or network in only
        for method, official in zip(("sttp", "svdp"), pair, strict=True)
        if official is not None
    ]
    errors = [abs(row["size_percent"] - row["official_percent"]) for row in rows if row["official_percent"]]
    keys = {
        "mismatches": sum(row["parameters"] != row["official"] for row in rows),
        "size_error": max(errors, default=0.0),
    }
    return {**keys, "rows": rows, "targets": judged(keys, TARGETS)}


def row(network: str, rank: int, constant: bool, method: str, official: int) -> dict[str, Any]:
    """One count and the official one; the stem of the network of three dimensions is counted."""
    shapes, others = NETWORKS[network]()
    layouts = [WeightShape(shape).layout(method, rank, constant=constant) for shape in shapes]
    freedom = sum(layout.parameters for layout in layouts)
    sizes = None if constant else SIZES.get((network, rank))
    return {
        "network": network,
        "method": f"{method}-C" if constant else method,
        "rank": rank,
        "parameters": freedom + (others if network == "resnet_34_3d" else 0),
        "official": official,
        "size_percent": 100 * (freedom + others) / (sum(map(prod, shapes)) + others),
        "official_percent": sizes[method == "svdp"] if sizes else None,
    }


COLUMNS = ("parameters", "official", "size_percent", "official_percent")


def show(result: dict[str, Any]) -> None:
    """A line for each count."""
    print(f"{'network':<14}{'method':<8}{'rank':>5}" + "".join(f"{column:>18}" for column in COLUMNS))
    for found in result["rows"]:
        name = f"{found['network']:<14}{found['method']:<8}{found['rank']:>5}"
        print(name + "".join(f"{number(found[column]):>18}" for column in COLUMNS))
    show_targets(result["targets"])
