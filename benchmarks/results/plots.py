"""Figures of runs, as SVG: the same bytes for the same runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count
from math import prod
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.results.runs import Run, Runs, Told
from benchmarks.results.spectra import spectra

STYLE: dict[str, Any] = {
    "svg.hashsalt": "tomotrain",
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "lines.markersize": 5,
}
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
"""Okabe & Ito's: told apart by everybody."""
WORST = -0.5
"""R2 below this stands at the border, with its value."""
EVERY_VOXEL = ("voxel_ridge", "resnet3d")
"""Regressors that read whole scans, and count nothing."""
RATIO_TICKS = (3, 5, 10, 20, 50, 100)
FOLLOWED = ("cpic", "cpic TT moments 2", "random_voxels", "resnet3d", "tt_ridge", "voxel_ridge")
"""From size to size."""


def draw(runs: Runs, folder: Path) -> set[str]:
    """Write all figures that runs suffice for; their names."""
    figures: dict[str, Callable[[], Figure]] = {
        f"{name}.svg": partial(errors, run.told) for name, run in runs.cases.items()
    }
    sized = {size: run for name, run in runs.cases.items() if (size := spread_size(name)) is not None}
    if sized:
        figures["voxels.svg"] = partial(by_voxels, sized)
    if len(sized) > 1:
        figures["size.svg"] = partial(by_size, sized)
    if (run := runs.others.get("cpic_predict")) is not None:
        figures["cpic_predict.svg"] = partial(time_and_memory, run.told["sizes"])
    if (covered := runs.others.get("intervals")) is not None:
        figures["intervals.svg"] = partial(coverage, covered.told)
    if (rated := runs.others.get("putt_rate")) is not None:
        figures["putt_rate.svg"] = partial(rates, rated.told["scans"])
    if (bound := runs.others.get("putt_bound")) is not None:
        figures["putt_bound.svg"] = partial(bounds, bound.told["scans"])
    if (learnt := runs.others.get("sttp_learning")) is not None and learnt.told["spectra"]:
        figures["sttp_learning.svg"] = partial(spectra, learnt.told["spectra"]["kinds"])
    if told := dict(histories(runs)):
        figures["curves.svg"] = partial(curves, told)
    with mpl.rc_context(STYLE):
        for name, make in figures.items():
            make().savefig(folder / name, format="svg", metadata={"Date": None, "Creator": None})
    return set(figures)


def spread_size(name: str) -> int | None:
    """The size of the cases `spread-SIZE`."""
    kind, _, size = name.partition("-")
    return int(size) if kind == "spread" and size.isdecimal() else None


def errors(case: Told) -> Figure:
    """R2 of each regressor with its interval."""
    names = list(case["regressors"])
    figure, axes = _figure(6.6, 0.9 + 0.24 * len(names))
    for place, name in enumerate(reversed(names)):
        score = case["regressors"][name]["r2"]
        axes.text(1.02, place, f"{score['value']:.3f}", va="center", transform=axes.get_yaxis_transform())
        if score["value"] < WORST:
            axes.plot(WORST, place, "<", color=COLOURS[1])
            continue
        low = max(score["low"], WORST)
        axes.plot([low, score["high"]], [place, place], color=COLOURS[0], alpha=0.5)
        axes.plot(score["value"], place, "o", color=COLOURS[0])
    axes.set_yticks(range(len(names)), list(reversed(names)))
    lowest = min(max(facts["r2"]["low"], WORST) for facts in case["regressors"].values())
    axes.set_xlim(min(lowest, 0) - 0.05, 1)
    axes.axvline(0, color="#666666", linewidth=0.8)
    axes.set_xlabel("R2, 95 % interval over seeds and people")
    return figure


def by_voxels(sized: dict[int, Run]) -> Figure:
    """R2 against how much of a scan is read."""
    figure, axes = _figure(6.6, 3.8)
    for size, marker in zip(sorted(sized), "os^Dv", strict=False):
        for name, facts in sized[size].told["regressors"].items():
            voxels = facts.get("voxels", size**3 if name in EVERY_VOXEL else None)
            if voxels is None or name not in FOLLOWED:
                continue
            place = dict(zip(FOLLOWED, COLOURS, strict=False))[name]
            axes.plot(voxels, max(facts["r2"]["value"], WORST), marker, color=place)
    axes.set_xscale("log")
    axes.set_xlabel("voxels whose features are read, of one scan")
    axes.set_ylabel("R2")
    for name, colour in zip(FOLLOWED, COLOURS, strict=False):
        axes.plot([], [], "-", color=colour, label=name)
    for size, marker in zip(sorted(sized), "os^Dv", strict=False):
        axes.plot([], [], marker, color="#444444", label=f"{size}^3")
    _legend(figure)
    return figure


