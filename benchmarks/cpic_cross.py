"""Cross-approximation against tntorch and teneva (and torchTT where it is installed), on the same work.

Headline: a smooth field of 256^3 voxels x 16 features behind a sigmoid, as one quantised train of 28 binary
modes, rank 10; tntorch with C-PIC's 15 iterations, teneva with 2 sweeps, and every method looking at the
field through the same counting probe. Then fields with known difficulty: 1 / (0.1 + z + y + x) at 512^3,
blobs, and a real T1 head at 256^3, where the best that a train of that rank can do (TT-SVD of the dense
volume) stands beside.

`evaluated` counts the entries at which the field was evaluated: by ours and by teneva with a cache each once,
by the others as often as they ask (1,000 of tntorch's are its validation set). `requested` counts what ours
asked its memory for, `cubes` the distinct voxels. Errors are relative, at 50,000 random entries; the centred
one is sqrt(sum (T - E)^2 / sum (E - mean of its feature)^2).

Medians over 3 seeds. Methods take turns, so that all see the same machine; in the headline fast ones go
several rounds. The field's own time is in every time. `time_ratio_...` is of wall times, `cpu_ratio_...` of
CPU times.

`batch_speedup...` and `warm_...` are of `benchmarks.volumes`: 24 volumes at once against one by one, and one
half-sweep from earlier index sets against three cold sweeps. `targets` are those of papers/cpic.md, section
10 (A2 to A4, A6 to A8).
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks import fields, peers, volumes
from benchmarks.approximation import approximate, errors, where
from benchmarks.fields import Field, Probe, Values
from benchmarks.targets import Target, judged, number, show_targets
from models.tt.qtt import Layout, qtt_layout, tt_layout
from models.tt.rounding import tt_svd
from models.tt.train import TensorTrain
from models.types import Int64

SEEDS = (0, 1, 2)
TEST_ENTRIES = 50_000
ROUNDS, ENOUGH_S = 7, 1.0
"""Rounds of the headline; a method that has run for ENOUGH_S seconds goes no further."""

Make = Callable[[Probe, int], tuple[TensorTrain, int]]
"""(probe, seed) to the train and the number of entries requested."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Method:
    """One way to make a train. `peer` is the library that it needs.

    The train of a `block` method has the spatial modes, and one of all features.
    """

    name: str
    make: Make
    peer: str | None = None
    block: bool = False


@dataclass(frozen=True)
class Case:
    """One field in one layout, and who approximates it in turn. `optimum` is the best error, if known."""

    name: str
    field: Field
    layout: Layout
    methods: tuple[Method, ...]
    optimum: Callable[[], float] | None = None
    rounds: int = 1


