"""Noise and gaps in cubes of real scans: what trains restore, and what needs no train.

Cubes of 64^3, values from 0 to 1 (`benchmarks.scan_cubes`). Noise is white and normal, and not clipped. Gaps:
voxels kept at random, or cubes missing anywhere; their PSNR is that of the gaps alone, what was observed
does not count. Means over the seeds, of decibels. Descents take the paper's 512 steps, each at the paper's
rate and at RATE; direct ones, at the full side, also eight times as many where the two are compared (first
seed only). Their ranks: with noise those that `denoised` finds, with gaps 40; with noise also 40, at the
paper's rate.

Noise:
    gaussian, oracle      the best of WIDTHS, which only who knows the truth can choose
    non-local means       of scikit-image, fast mode, told the sigma that ours estimates; PATCHES and STRENGTH
                          did best of 28 settings on these very cubes
    train, rank 40        TT-SVD of the noisy cube
    train                 `denoised`: the directions above the noise's edge, sigma estimated
    shifts                `denoise`: the mean over 8 shifts of such trains
    shifts, train         the train of that mean
Gaps:
    pyramid               the baseline (`filled`); smooth: `smoothly_filled`
    complete              what `complete` says, by hidden voxels; complete, train: its train's values
    complete, rank 40     those of a train of rank 40

    noise_gain            coarse to fine minus direct, equal steps, the paper's rate, sigma 0.1: least scan
    gaps_gain             the same at 10 % kept
    ..._rank_40           of rank 40
    ..._own_rates         each at its better one of the two rates, which only who knows the truth can choose
    ..._8x                likewise, against direct for eight times as long (whose seed is one)
    fill_minus_train      pyramid minus the train of `complete`: worst scan and gaps
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from benchmarks.scan_cubes import decibels, scan_cube
from benchmarks.targets import Target, judged, show_targets
from models.putt.completion import complete, filled, smoothly_filled
from models.putt.denoising import denoise, denoised, noise_deviation
from models.putt.descent import DescentConfig, Schedule, descended
from models.putt.factorising import tt_svd_by_gram
from models.putt.morton import from_morton, to_morton
from models.tt.train import TensorTrain

SCANS = ("stroke_t1", "abdomen_ct")
SEEDS = (0, 1, 2)
RANK, LONG = 40, 8
PAPER, RATE = Schedule.paper(64).rate, 0.03
SIGMAS = (0.05, 0.1, 0.2)
KEPT = {"1 % kept": 0.01, "10 % kept": 0.1, "50 % kept": 0.5}
BLOCKS = {"blocks of 8": (8, 50), "blocks of 16": (16, 6)}
"""Side and number of the cubes that are missing."""
WIDTHS = np.arange(0.3, 2.05, 0.1)
PATCHES, STRENGTH = {"patch_size": 5, "patch_distance": 2}, 0.5
"""Of non-local means: a patch's side and how far along each axis another may be; h, in sigmas."""
COARSE, DIRECT, DIRECT_LONG = "coarse to fine, ", "direct, ", "direct 8x, "
NOISE, GAPS = "noise 0.1", "10 % kept"
"""Where descents are compared."""
TARGETS = (
    Target("noise_gain", 3, at_least=True),
    Target("gaps_gain", 1.5, at_least=True),
    Target("fill_minus_train", 0.5),
)

Row = dict[str, Any]
Way = Callable[[], Tensor]
"""Gives the restored cube."""


def run(only: Sequence[str] | None = None) -> dict[str, Any]:
    """All scans, or those that are named."""
    torch.set_num_threads(1)
    if unknown := sorted(set(only or ()) - set(SCANS)):
        raise SystemExit(f"no scan {', '.join(unknown)}: there are {', '.join(SCANS)}")
    scans = {name: measured(scan_cube(name, 64)) for name in only or SCANS}
    found = keys(scans)
    skipped = {} if find_spec("skimage") else {"non-local means": "scikit-image is not installed"}
    return {**found, "targets": judged(found, TARGETS), "threads": 1, "skipped": skipped, "scans": scans}