def by_size(sized: dict[int, Run]) -> Figure:
    """R2 against the size of scans."""
    figure, axes = _figure(6.6, 3.4)
    for name, colour in zip(FOLLOWED, COLOURS, strict=False):
        known = [(size, facts["r2"]) for size in sorted(sized) if (facts := _of(sized[size], name))]
        if not known:
            continue
        sizes, values = [size for size, _ in known], [max(score["value"], WORST) for _, score in known]
        axes.plot(sizes, values, "o-", color=colour, label=name)
        lows, highs = ([max(score[end], WORST) for _, score in known] for end in ("low", "high"))
        axes.fill_between(sizes, lows, highs, color=colour, alpha=0.12, linewidth=0)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(sized), [f"{size}^3" for size in sorted(sized)])
    axes.set_xlabel("voxels of a scan")
    axes.set_ylabel("R2, 95 % interval")
    _legend(figure)
    return figure


def time_and_memory(sizes: Told) -> Figure:
    """Seconds and MiB against voxels, by who; estimates are hollow."""
    figure = Figure(figsize=(7.2, 3.4), layout="constrained")
    seconds, memory = figure.subplots(1, 2)
    ways = list(dict.fromkeys(way for of in sizes.values() for way in of))
    for way, colour in zip(ways, COLOURS, strict=False):
        for axes, key, line in (
            (seconds, "cold_s", "-"),
            (seconds, "warm_s", ":"),
            (memory, "peak_mib", "-"),
        ):
            rows = [(voxels(size), of[way]) for size, of in sizes.items() if key in of.get(way, {})]
            rows.sort(key=lambda row: row[0])
            if not rows:
                continue
            label = f"{way}, {key.removesuffix('_s')}" if axes is seconds else None
            axes.plot([at for at, _ in rows], [row[key] for _, row in rows], line, color=colour, label=label)
            for at, row in rows:
                face = colour if row.get("ran", True) else "white"
                axes.plot(at, row[key], "o", color=colour, markerfacecolor=face)
    for axes, what in ((seconds, "seconds"), (memory, "MiB above the start")):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel("voxels of the scan")
        axes.set_ylabel(what)
    _legend(figure)
    return figure


def coverage(told: Told) -> Figure:
    """Empirical against nominal coverage, beside three points either way.

    Dots are split-conformal; squares are intervals as shipped, by the recipe that is taken, and crosses what
    quantiles hold that were not widened.
    """
    figure, axes = _figure(6.6, 4.4)
    cohorts, cpic = told.get("cohorts", []), told.get("cpic_as_shipped")
    for number, table, colour in zip(count(), cohorts, COLOURS, strict=False):
        shift = 0.002 * (number - (len(cohorts) - 1) / 2)
        at, covered = _covered(table["split"], shift)
        label = f"{table['cohort']}, {table['reader']}"
        axes.errorbar(at, covered, yerr=table["noise"], fmt="o", color=colour, label=label, capsize=2)
        if "as_shipped" in table:
            axes.plot(
                *_covered(table["as_shipped"]["auto"], shift), "s", color=colour, markerfacecolor="none"
            )
        if "quantiles" in table:
            axes.plot(*_covered([table["quantiles"]["own"]], shift), "x", color=colour)
    if cpic is not None:
        label = f"spread, cpic as shipped, {cpic['splits']} splits"
        axes.plot(
            *_covered(cpic["as_shipped"], 0), "D", color=COLOURS[-1], label=label, markerfacecolor="none"
        )
    if any("as_shipped" in table for table in cohorts):
        axes.plot([], [], "s", color="#444444", markerfacecolor="none", label="as shipped (auto)")
        axes.plot([], [], "x", color="#444444", label="q.2 to q.8, not widened")
    ends = np.array(axes.get_xlim())
    axes.plot(ends, ends, color="#666666", linewidth=0.8, zorder=1)
    axes.fill_between(ends, ends - 0.03, ends + 0.03, color="#eeeeee", zorder=0)
    axes.set_xlim(*ends)
    axes.set_xlabel("nominal coverage")
    axes.set_ylabel("empirical coverage")
    _legend(figure)
    return figure


