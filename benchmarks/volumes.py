"""Several volumes together, and a volume that has changed: what batches and warm starts save.

Fields are members of one family, 256^3 voxels x 16 features, QTT, rank 10.

*Batch*: 24 members, one by one and as one batch, through the same function of keys (nothing remembered on
either side): scalar with 2 sweeps, and in blocks with one half-sweep. The trains agree. `..._encoded` is the
product's own way: 24 volumes of 64^3 that share the paper's encoder, in blocks, each voxel encoded once.
Medians of 3 rounds in turn.

*Warm start*: a field is approximated (2 sweeps; in blocks one half-sweep), its parameters are moved by 5 %,
and one half-sweep starts from its index sets; against 3 cold sweeps of the moved field. Centred errors at
10,000 entries, and entries evaluated, each once: ratios of medians over 10 fields.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import fields
from benchmarks.approximation import approximate, errors, where
from benchmarks.fields import Family, Probe, SmoothVolume
from models.cpic.cross import cross
from models.cpic.encoder import CpicEncoder, StandardisedCpic
from models.cpic.field import BlockField, EncodedVoxels, FieldBatch, encode_together
from models.cpic.fit import train_of
from models.cpic.forward_set import ForwardSet
from models.cpic.index_sets import IndexSets, random_start
from models.intensities import IntensityStatistics
from models.tt.qtt import Layout, qtt_layout
from models.tt.train import TensorTrain
from models.types import Int64

SIZE, FEATURES, RANK = 256, 16, 10
VOLUMES, ROUNDS, ENCODED_SIZE = 24, 3, 64
PERTURBED, MOVED_BY, TEST_ENTRIES = tuple(range(10)), 0.05, 10_000

Approximate = Callable[[Sequence[int]], TensorTrain]
"""Numbers of volumes to their trains, a batch where there are several."""


def batches(*, size: int = SIZE, count: int = VOLUMES, encoded_size: int = ENCODED_SIZE) -> dict[str, Any]:
    """Times of all volumes one by one over those of the batch: `..._speedup` of wall, `..._cpu` of CPU."""
    layout = qtt_layout((size,) * 3, FEATURES)
    family = fields.sigmoid_family(size, FEATURES, range(count))
    ways: dict[str, Approximate] = {
        "": lambda volumes: of_family(family, layout, volumes, sweeps=2, block=False),
        "_block": lambda volumes: of_family(family, layout, volumes, sweeps=1, block=True),
        "_encoded": lambda volumes: of_encoded(encoded_size, volumes),
    }
    found: dict[str, Any] = {}
    for name, way in ways.items():
        wall, cpu = speedups(way, count)
        found |= {f"batch_speedup{name}": wall, f"batch_speedup{name}_cpu": cpu}
    return found


def speedups(way: Approximate, count: int) -> tuple[float, float]:
    """(wall, CPU) of `count` volumes one by one, relative to one batch of them."""
    together, alone = [list(range(count))], [[number] for number in range(count)]
    seconds: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    for _ in range(ROUNDS):
        for batched, groups in ((False, alone), (True, together)):
            wall, cpu = time.perf_counter(), time.process_time()
            for group in groups:
                way(group)
            seconds[batched].append((time.perf_counter() - wall, time.process_time() - cpu))
    one, batch = (np.median(seconds[batched], axis=0) for batched in (False, True))
    wall, cpu = (one / batch).tolist()
    return wall, cpu


def of_family(
    family: Family, layout: Layout, volumes: Sequence[int], *, sweeps: int, block: bool
) -> TensorTrain:
    """The trains of members of a family, made together."""
    layout = layout.spatial() if block else layout

    def look(keys: Int64, owners: Int64) -> Tensor:
        rows = layout.entries(keys)
        if not block:
            return torch.from_numpy(family(rows, owners))
        rows, owners = np.repeat(rows, FEATURES, axis=0), np.repeat(owners, FEATURES)
        rows[:, 3] = np.tile(np.arange(FEATURES), len(keys))
        return torch.from_numpy(family(rows, owners).reshape(len(keys), FEATURES))

    def sample(keys: Int64) -> Tensor:
        values = look(keys.ravel(), np.repeat(volumes, keys.size // len(volumes)))
        return values.reshape(*keys.shape, *values.shape[1:])

    sets = cross(sample, layout, start_of(layout, volumes), rank=RANK, sweeps=sweeps)
    forward = ForwardSet.of(layout, sets)
    return train_of(look(forward.keys, np.repeat(volumes, np.diff(forward.first))), forward, RANK)


def of_encoded(size: int, volumes: Sequence[int]) -> TensorTrain:
    """The trains of volumes that share an encoder, made together, in blocks."""
    network = CpicEncoder(1, FEATURES, 0).eval()
    encoder = StandardisedCpic(network, FEATURES, IntensityStatistics(-2.0, 2.0, 0.0, 1.0))
    layout = qtt_layout((size,) * 3, FEATURES).spatial()
    encoded = [
        EncodedVoxels(SmoothVolume(size, phase=number), encoder, torch.device("cpu")) for number in volumes
    ]
    each = [BlockField(voxels, layout) for voxels in encoded]
    sample = each[0] if len(volumes) == 1 else FieldBatch(each)
    sets = cross(sample, layout, start_of(layout, volumes), rank=RANK, sweeps=1)
    forward = ForwardSet.of(layout, sets)
    keys = [forward.keys[low:high] for low, high in zip(forward.first, forward.first[1:], strict=False)]
    encode_together(encoded, [field.reads(own)[0] for field, own in zip(each, keys, strict=True)])
    values = torch.cat([field(own) for field, own in zip(each, keys, strict=True)])
    return train_of(values, forward, RANK)


def start_of(layout: Layout, volumes: Sequence[int]) -> IndexSets:
    """Each volume's own random start, as a batch where there are several."""
    starts = [random_start(layout, RANK, number) for number in volumes]
    return starts[0] if len(starts) == 1 else IndexSets.batched(starts)