def measured(truth: Tensor, seeds: Sequence[int] = SEEDS) -> Row:
    """Of every corruption a row per way."""
    found = {f"noise {sigma:g}": [with_noise(truth, sigma, seed) for seed in seeds] for sigma in SIGMAS}
    found |= {name: [with_gaps(truth, name, seed) for seed in seeds] for name in (*KEPT, *BLOCKS)}
    return {name: means(rows) for name, rows in found.items()}


def with_noise(truth: Tensor, sigma: float, seed: int) -> dict[str, Row]:
    """Every way to take noise away, one seed."""
    generator = torch.Generator().manual_seed(seed)
    noisy = truth + sigma * torch.randn(truth.shape, generator=generator, dtype=truth.dtype)
    long = seed == SEEDS[0] and f"noise {sigma:g}" == NOISE
    ways: dict[str, Way] = {
        "noisy": lambda: noisy,
        "gaussian, oracle": lambda: best_gaussian(noisy, truth),
        **({"non-local means": lambda: non_local_means(noisy)} if find_spec("skimage") else {}),
        f"train, rank {RANK}": lambda: of(tt_svd_by_gram(to_morton(noisy), max_rank=RANK)[0]),
        "train": lambda: of(denoised(noisy).train),
        "shifts": lambda: denoise(noisy, seed=seed).values,
        "shifts, train": lambda: of(denoise(noisy, seed=seed).train),
        **{f"{name}, rank {RANK}": way for name, way in descents(noisy, None, seed, (PAPER,)).items()},
        **descents(noisy, None, seed, ranks=denoised(noisy).train.ranks, long=long),
    }
    return {name: timed(way, truth, torch.ones_like(truth) > 0) for name, way in ways.items()}


def with_gaps(truth: Tensor, name: str, seed: int) -> dict[str, Row]:
    """Every way to fill gaps, one seed."""
    mask = observed(name, len(truth), seed)
    values = torch.where(mask, truth, torch.nan)
    ways: dict[str, Way] = {
        "pyramid": lambda: filled(values, mask),
        "smooth": lambda: smoothly_filled(values, mask),
        "complete": lambda: complete(values, mask, seed=seed).values,
        "complete, train": lambda: of(complete(values, mask, seed=seed).train),
        f"complete, rank {RANK}": lambda: of(complete(values, mask, seed=seed, rank=RANK).train),
        **descents(values, mask, seed, long=seed == SEEDS[0] and name == GAPS),
    }
    rows = {way: timed(make, truth, ~mask) for way, make in ways.items()}
    told = complete(values, mask, seed=seed)
    if told.held_out:
        rows["complete"]["expected"] = decibels(torch.tensor(told.held_out**2, dtype=torch.float64))
    rows["complete, train"]["rank"] = max(told.train.ranks)
    return rows


def observed(name: str, side: int, seed: int) -> Tensor:
    """Where the cube is known."""
    generator = torch.Generator().manual_seed(seed)
    if name in KEPT:
        return torch.rand((side,) * 3, generator=generator) < KEPT[name]
    size, count = BLOCKS[name]
    mask = torch.ones((side,) * 3, dtype=torch.bool)
    for z, y, x in torch.randint(side - size + 1, (count, 3), generator=generator).tolist():
        mask[z : z + size, y : y + size, x : x + size] = False
    return mask


def descents(
    values: Tensor,
    mask: Tensor | None,
    seed: int,
    rates: Sequence[float] = (PAPER, RATE),
    *,
    ranks: int | tuple[int, ...] = RANK,
    long: bool = False,
) -> dict[str, Way]:
    """Coarse to fine and direct, at each rate."""
    paper, config = Schedule.paper(len(values)), DescentConfig(max_rank=ranks)

    def descent(schedule: Schedule) -> Way:
        return lambda: of(descended(values, schedule, config, seed=seed, mask=mask).train)

    ways: dict[str, Way] = {}
    for rate in rates:
        direct = Schedule.direct(len(values), paper.steps, rate)
        ways[f"{COARSE}{rate:g}"] = descent(replace(paper, rate=rate))
        ways[f"{DIRECT}{rate:g}"] = descent(direct)
        if long:
            ways[f"{DIRECT_LONG}{rate:g}"] = descent(replace(direct, steps=LONG * paper.steps))
    return ways