def rates(scans: Told) -> Figure:
    """PSNR against ratio, a panel for each scan; the best that loses nothing is a vertical line."""
    names = list(dict.fromkeys(name for scan in scans.values() for name in scan["compressors"]))
    lossy = [name for name in names if any(_lossy(scan, name) for scan in scans.values())]
    figure, panels = _panels(len(scans), 2.5)
    for axes, (name, scan) in zip(panels, scans.items(), strict=True):
        for who, colour in zip(lossy, COLOURS, strict=False):
            files = _lossy(scan, who)
            axes.plot([ratio for ratio, _ in files], [psnr for _, psnr in files], ".-", color=colour)
        if scan["lossless"]:
            axes.axvline(max(scan["lossless"].values()), color="#666666", linewidth=0.8)
        axes.set_xscale("log")
        axes.set_xticks(RATIO_TICKS, [str(ratio) for ratio in RATIO_TICKS])
        axes.set_xticks([], minor=True)
        axes.set_title(f"{name}, {scan['dtype']}", fontsize=9)
        axes.set_ylabel("PSNR, dB")
    panels[-1].set_xlabel("source bytes for each stored byte")
    for who, colour in zip(lossy, COLOURS, strict=False):
        panels[0].plot([], [], ".-", color=colour, label=who)
    _legend(figure)
    return figure


def _lossy(scan: Told, name: str) -> list[tuple[float, float]]:
    """Files from 3:1 on; none of a compressor that did not take part, or loses nothing."""
    files = scan["compressors"].get(name, {"files": ()})["files"]
    return [(ratio, psnr) for ratio, psnr in files if psnr is not None and 3 <= ratio <= 130]


def bounds(scans: Told) -> Figure:
    """Ratio against the bound, filled, and the best lossless compressor's, hollow."""
    figure, axes = _figure(6.6, 3.4)
    for (name, scan), colour in zip(scans.items(), COLOURS * 2, strict=False):
        deltas = [int(delta) for delta in scan["bounds"]]
        rows = list(scan["bounds"].values())
        plain = [row["ratio"] * row["bytes"] / row["plain_bytes"] for row in rows]
        axes.plot(deltas, [row["ratio"] for row in rows], "o-", color=colour, label=name)
        axes.plot(deltas, plain, "o", color=colour, markerfacecolor="none", markersize=8)
    axes.set_yscale("log")
    axes.set_xlabel("largest error of a voxel")
    axes.set_ylabel("source bytes for each stored byte")
    _legend(figure)
    return figure


def _panels(count: int, height: float) -> tuple[Figure, list[Axes]]:
    """So many, in two columns."""
    rows = -(-count // 2)
    figure = Figure(figsize=(7.2, 0.6 + height * rows), layout="constrained")
    grid = figure.subplots(rows, 2, squeeze=False).ravel().tolist()
    for unused in grid[count:]:
        unused.set_axis_off()
    return figure, grid[:count]


def _covered(rows: Sequence[Told], shift: float) -> tuple[list[float], list[float]]:
    """(nominal, empirical); the former moved aside, so that cohorts do not hide each other."""
    return [row["level"] + shift for row in rows], [row["coverage"] for row in rows]


def histories(runs: Runs) -> Iterator[tuple[str, Told]]:
    """Courses of trainings, by what was trained: of regressors in cases, and of whole runs."""
    for name, run in runs.cases.items():
        for shown, facts in run.told["regressors"].items():
            for stage, history in facts.get("histories", {}).items():
                yield f"{name}, {shown}, {stage}", history
    for name, run in runs.others.items():
        for stage, history in run.told.get("histories", {}).items():
            yield f"{name}, {stage}", history


def curves(told: dict[str, Told]) -> Figure:
    """Losses by epoch; those of held-out people are dashed."""
    figure, axes = _figure(6.6, 3.2)
    for (name, history), colour in zip(told.items(), COLOURS, strict=False):
        axes.plot(range(1, len(history["losses"]) + 1), history["losses"], color=colour, label=name)
        held = [(n, value) for n, value in enumerate(history["validations"], 1) if value is not None]
        axes.plot([n for n, _ in held], [value for _, value in held], "--", color=colour)
    axes.set_xlabel("epoch")
    axes.set_ylabel("mean loss")
    _legend(figure)
    return figure


def voxels(size: str) -> int:
    """Of a scan whose size is told as `EDGE` or as `ZxYxX`."""
    sides = [int(side) for side in size.split("x")]
    return prod(sides) if len(sides) > 1 else sides[0] ** 3


def _of(run: Run, name: str) -> Told | None:
    found: Told | None = run.told["regressors"].get(name)
    return found


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _legend(figure: Figure) -> None:
    figure.legend(loc="outside right upper", frameon=False)
