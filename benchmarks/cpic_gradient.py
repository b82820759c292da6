"""Gradients of a fixed-index interpolant on smooth, that is ill-conditioned, data; and index batching.

f = 1 / (0.1 + theta (x + y + z)) on a grid of 32^3 over the unit cube, loss <T, T>, d/dtheta at theta = 1,
ranks 6 to 10. The reference is the derivative of the dense sum of f^2. Ours: index sets of
cross-approximation (5 sweeps), the train by LU solves. tntorch: its own index sets (`cross`, 5 iterations),
then `cross_forward`, which solves by `lstsq`. Figures are the worst of 3 seeds: `ours` and `tntorch` against
the dense derivative, `lstsq` the interpolant on our indices with that solver instead, and `fixed_index` ours
against the same interpolant differentiated with 60 digits: what floating point alone costs. At rank 6 the
interpolant itself is not that good yet, whoever differentiates it.

`index_batching`: d<T, T>/dphi of the paper's encoder (float64, 8 features) on a volume of 64^3, QTT, rank 10;
every sampled cube through the network in one graph, against two stages in chunks of 64, 256 and 1,024 voxels:
the relative difference (Frobenius, all weights), and the time of forward and backward together, relative to
the graph of all cubes, and to the graph of the same boxes (neighbours share work in both); in the keys, the
ratios of the slowest chunk.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import mpmath
import numpy as np
import torch
from torch import Tensor

from benchmarks import peers
from benchmarks.fields import SmoothVolume
from benchmarks.targets import Target, judged, show_targets
from models.cpic.cross import cross
from models.cpic.encoder import CpicEncoder, StandardisedCpic
from models.cpic.encoding import batches
from models.cpic.field import EncodedVoxels, SampledField
from models.cpic.forward_set import ForwardSet
from models.cpic.index_batching import index_batched
from models.cpic.index_sets import random_start
from models.cpic.interpolate import interpolate
from models.intensities import IntensityStatistics
from models.tt.qtt import Layout, qtt_layout, tt_layout
from models.tt.train import TensorTrain
from models.types import Int64

SIZE, RANKS, SEEDS, SWEEPS = 32, (6, 7, 8, 9, 10), (0, 1, 2), 5
DIGITS = 60
VOLUME, FEATURES, RANK, CHUNKS = 64, 8, 10, (64, 256, 1024)

TARGETS = (
    Target("worst_ours_7_to_10", 1e-7),
    Target("index_batching", 1e-12),
    Target("index_batching_time_ratio", 1.5),
    Target("index_batching_time_ratio_same_boxes", 1.5),
)

Make = Callable[[Tensor, ForwardSet], TensorTrain]


def run(
    *, ranks: tuple[int, ...] = RANKS, seeds: tuple[int, ...] = SEEDS, volume: int = VOLUME
) -> dict[str, Any]:
    """Relative errors of d<T, T>/dtheta, by rank; and index batching."""
    torch.set_num_threads(1)
    layout = tt_layout((SIZE,) * 3, 1)
    exact = dense_gradient(layout)
    reason = peers.missing("tntorch")
    rows: dict[str, dict[str, float]] = {}
    for rank in ranks:
        forwards = [forward_set(layout, rank, seed) for seed in seeds]
        ours = [gradient(layout, forward, interpolate) for forward in forwards]
        lstsq = [gradient(layout, forward, by_lstsq) for forward in forwards]
        precise = [precise_gradient(layout, forward) for forward in forwards]
        rows[str(rank)] = {
            "ours": max(abs(value / exact - 1) for value in ours),
            "lstsq": max(abs(value / exact - 1) for value in lstsq),
            "fixed_index": max(abs(a / b - 1) for a, b in zip(ours, precise, strict=True)),
            "condition": max(condition(layout, forward) for forward in forwards),
        }
        if reason is None:
            grid = torch.linspace(0, 1, SIZE, dtype=torch.float64)
            theirs = [peers.tntorch_gradient(reciprocal, grid, 3, rank, seed) for seed in seeds]
            rows[str(rank)]["tntorch"] = max(abs(value / exact - 1) for value in theirs)
    result: dict[str, Any] = {
        "worst_ours_7_to_10": max(row["ours"] for rank, row in rows.items() if int(rank) >= 7),
        "worst_fixed_index": max(row["fixed_index"] for row in rows.values()),
    }
    if reason is None:
        result["worst_tntorch_7_to_10"] = max(row["tntorch"] for rank, row in rows.items() if int(rank) >= 7)
    result |= index_batching(volume)
    return {
        **result,
        "targets": judged(result, TARGETS),
        "skipped": {} if reason is None else {"tntorch": reason},
        "ranks": rows,
    }


def show(result: dict[str, Any]) -> None:
    """Print the table."""
    columns = ("ours", "fixed_index", "lstsq", "tntorch", "condition")
    print(f"{'rank':<8}" + "".join(f"{column:>14}" for column in columns))
    for rank, row in result["ranks"].items():
        cells = [f"{row[column]:.2e}" if column in row else "-" for column in columns]
        print(f"{rank:<8}" + "".join(f"{cell:>14}" for cell in cells))
    print(f"\n{'chunk':<8}{'difference':>14}{'time, one graph = 1':>22}{'time, same boxes = 1':>22}")
    for chunk, row in result["chunks"].items():
        times = f"{row['time_ratio']:22.3g}{row['time_ratio_same_boxes']:22.3g}"
        print(f"{chunk:<8}{row['difference']:14.2e}{times}")
    show_targets(result["targets"])
    print()
    for key, value in result.items():
        if key not in {"ranks", "chunks", "targets", "skipped"}:
            print(f"{key:<40}{value:.3g}")
    for reason in result["skipped"].values():
        print(f"skipped: {reason}")


def reciprocal(points: Tensor, theta: Tensor) -> Tensor:
    """1 / (0.1 + theta (x + y + z)) at points (m, 3)."""
    return 1 / (0.1 + theta * points.sum(dim=1))


def points_of(layout: Layout, keys: Int64) -> Tensor:
    """The points (m, 3) of the unit cube that keys stand for."""
    return torch.from_numpy(layout.entries(keys)[:, :3] / (SIZE - 1))


def dense_gradient(layout: Layout) -> float:
    """d/dtheta sum f^2 = -2 sum s / (0.1 + s)^3 over all entries, s = x + y + z."""
    s = points_of(layout, np.arange(SIZE**3)).sum(dim=1)
    return float((-2 * s / (0.1 + s) ** 3).sum())


def forward_set(layout: Layout, rank: int, seed: int) -> ForwardSet:
    """Indices of the function at theta = 1."""

    def sample(keys: Int64) -> Tensor:
        return reciprocal(points_of(layout, keys.ravel()), torch.tensor(1.0)).reshape(keys.shape)

    sets = cross(sample, layout, random_start(layout, rank, seed), sweeps=SWEEPS, seed=seed)
    return ForwardSet.of(layout, sets)


def gradient(layout: Layout, forward: ForwardSet, make: Make) -> float:
    """By autograd through the train that `make` gives."""
    theta = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    train = make(reciprocal(points_of(layout, forward.keys), theta), forward)
    (slope,) = torch.autograd.grad(train.inner(train), theta)
    return float(slope)


def by_lstsq(values: Tensor, forward: ForwardSet) -> TensorTrain:
    """C_k G_k^-1 by least squares: the formula of `interpolate` with the solver of `cross_forward`."""
    cores = [values[torch.from_numpy(block)] for block in forward.blocks]
    for bond, cross_ in enumerate(forward.crosses):
        G = values[torch.from_numpy(cross_)]
        quotient = torch.linalg.lstsq(G.T, cores[bond].reshape(-1, len(G)).T).solution.T
        cores[bond] = quotient.reshape(cores[bond].shape)
    return TensorTrain(tuple(cores))


def precise_gradient(layout: Layout, forward: ForwardSet) -> float:
    """The same, by a central difference of the interpolant's own formula with 60 digits."""
    sums = layout.entries(forward.keys)[:, :3].sum(axis=1).tolist()

    def loss(theta: Any) -> Any:
        values = [1 / (mpmath.mpf(1) / 10 + theta * s / (SIZE - 1)) for s in sums]
        return precise_energy(values, forward)

    with mpmath.workdps(DIGITS):
        step = mpmath.mpf(10) ** (-DIGITS // 3)
        return float((loss(1 + step) - loss(1 - step)) / (2 * step))


def precise_energy(values: list[Any], forward: ForwardSet) -> Any:
    """<T, T> of T = C_1 G_1^-1 C_2 ..., at mpmath's precision."""
    energy = mpmath.matrix([[1]])
    for core, block in enumerate(forward.blocks):
        left, n, right = block.shape
        total = mpmath.zeros(right)
        for i in range(n):
            slab = mpmath.matrix(left, right)
            for a, b in np.ndindex(left, right):
                slab[a, b] = values[block[a, i, b]]
            total += slab.T * energy * slab
        if core == len(forward.crosses):
            return total[0]
        G = mpmath.matrix([[values[k] for k in row] for row in forward.crosses[core].tolist()])
        inverse = mpmath.inverse(G)
        energy = inverse.T * total * inverse
    raise AssertionError("a train has one core more than bonds")


def condition(layout: Layout, forward: ForwardSet) -> float:
    """The largest condition number of a cross."""
    values = reciprocal(points_of(layout, forward.keys), torch.tensor(1.0)).numpy()
    return max(float(np.linalg.cond(values[cross])) for cross in forward.crosses)


def index_batching(size: int) -> dict[str, Any]:
    """Differences and times of two stages against one graph."""
    network = CpicEncoder(1, FEATURES, 0).double()
    encoder = StandardisedCpic(network, FEATURES, IntensityStatistics(-2.0, 2.0, 0.0, 1.0))
    volume = EncodedVoxels(SmoothVolume(size), encoder, torch.device("cpu"))
    layout = qtt_layout((size,) * 3, FEATURES)
    sets = cross(SampledField(volume, layout), layout, random_start(layout, RANK, 0))
    forward = ForwardSet.of(layout, sets)
    voxels, at = np.unique(forward.keys // FEATURES, return_inverse=True)
    feature = torch.from_numpy(forward.keys % FEATURES)
    weights = list(network.parameters())

    def slope(features: Tensor) -> Tensor:
        train = interpolate(features[torch.from_numpy(at), feature], forward)
        gradients = torch.autograd.grad(train.inner(train), weights)
        return torch.cat([gradient.flatten() for gradient in gradients])

    def all_cubes() -> Tensor:
        margin = encoder.cube_size // 2
        corners = np.stack(np.unravel_index(voxels, volume.scan.shape), axis=-1) - margin
        cubes = volume.scan.boxes.source.cubes(corners, encoder.cube_size)
        return slope(encoder(torch.from_numpy(cubes)).flatten(1))

    def all_boxes() -> Tensor:
        parts = list(batches([volume.scan], [voxels]))
        order = np.argsort(np.concatenate([part.rows for part in parts]))
        return slope(torch.cat([part.features() for part in parts])[torch.from_numpy(order)])

    def two_stages(chunk: int) -> Tensor:
        volume.forget()
        return slope(index_batched([volume], [voxels], chunk=chunk)[0])

    ways = {"cubes": all_cubes, "boxes": all_boxes} | {str(c): partial(two_stages, c) for c in CHUNKS}
    gradients, seconds = timed(ways)
    one_graph = gradients["cubes"]
    chunks = {
        chunk: {
            "difference": float((gradients[chunk] - one_graph).norm() / one_graph.norm()),
            "time_ratio": seconds[chunk] / seconds["cubes"],
            "time_ratio_same_boxes": seconds[chunk] / seconds["boxes"],
        }
        for chunk in map(str, CHUNKS)
    }
    worst = {key: max(row[key] for row in chunks.values()) for key in chunks[str(CHUNKS[0])]}
    return {
        "index_batching": worst["difference"],
        "index_batching_time_ratio": worst["time_ratio"],
        "index_batching_time_ratio_same_boxes": worst["time_ratio_same_boxes"],
        "index_batching_cubes": len(voxels),
        "chunks": chunks,
    }


def timed(ways: Mapping[str, Callable[[], Tensor]]) -> tuple[dict[str, Tensor], dict[str, float]]:
    """What each way answers, and its median of three times in seconds, in turn."""
    answers: dict[str, Tensor] = {}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(3):
        for name, way in ways.items():
            start = time.perf_counter()
            answers[name] = way()
            seconds[name].append(time.perf_counter() - start)
    return answers, {name: statistics.median(times) for name, times in seconds.items()}
