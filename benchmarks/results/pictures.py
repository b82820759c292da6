"""A picture of where an answer comes from, beside where it should: one made volume, one model of a minute."""

from __future__ import annotations

import json
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float32
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from benchmarks.cohorts import Protocol, phantom_heads, spread
from benchmarks.cohorts.made import covered
from benchmarks.cohorts.textures import Spread
from benchmarks.provenance import provenance
from benchmarks.results.runs import PICTURE
from models.learning.task import Task
from models.regressors.base import Saliency
from models.regressors.cpic import Cpic
from models.training import Watch
from models.types import Array, Int64

SIZE, SEED, STEPS = 64, 0, 100
PEOPLE = 33
PROTOCOL = Protocol(train_people=22, train_volumes=3, test_volumes=11)
"""66 volumes to learn from, and one of each of 11 others."""
NEAR = 6
"""Voxels are shown with the slices that are so many voxels away, or fewer."""
AREA = 90.0
"""Of the largest weight's dot, in square points."""
COLOURS, DPI = 256, 110
NOTICE = "For research, not a medical device"


@dataclass(frozen=True)
class Slice:
    """One plane of a volume: `axis` is constant there, at `at`."""

    name: str
    axis: int
    at: int

    def of(self, volume: Array) -> Array:
        """Its voxels; the first of its axes goes up."""
        return np.asarray(np.take(volume, self.at, self.axis))

    def near(self, voxels: Int64) -> Bool[Array, " m"]:
        """Which voxels (m, 3) are shown with it."""
        return np.abs(voxels[:, self.axis] - self.at) <= NEAR

    def places(self, voxels: Int64) -> tuple[Array, Array]:
        """Their coordinates in it: (across, up)."""
        up, across = np.delete(voxels, self.axis, axis=1).T
        return across, up


def draw(folder: Path) -> None:
    """Train, ask about one volume, write the picture and what it is of."""
    code = provenance()
    heads = phantom_heads(PEOPLE)
    made = spread(SIZE, heads=heads, protocol=PROTOCOL, seed=SEED)
    cohort = made.dense().cohort()
    training, test = cohort.only(made.split.train), cohort.only(made.split.test)
    recipe, device = Cpic(steps=STEPS), torch.device("cpu")
    model = recipe.fit(training, Task(), seed=SEED, device=device, watch=Watch())
    answers = model.predict(test.inputs)
    median = int(np.argsort(test.targets)[len(test.targets) // 2])
    source = made.sources[made.split.test[median]]
    assert isinstance(source, Spread)
    look = model.look(test.inputs.scans[median], np.empty(0))
    assert look.saliency is not None
    target, answer = float(test.targets[median]), float(answers[median, 0])
    save(picture(source, look.saliency, f"target {target:.2f}, answer {answer:.2f}"), folder)
    facts = {
        "seed": SEED,
        "size": SIZE,
        "steps": STEPS,
        "volumes": len(training),
        "people": len(set(training.patients)),
        "tested": len(test),
        "target": target,
        "answer": answer,
        "r2": 1 - float(np.square(answers[:, 0] - test.targets).mean() / test.targets.var()),
        "voxels": look.voxels,
        "near": NEAR,
        **in_the_left(look.saliency),
        "histories": dict(model.histories),
        "provenance": code,
    }
    (folder / f"{PICTURE}.json").write_text(json.dumps(facts, allow_nan=False) + "\n")


def in_the_left(saliency: Saliency) -> dict[str, float]:
    """The shares of voxels and of absolute weight that lie in the left half of a volume."""
    left = saliency.voxels[:, 2] < SIZE // 2
    weights = np.abs(saliency.weights)
    return {"left_voxels": float(left.mean()), "left_weight": float(weights[left].sum() / weights.sum())}


def picture(volume: Spread, saliency: Saliency, title: str) -> Figure:
    """Slices with the true region's outline, above the same with what voxels near them weigh."""
    size = volume.shape[0]
    voxels, true = volume.dense().array, textured(volume)
    slices = [
        Slice("axial", 0, size // 2),
        Slice("coronal", 1, size // 2),
        Slice("sagittal, left", 2, size // 4),
    ]
    figure = Figure(figsize=(7.2, 5.2), layout="constrained")
    above, below = figure.subplots(2, len(slices))
    largest = float(np.abs(saliency.weights).max())
    for plane, upper, lower in zip(slices, above, below, strict=True):
        upper.set_title(plane.name, fontsize=9)
        for axes in (upper, lower):
            axes.imshow(plane.of(voxels), cmap="gray", origin="lower", vmin=-0.2, vmax=1.6)
            axes.set_axis_off()
            outline(axes, plane, true)
        lower.images[0].set_alpha(0.4)
        near = plane.near(saliency.voxels)
        across, up = plane.places(saliency.voxels[near])
        weights = saliency.weights[near]
        lower.scatter(
            across,
            up,
            s=AREA * np.abs(weights) / largest,
            c=np.where(weights > 0, "#D55E00", "#0072B2"),
            linewidths=0,
        )
    figure.suptitle(title, fontsize=10)
    figure.supxlabel(NOTICE, fontsize=8)
    return figure


def outline(axes: Axes, plane: Slice, true: Float32[Array, "Z Y X"]) -> None:
    """Around the left half's region, and, dashed, around the decoy."""
    middle = true.shape[2] // 2
    for half, line in ((slice(None, middle), "solid"), (slice(middle, None), "dashed")):
        own = np.zeros_like(true)
        own[:, :, half] = true[:, :, half]
        if (shown := plane.of(own)).any():
            axes.contour(shown, levels=[0.5], colors="#E69F00", linewidths=1, linestyles=line)


def textured(volume: Spread) -> Float32[Array, "Z Y X"]:
    """1 in voxels that carry the texture, and 0 in others."""
    blocks = volume.scene.blocks
    region = volume.region(covered(np.zeros((1, 3), np.int64), (blocks,) * 3))[1][0]
    return np.kron(region, np.ones((2, 2, 2), np.float32))


def save(figure: Figure, folder: Path) -> None:
    """As a PNG of few colours."""
    drawn = BytesIO()
    figure.savefig(drawn, format="png", dpi=DPI)
    with Image.open(drawn) as image:
        image.convert("RGB").quantize(COLOURS).save(folder / f"{PICTURE}.png", optimize=True)