def run(cases: Iterable[Case] | None = None, *, seeds: tuple[int, ...] = SEEDS) -> dict[str, Any]:
    """All cases. The keys without a case are the headline's."""
    torch.set_num_threads(1)
    tables: dict[str, Any] = {}
    for case in all_cases() if cases is None else cases:
        rows = measured(case, seeds)
        tables[case.name] = {"rows": rows, "optimum": case.optimum and case.optimum()}
    skipped = {peer: reason for peer in peers.PEERS if (reason := peers.missing(peer))}
    if cases is None and (reason := no_head()):
        skipped["head"] = reason
    found = headline(tables)
    if cases is None:
        found |= volumes.batches() | volumes.warm_starts()
    threads = {"torch": torch.get_num_threads(), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS")}
    return {
        **found,
        "targets": judged(found | cells(tables), TARGETS),
        "threads": threads,
        "skipped": skipped,
        "cases": tables,
    }


def headline(tables: dict[str, Any]) -> dict[str, Any]:
    """The ratios that are promised, from the first case, as far as its methods took part."""
    rows = next(iter(tables.values()))["rows"]
    ours, found = rows[OURS.name], {}
    for peer, method in (("tntorch", TNTORCH_15.name), ("teneva", TENEVA_2.name)):
        if method in rows:
            keys = {"evals": "evaluated", "time": "wall_s", "cpu": "cpu_s", "error": "centred_error"}
            ratios = {f"{what}_ratio_{peer}": ours[key] / rows[method][key] for what, key in keys.items()}
            found.update(ratios)
    if block := rows.get(BLOCK.name):
        found |= {"block_error": block["centred_error"], "block_cubes": block["cubes"]}
    return found


def cells(tables: dict[str, Any]) -> dict[str, float]:
    """Every cell of the tables as "case; method; column"."""
    return {
        f"{case}; {method}; {column}": value
        for case, table in tables.items()
        for method, row in table["rows"].items()
        for column, value in row.items()
    }


def show(result: dict[str, Any]) -> None:
    """Print the tables."""
    for name, case in result["cases"].items():
        print(f"\n{name}")
        print(f"  {'':<30}" + "".join(f"{column:>14}" for column in COLUMNS))
        for method, row in case["rows"].items():
            print(f"  {method:<30}" + "".join(f"{number(row[column]):>14}" for column in COLUMNS))
        if case["optimum"] is not None:
            print(f"  {'best train of that rank':<30}{number(case['optimum']):>{14 * 7}}")
    show_targets(result["targets"])
    print()
    for key, value in result.items():
        if key not in {"cases", "skipped", "targets"}:
            print(f"{key:<28}{value:.4g}" if isinstance(value, int | float) else f"{key:<28}{value}")
    for reason in result["skipped"].values():
        print(f"skipped: {reason}")


COLUMNS = (
    "requested",
    "evaluated",
    "unique",
    "cubes",
    "wall_s",
    "cpu_s",
    "error",
    "centred_error",
    "worst_centred",
)


def measured(case: Case, seeds: tuple[int, ...]) -> dict[str, Row]:
    """A row per method: medians over the seeds, and the worst centred error of any."""
    methods = [method for method in case.methods if method.peer is None or not peers.missing(method.peer)]
    test = np.random.default_rng(9).integers(0, case.layout.shape, (TEST_ENTRIES, 4))
    truth = case.field(test)
    by_seed = [one_seed(case, methods, seed, test, truth) for seed in seeds]
    return {method.name: medians([rows[method.name] for rows in by_seed]) for method in methods}


def one_seed(case: Case, methods: list[Method], seed: int, test: Int64, truth: Values) -> dict[str, Row]:
    """Every method in turn, round after round: times are medians over the rounds, the rest does not vary."""
    rows: dict[str, Row] = {}
    walls: dict[str, list[float]] = {method.name: [] for method in methods}
    cpus: dict[str, list[float]] = {method.name: [] for method in methods}
    for _ in range(case.rounds):
        for method in methods:
            if sum(walls[method.name]) >= ENOUGH_S:
                continue
            probe = Probe(case.field, case.layout)
            wall, cpu = time.perf_counter(), time.process_time()
            train, requested = method.make(probe, seed)
            walls[method.name].append(time.perf_counter() - wall)
            cpus[method.name].append(time.process_time() - cpu)
            if method.name not in rows:
                at = where(case.layout, test, block=method.block)
                rows[method.name] = {
                    "requested": requested or probe.evaluated,
                    "evaluated": probe.evaluated,
                    "unique": probe.unique,
                    "cubes": probe.unique_voxels,
                    **errors(train.at(at).numpy(), truth, test[:, 3]),
                }
    times = {name: (statistics.median(walls[name]), statistics.median(cpus[name])) for name in rows}
    return {name: {**row, "wall_s": times[name][0], "cpu_s": times[name][1]} for name, row in rows.items()}


def medians(rows: list[Row]) -> Row:
    """Of whole numbers the lower median, so that they stay whole."""
    row: Row = {"worst_centred": max(row["centred_error"] for row in rows)}
    for key in rows[0]:
        values = [row[key] for row in rows]
        row[key] = statistics.median_low(values) if isinstance(values[0], int) else statistics.median(values)
    return row


def ours(rank: int, sweeps: int, *, oversampling: int = 1, block: bool = False) -> Make:
    """Index sets, possibly larger than the rank, or of whole voxels with all features; the train of both."""

    def make(probe: Probe, seed: int) -> tuple[TensorTrain, int]:
        found = approximate(probe, rank, sweeps, seed, oversampling=oversampling, block=block)
        return found.train, found.requested

    return make


def tntorch(rank: int, iterations: int) -> Method:
    """tntorch, fixed ranks."""
    return Method(
        f"tntorch, {iterations} iterations",
        lambda probe, seed: (peers.tntorch_cross(probe, probe.layout.modes, rank, iterations, seed), 0),
        "tntorch",
    )


def teneva(rank: int, sweeps: int, *, cached: bool = False) -> Method:
    """teneva, fixed ranks."""
    return Method(
        f"teneva, {sweeps} sweeps" + (", cache" if cached else ""),
        lambda probe, seed: (
            peers.teneva_cross(probe, probe.layout.modes, rank, sweeps, seed, cached=cached),
            0,
        ),
        "teneva",
    )


def torchtt(rank: int) -> Method:
    """torchTT, two-site, 3 sweeps."""
    return Method(
        "torchTT DMRG, 3 sweeps",
        lambda probe, seed: (peers.torchtt_cross(probe, probe.layout.modes, rank, 3, seed), 0),
        "torchTT",
    )


def plain(rank: int, sweeps: int) -> Method:
    """Ours, with as many rows and columns as the rank."""
    return Method(f"ours, {sweeps} sweeps", ours(rank, sweeps))


def oversampled(rank: int, sweeps: int) -> Method:
    """Ours, with twice as many rows and columns as the rank."""
    times = "1 half-sweep" if sweeps == 1 else f"{sweeps} sweeps"
    return Method(f"ours, oversampled 2x, {times}", ours(rank, sweeps, oversampling=2))


RANK = 10
OURS = plain(RANK, 2)
BLOCK = Method("ours, block, 1 half-sweep", ours(RANK, 1, block=True), block=True)
BLOCK_2 = Method("ours, block, 2 sweeps", ours(RANK, 2, block=True), block=True)
TNTORCH_15, TENEVA_2 = tntorch(RANK, 15), teneva(RANK, 2)
HALF_OVERSAMPLED, OVERSAMPLED = oversampled(RANK, 1), oversampled(RANK, 2)
OURS_20 = plain(20, 2)

HILBERT, SHARP, HEAD = "1/(0.1+z+y+x) 512^3", "sharp blobs", "T1 head 256^3, TT, rank 10"
TARGETS = (
    Target("evals_ratio_tntorch", 0.1),
    Target("time_ratio_tntorch", 0.02),
    Target("error_ratio_tntorch", 1.0),
    Target("evals_ratio_teneva", 0.5),
    Target("time_ratio_teneva", 0.5),
    Target("block_error", 0.08),
    Target("block_cubes", 2000),
    Target("batch_speedup", 3, at_least=True),
    Target("warm_error_ratio", 1.1),
    Target("warm_evals_ratio", 1 / 3),
    Target(f"{HILBERT}, TT, rank 10; {OURS.name}; error", 2e-8),
    Target(f"{HILBERT}, QTT sequential, rank 10; {OURS.name}; error", 5e-8),
    Target(f"{HILBERT}, QTT sequential, rank 10; {OURS.name}; unique", 6000),
    Target(f"{HILBERT}, QTT interleaved, rank 10; {OURS.name}; error", 1e-10),
    Target(f"{SHARP} 256^3, TT, rank 10; {OURS.name}; error", 4e-3),
    Target(f"{SHARP} 256^3, QTT sequential, rank 10; {OURS.name}; error", 1e-1),
    Target(f"{SHARP} 256^3, QTT sequential, rank 10; {OVERSAMPLED.name}; error", 1e-1),
    Target(f"{SHARP} 128^3, TT, rank 20; {OURS_20.name}; error", 1e-6),
    Target(f"{HEAD}; {HALF_OVERSAMPLED.name}; error", 0.5),
    Target(f"{HEAD}; {HALF_OVERSAMPLED.name}; unique", 120_000),
)


def all_cases() -> Iterable[Case]:
    """The headline first; cases that need more memory are made when their turn comes."""
    qtt = qtt_layout((256,) * 3, 16)
    yield Case(
        "256^3 x 16 smooth sigmoid field, QTT, rank 10",
        fields.sigmoid_waves(256, 16),
        qtt,
        (
            OURS,
            plain(RANK, 3),
            BLOCK,
            BLOCK_2,
            TNTORCH_15,
            tntorch(RANK, 3),
            TENEVA_2,
            teneva(RANK, 2, cached=True),
            teneva(RANK, 5),
            torchtt(RANK),
        ),
        rounds=ROUNDS,
    )
    yield from known_cases()
    if no_head() is None:
        yield from head_cases(256)


def known_cases() -> Iterable[Case]:
    """Functions of known difficulty: the sharp blobs are as hard for tntorch as those of papers/cpic.md."""
    usual = (OURS, plain(RANK, 3), OVERSAMPLED, tntorch(RANK, 5), TENEVA_2, teneva(RANK, 2, cached=True))
    functions = (
        ("1/(0.1+z+y+x)", fields.hilbert(512), 512),
        ("blobs", fields.blobs(256), 256),
        ("sharp blobs", fields.blobs(256, 2.0), 256),
    )
    for name, field, size in functions:
        sizes = (size,) * 3
        yield Case(f"{name} {size}^3, TT, rank 10", field, tt_layout(sizes, 1), usual)
        for order in ("sequential", "interleaved") if size == 512 else ("sequential",):
            layout = qtt_layout(sizes, 1, order)
            yield Case(f"{name} {size}^3, QTT {order}, rank 10", field, layout, (*usual, torchtt(RANK)))
    yield Case(
        "sharp blobs 128^3, TT, rank 20",
        fields.blobs(128, 2.0),
        tt_layout((128,) * 3, 1),
        (OURS_20, plain(20, 3), tntorch(20, 5), teneva(20, 2)),
    )


def head_cases(size: int) -> Iterable[Case]:
    """A real head, with the best that rank 10 can do."""
    volume = fields.head(size)
    layouts = {"TT": tt_layout((size,) * 3, 1), "QTT sequential": qtt_layout((size,) * 3, 1)}
    for name, layout in layouts.items():
        methods = (
            OURS,
            plain(RANK, 3),
            HALF_OVERSAMPLED,
            OVERSAMPLED,
            tntorch(RANK, 5),
            TENEVA_2,
            teneva(RANK, 5),
            *((torchtt(RANK),) if name != "TT" else ()),
        )

        def optimum(modes: tuple[int, ...] = layout.modes) -> float:
            return best_error(volume, modes, RANK)

        yield Case(f"T1 head {size}^3, {name}, rank 10", fields.of_volume(volume), layout, methods, optimum)


def no_head() -> str | None:
    """Why the head takes no part."""
    try:
        fields.head(256)
    except (FileNotFoundError, ImportError) as error:
        return f"the T1 head: {error}"
    return None


def best_error(volume: Values, modes: tuple[int, ...], rank: int) -> float:
    """The relative error of TT-SVD: quasi-optimal, within sqrt(d - 1) of the best train of that rank."""
    tensor = torch.from_numpy(volume).reshape(modes)
    train = tt_svd(tensor, max_rank=rank)
    return float(torch.linalg.vector_norm(train.full() - tensor) / torch.linalg.vector_norm(tensor))
