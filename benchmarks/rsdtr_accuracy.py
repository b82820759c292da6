"""Accuracy of a compressed ResNet-20 on CIFAR-10, against other factorisations at equal parameters.

The pretrained network is adapted to the JPEG images by 80 steps first. At each PCR of POINTS every method
compresses the blocks' convolutions; normalisations are recalibrated with 2,560 images without labels; then at
most 80 steps of fine-tuning in the ways of `cifar_tuning`, the same for all: images that are held out choose
among them. Ours is planned in the metric of the curvature that the same unlabelled images give
(`models.compression.curvature`), of rings, SVDs and sums of rank-one terms; `ours_rings` of rings and SVDs in
Frobenius' metric, as the paper. A peer never has fewer parameters than ours.

    dense                 accuracy of the adapted network on the 10,000 test images
    recalibrated_2        ours at PCR >= 2 with recalibration alone
    tuned_35              ours at PCR >= 3.5 and FCR >= 2.9, after recalibration and 80 steps; its ratios are
                          pcr_35 and fcr_35
    least_lead_recalibrated, least_lead_tuned
                          accuracy of ours less that of the best peer, the least over all points
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.cifar_images import images
from benchmarks.cifar_images import missing as no_images
from benchmarks.cifar_resnet import SIDE, CifarResNet, block_convolutions, missing, pretrained
from benchmarks.cifar_tuning import accuracy, calibration, descended, sgd, tuned
from benchmarks.kernel_peers import OWN, Peer, at_parameters, parameters
from benchmarks.targets import Target, judged, show_targets
from benchmarks.tltorch_peers import missing as no_tltorch
from benchmarks.tltorch_peers import tltorch_peers
from models.compression.applying import compressed
from models.compression.budgets import BudgetConfig
from models.compression.curvature import Curvature, curvature
from models.compression.planning import plan
from models.compression.recalibration import recalibrate_

POINTS = (1.5, 2.0, 3.5, 6.0)
ADAPTING, ADAPTING_STEPS = sgd(0.01), 80
CURVATURE_BATCHES = 5
"""Of those that recalibrate: the curvature hardly changes with more."""
PCR, FCR = 3.5, 2.9
"""Asked for together."""
OURS, RINGS = "ours", "ours_rings"
STAGES = ("recalibrated", "tuned")
TARGETS = (
    Target("recalibrated_2", 0.795, at_least=True),
    Target("tuned_35", 0.77, at_least=True),
    Target("pcr_35", PCR, at_least=True),
    Target("fcr_35", FCR, at_least=True),
    Target("least_lead_recalibrated", 0.0, at_least=True),
    Target("least_lead_tuned", 0.0, at_least=True),
)
EXAMPLE = torch.zeros(1, 3, SIDE, SIDE)

Row = dict[str, Any]


def run(only: Sequence[str] | None = None) -> dict[str, Any]:
    """All methods, or ours and the peers of these names."""
    if reason := missing() or no_images():
        raise SystemExit(reason)
    known = peers()
    if unknown := sorted(set(only or ()) - set(known)):
        raise SystemExit(f"no peer {', '.join(unknown)}: there are {', '.join(known)}")
    torch.set_num_threads(1)
    network = adapted()
    calibrating = calibration()
    bent = curvature(network, calibrating[:CURVATURE_BATCHES])
    points = [at_point(network, calibrating, bent, pcr, only or tuple(known)) for pcr in POINTS]
    asked = BudgetConfig(pcr=PCR, macs=int(dense_macs(network) / FCR), canonical=True)
    both = of_budget(network, calibrating, bent, asked)
    keys = {
        "dense": accuracy(network, *images("test")),
        "recalibrated_2": next(point for point in points if point["pcr"] == 2)[OURS]["recalibrated"],
        "tuned_35": both["tuned"],
        "pcr_35": both["pcr"],
        "fcr_35": both["fcr"],
        **{f"least_lead_{stage}": min(lead(point, stage) for point in points) for stage in STAGES},
    }
    return {**keys, "points": points, "both_budgets": both, "targets": judged(keys, TARGETS)}


def peers() -> dict[str, Peer]:
    """Those that are installed."""
    return OWN if no_tltorch() else OWN | tltorch_peers()


def adapted() -> CifarResNet:
    """The pretrained network, after some steps on JPEG images."""
    return descended(pretrained("resnet20"), ADAPTING, ADAPTING_STEPS, 0)


def at_point(
    network: CifarResNet, calibrating: Sequence[Tensor], bent: Curvature, pcr: float, names: Sequence[str]
) -> Row:
    """All methods at one PCR."""
    row: Row = {
        "pcr": pcr,
        OURS: of_budget(network, calibrating, bent, BudgetConfig(pcr=pcr, canonical=True)),
        RINGS: of_budget(network, calibrating, None, BudgetConfig(pcr=pcr)),
    }
    known, layers = peers(), tuple(block_convolutions(network))
    for name in names:
        made = at_parameters(network, layers, known[name], row[OURS]["parameters"])
        row[name] = judged_network(made, network, calibrating)
    return row


def of_budget(
    network: CifarResNet, calibrating: Sequence[Tensor], bent: Curvature | None, config: BudgetConfig
) -> Row:
    """Our compression."""
    told = plan(network, EXAMPLE, config, curvature=bent)
    row = judged_network(compressed(network, told, bent), network, calibrating)
    forms = Counter(form.method for form in told.forms.values())
    return {**row, "fcr": told.macs / told.macs_after, "forms": dict(forms)}


def judged_network(made: CifarResNet, dense: CifarResNet, calibrating: Sequence[Tensor]) -> Row:
    """Accuracy as compressed, recalibrated, and tuned after that."""
    test = images("test")
    count = parameters(made)
    row: Row = {"parameters": count, "pcr": parameters(dense) / count, "compressed": accuracy(made, *test)}
    row["recalibrated"] = accuracy(recalibrate_(made, calibrating), *test)
    row["way"], best = tuned(made, calibrating)
    row["tuned"] = accuracy(best, *test)
    return row


def dense_macs(network: CifarResNet) -> int:
    """Of the network as it is."""
    return plan(network, EXAMPLE, BudgetConfig(pcr=1)).macs


def lead(point: Row, stage: str) -> float:
    """How far ours is ahead of the best peer, recalibrated or tuned."""
    others = [row for name, row in point.items() if isinstance(row, dict) and not name.startswith(OURS)]
    return float(point[OURS][stage] - max(row[stage] for row in others))


def show(result: dict[str, Any]) -> None:
    """A table of accuracies in per cent, and the targets."""
    print(f"dense {100 * result['dense']:.2f} %; accuracy as compressed / recalibrated / after 80 steps\n")
    names = [name for name in result["points"][0] if name != "pcr"]
    print("PCR   " + "".join(f"{name:<24}" for name in names))
    for point in result["points"]:
        cells = (_cell(point[name]) for name in names)
        print(f"{point['pcr']:<6}" + "".join(f"{cell:<24}" for cell in cells))
    both = result["both_budgets"]
    print(f"\nPCR {both['pcr']:.3f} and FCR {both['fcr']:.3f}: {_cell(both)}")
    show_targets(result["targets"])


def _cell(row: Row) -> str:
    return " / ".join(f"{100 * row[stage]:.2f}" for stage in ("compressed", "recalibrated", "tuned"))