def warm_starts(*, size: int = SIZE, members: Sequence[int] = PERTURBED) -> dict[str, Any]:
    """Errors and evaluations of a warm half-sweep over those of three cold sweeps."""
    found: dict[str, Any] = {}
    for name, block, before in (("", False, 2), ("_block", True, 1)):
        pairs = [warm_and_cold(size, member, block=block, before=before) for member in members]
        warm, cold = (
            {key: statistics.median(row[key] for row in rows) for key in rows[0]}
            for rows in zip(*pairs, strict=True)
        )
        found[f"warm_error_ratio{name}"] = warm["error"] / cold["error"]
        found[f"warm_evals_ratio{name}"] = warm["evaluated"] / cold["evaluated"]
        found[f"warm{name}"], found[f"cold{name}"] = warm, cold
    return found


def warm_and_cold(
    size: int, member: int, *, block: bool, before: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Error and evaluations, from the sets of the field before it moved and from a random start."""
    layout = qtt_layout((size,) * 3, FEATURES)
    field = fields.sigmoid_waves(size, FEATURES)
    moved = fields.sigmoid_waves(size, FEATURES, member=member, spread=MOVED_BY)
    test = np.random.default_rng(9).integers(0, layout.shape, (TEST_ENTRIES, 4))
    truth = moved(test)

    def row(sweeps: int, start: IndexSets | None) -> dict[str, float]:
        probe = Probe(moved, layout)
        found = approximate(probe, RANK, sweeps, len(PERTURBED) + member, block=block, start=start)
        values = found.train.at(where(layout, test, block=block)).numpy()
        error = errors(values, truth, test[:, 3])["centred_error"]
        return {"error": error, "evaluated": probe.evaluated}

    earlier = approximate(Probe(field, layout), RANK, before, member, block=block).sets
    return row(1, earlier), row(3, None)