def of(train: TensorTrain) -> Tensor:
    """The cube."""
    return from_morton(train.full())


def best_gaussian(noisy: Tensor, truth: Tensor) -> Tensor:
    """By the width whose squared error is least."""
    tried: Iterator[Tensor] = (torch.from_numpy(gaussian_filter(noisy.numpy(), width)) for width in WIDTHS)
    return min(tried, key=lambda found: float((found - truth).square().sum()))


def non_local_means(noisy: Tensor) -> Tensor:
    """Of scikit-image."""
    sigma = noise_deviation(noisy)
    restoration = import_module("skimage.restoration")
    found = restoration.denoise_nl_means(
        noisy.numpy(), **PATCHES, h=STRENGTH * sigma, sigma=sigma, fast_mode=True
    )
    return torch.from_numpy(found)


def timed(way: Way, truth: Tensor, where: Tensor) -> Row:
    """The PSNR there, and seconds of the processor."""
    cpu = time.process_time()
    found = way()
    return {"psnr": decibels((found - truth)[where].square()), "cpu_s": time.process_time() - cpu}


def means(seeds: Sequence[dict[str, Row]]) -> dict[str, Row]:
    """Of every number over the seeds that have it, and the least PSNR."""
    found: dict[str, Row] = {}
    for name in seeds[0]:
        rows = [rows[name] for rows in seeds if name in rows]
        found[name] = {key: statistics.mean(row[key] for row in rows if key in row) for key in rows[0]}
        found[name] |= {"least": min(row["psnr"] for row in rows), "seeds": len(rows)}
    return found


def keys(scans: dict[str, Row]) -> dict[str, float]:
    """What is asked, of the scan where it is worst."""
    found = {}
    for name, place in (("noise_gain", NOISE), ("gaps_gain", GAPS)):
        tables = [scan[place] for scan in scans.values()]
        found[name] = min(gain(table, f"{PAPER:g}") for table in tables)
        if place == NOISE:
            found[f"{name}_rank_{RANK}"] = min(gain(table, f"{PAPER:g}, rank {RANK}") for table in tables)
        ours = [best(table, COARSE) for table in tables]
        for against, long in (("own_rates", DIRECT), ("8x", DIRECT_LONG)):
            found[f"{name}_{against}"] = min(
                one - best(table, long) for one, table in zip(ours, tables, strict=True)
            )
    gaps = [table for scan in scans.values() for table in scan.values() if "pyramid" in table]
    for way, key in (("complete, train", "train"), (f"complete, rank {RANK}", f"rank_{RANK}")):
        found[f"fill_minus_{key}"] = max(table["pyramid"]["psnr"] - table[way]["psnr"] for table in gaps)
    return found


def gain(table: Row, how: str) -> float:
    """Coarse to fine minus direct."""
    return float(table[f"{COARSE}{how}"]["psnr"] - table[f"{DIRECT}{how}"]["psnr"])


def best(table: Row, way: str) -> float:
    """The highest PSNR of a way at any rate."""
    return max(float(table[name]["psnr"]) for rate in (PAPER, RATE) if (name := f"{way}{rate:g}") in table)


def show(result: dict[str, Any]) -> None:
    """A table per scan and corruption."""
    for scan, tables in result["scans"].items():
        for name, table in tables.items():
            print(f"\n{scan}, {name}")
            print(f"  {'':<32}{'PSNR':>8}{'least':>8}{'CPU s':>8}")
            for way, row in table.items():
                more = "".join(f"  {key} {row[key]:.4g}" for key in ("expected", "rank") if key in row)
                print(f"  {way:<32}{row['psnr']:>8.2f}{row['least']:>8.2f}{row['cpu_s']:>8.2f}{more}")
    show_targets(result["targets"])
    print()
    for key, value in result.items():
        if isinstance(value, float):
            print(f"{key:<28}{value:.3g}")
    for way, reason in result["skipped"].items():
        print(f"skipped: {way}, {reason}")
