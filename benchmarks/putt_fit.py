"""Single cubes of real scans as quantised tensor trains: how near to the best train, and how fast.

PSNR in decibels (the peak is the cube's range), seconds and milliseconds of the processor, one thread;
medians over the seeds of random methods, and the worst of them.

    tt_svd            by Gram matrices
    als               and a sweep of alternating least squares
    coarse_to_fine    our descent by the paper's steps, at RATE, four times the paper's rate
    its_rate          the same at the paper's rate
    direct            as many steps at the full side, at RATE
    direct_8x         eight times as many; one rank, one seed
    reference         as the authors' code does it (`DescentConfig.reference`), the paper's rate; one seed

`bound` is certified: no train of these ranks, however it is found, has a higher PSNR. A step's milliseconds
are those of `direct`, whose steps are all at the full side. At 128^3 descents have one seed, and `reference`
is not run.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.scan_cubes import decibels, scan_cube
from benchmarks.targets import Target, judged, number, show_targets
from models.putt.descent import DescentConfig, Schedule, descended
from models.putt.factorising import factorised, tt_svd_by_gram
from models.putt.morton import from_morton, to_morton
from models.tt.als import als
from models.tt.train import TensorTrain

SEEDS = (0, 1, 2)
RATE = 0.03
LONG_RANK, LONG = 40, 8
DIRECT_128 = 64
"""The rank whose direct descent is run at 128^3."""

Row = dict[str, Any]
Make = Callable[[int], TensorTrain]
"""A seed to a train."""


@dataclass(frozen=True)
class Case:
    """A cube, and the ranks of its trains."""

    scan: str
    side: int
    ranks: tuple[int, ...]

    @property
    def name(self) -> str:
        """As `--only` says it."""
        return f"{self.scan}-{self.side}"


CASES = (
    Case("stroke_t1", 64, (20, 40, 80)),
    Case("abdomen_ct", 64, (20, 40, 80)),
    Case("head_ct", 64, (20, 40, 80)),
    Case("stroke_t1", 128, (40, 64, 105)),
    Case("abdomen_ct", 128, (40, 64)),
)
TARGETS = (
    Target("als_behind_bound", 2),
    Target("coarse_to_fine_behind_bound", 2),
    Target("step_ms_64_rank_40", 5),
    Target("step_ms_128_rank_64", 40),
)


def run(only: Sequence[str] | None = None) -> dict[str, Any]:
    """All cases, or those that are named."""
    torch.set_num_threads(1)
    cases = {case.name: measured(case) for case in chosen(only)}
    found = keys(cases)
    return {**found, "targets": judged(found, TARGETS), "threads": 1, "cases": cases}


def chosen(only: Sequence[str] | None) -> Iterable[Case]:
    """Raises SystemExit for a case that there is not."""
    known = {case.name: case for case in CASES}
    if unknown := sorted(set(only or ()) - set(known)):
        raise SystemExit(f"no case {', '.join(unknown)}: there are {', '.join(known)}")
    return known.values() if only is None else [known[name] for name in only]


def measured(case: Case) -> Row:
    """A row per method, for each rank."""
    cube = scan_cube(case.scan, case.side)
    return {str(rank): of_rank(cube, rank) for rank in case.ranks}


def of_rank(cube: Tensor, rank: int) -> Row:
    """The bound, and every method."""
    tensor = to_morton(cube)
    exact = factorised(tensor, max_rank=rank)
    train = exact.train
    rows = {
        "tt_svd": timed(cube, lambda _: tt_svd_by_gram(tensor, max_rank=rank)[0], SEEDS),
        "als": timed(cube, lambda _: als(tensor, tt_svd_by_gram(tensor, max_rank=rank)[0]), SEEDS),
        **descents(cube, rank),
    }
    return {
        "numbers": sum(core.numel() for core in train.cores),
        "bound": decibels(torch.tensor(exact.bound_low / cube.numel(), dtype=torch.float64)),
        "rows": rows,
    }


def descents(cube: Tensor, rank: int) -> dict[str, Row]:
    """Those that are run at this side and rank."""
    side, config = len(cube), DescentConfig(max_rank=rank)
    paper = Schedule.paper(side)
    ours, full = replace(paper, rate=RATE), Schedule.direct(side, paper.steps, RATE)

    def descent(schedule: Schedule, how: DescentConfig = config) -> Make:
        return lambda seed: descended(cube, schedule, how, seed=seed).train

    if side > 64:
        rows = {"coarse_to_fine": timed(cube, descent(ours), SEEDS[:1])}
        if rank == DIRECT_128:
            rows["direct"] = with_step(timed(cube, descent(full), SEEDS[:1]), full.steps)
        return rows
    rows = {
        "coarse_to_fine": timed(cube, descent(ours), SEEDS),
        "its_rate": timed(cube, descent(paper), SEEDS),
        "direct": with_step(timed(cube, descent(full), SEEDS), full.steps),
        "reference": timed(cube, descent(paper, replace(config, reference=True)), SEEDS[:1]),
    }
    if rank == LONG_RANK:
        rows["direct_8x"] = timed(cube, descent(replace(full, steps=LONG * full.steps)), SEEDS[:1])
    return rows


def timed(cube: Tensor, make: Make, seeds: Sequence[int]) -> Row:
    """Medians over seeds, and the worst PSNR."""
    psnrs, cpus, walls = [], [], []
    for seed in seeds:
        wall, cpu = time.perf_counter(), time.process_time()
        train = make(seed)
        cpus.append(time.process_time() - cpu)
        walls.append(time.perf_counter() - wall)
        psnrs.append(decibels((from_morton(train.full()) - cube).square()))
    return {
        "psnr": statistics.median(psnrs),
        "worst": min(psnrs),
        "cpu_s": statistics.median(cpus),
        "wall_s": statistics.median(walls),
        "seeds": len(psnrs),
    }


def with_step(row: Row, steps: int) -> Row:
    """And milliseconds of one of so many steps."""
    return row | {"step_ms": 1000 * row["cpu_s"] / steps}


def keys(cases: dict[str, Row]) -> dict[str, float]:
    """The worst distances from the bound, and the slowest steps."""
    trains = [train for case in cases.values() for train in case.values()]
    found = {
        f"{method}_behind_bound": max(train["bound"] - train["rows"][method]["worst"] for train in trains)
        for method in ("tt_svd", "als", "coarse_to_fine")
    }
    for side, rank in ((64, LONG_RANK), (128, DIRECT_128)):
        known = [
            case[str(rank)]["rows"]["direct"]["step_ms"]
            for name, case in cases.items()
            if name.endswith(f"-{side}")
        ]
        found |= {f"step_ms_{side}_rank_{rank}": max(known)} if known else {}
    return found


def show(result: dict[str, Any]) -> None:
    """A table per cube."""
    for name, ranks in result["cases"].items():
        for rank, train in ranks.items():
            print(f"\n{name}, rank {rank}: {train['numbers']:,} numbers, bound {train['bound']:.2f} dB")
            print(f"  {'':<16}{'PSNR':>8}{'worst':>8}{'behind':>8}{'CPU s':>9}{'step ms':>9}")
            for method, row in train["rows"].items():
                behind = train["bound"] - row["worst"]
                ms = number(row["step_ms"]) if "step_ms" in row else ""
                print(
                    f"  {method:<16}{row['psnr']:>8.2f}{row['worst']:>8.2f}{behind:>8.2f}"
                    f"{row['cpu_s']:>9.3f}{ms:>9}"
                )
    show_targets(result["targets"])
