"""Singular values over the steps of a training: a row for each kind of weights, a column for each layer."""

from __future__ import annotations

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.results.runs import Told

BOUND = 1.0


def spectra(kinds: Told) -> Figure:
    """Of layers with several singular values; the largest is dark. Rows have scales of their own."""
    layers = [index for index, layer in enumerate(_records(kinds)[0]["layers"]) if layer["count"] > 1]
    figure = Figure(figsize=(1.35 * len(layers), 1.5 * len(kinds)), layout="constrained")
    grid = figure.subplots(len(kinds), len(layers), sharex=True, sharey="row", squeeze=False)
    for row, (kind, game) in zip(grid, kinds.items(), strict=True):
        row[0].set_ylabel(kind)
        for axes, index in zip(row, layers, strict=True):
            _layer(axes, game["records"], index)
        row[0].set_ylim(0, max(1.1 * BOUND, row[0].get_ylim()[1]))
    for axes, index in zip(grid[0], layers, strict=True):
        axes.set_title(f"layer {index + 1}", fontsize=9)
    figure.supxlabel("step of the discriminator", fontsize=9)
    return figure


def _layer(axes: Axes, records: list[Told], index: int) -> None:
    steps = [record["step"] for record in records]
    courses = list(zip(*(record["layers"][index]["drawn"] for record in records), strict=True))
    for place, course in enumerate(courses):
        axes.plot(steps, course, color=colormaps["viridis"](place / len(courses)), linewidth=0.8)
    axes.axhline(BOUND, color="#666666", linewidth=0.8, linestyle=":")
    axes.grid(visible=False)


def _records(kinds: Told) -> list[Told]:
    """Of the first kind."""
    found: list[Told] = next(iter(kinds.values()))["records"]
    return found
