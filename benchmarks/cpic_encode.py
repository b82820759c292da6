"""Encoding the voxels of a forward set: boxes that neighbours share against a cube for each voxel.

The paper's encoder (16 features, random weights, float32, one thread) on a smooth volume of 256^3 in memory,
at the voxels of a forward set of rank 10: TT, in blocks (whole fibres of voxels), and QTT (scattered voxels).
Ours covers them with points, tubes, planes and bricks (`models.cpic.geometry.cover`); the other way encodes
the 9^3 cube around each voxel, 256 at a time. Both read the same volume, and their features agree (`worst`
is the largest difference). `boxes` counts boxes by their sides; `read_ratio` is voxels read, `work_ratio`
multiplications, each relative to single cubes. Medians of 3 rounds in turn; `encode_speedup` is of TT.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.fields import SmoothVolume, Volume
from benchmarks.targets import Target, judged, show_targets
from models.cpic.cross import cross
from models.cpic.encoder import CpicEncoder, StandardisedCpic
from models.cpic.encoding import ENCODE_BATCH
from models.cpic.field import BlockField, EncodedVoxels
from models.cpic.forward_set import ForwardSet
from models.cpic.geometry import NEIGHBOURHOOD, POINT, cover
from models.cpic.index_sets import random_start
from models.intensities import IntensityStatistics
from models.keys import distinct
from models.tt.qtt import make_layout
from models.types import Int64

SIZE, FEATURES, RANK, ROUNDS = 256, 16, 10, 3
TARGETS = (Target("worst", 1e-5),)


def run(*, size: int = SIZE) -> dict[str, Any]:
    """Both layouts."""
    torch.set_num_threads(1)
    encoder = StandardisedCpic(
        CpicEncoder(1, FEATURES, 0).eval(), FEATURES, IntensityStatistics(-2.0, 2.0, 0.0, 1.0)
    )
    smooth = SmoothVolume(size).cubes(np.zeros((1, 3), np.int64), size)[0, 0]
    beyond = -size % max(NEIGHBOURHOOD) + encoder.cube_size
    source = Volume(smooth.astype(np.float32), beyond)
    rows = {name: measured(source, encoder, forward_voxels(source, encoder, name)) for name in ("tt", "qtt")}
    found = {
        "encode_speedup": rows["tt"]["speedup"],
        "encode_speedup_cpu": rows["tt"]["speedup_cpu"],
        "worst": max(row["worst"] for row in rows.values()),
    }
    return {**found, "targets": judged(found, TARGETS), "layouts": rows}


def show(result: dict[str, Any]) -> None:
    """Print the table."""
    for name, row in result["layouts"].items():
        print(f"\n{name}")
        for key, value in row.items():
            print(f"  {key:<16}{value:,.4g}" if isinstance(value, int | float) else f"  {key:<16}{value}")
    show_targets(result["targets"])
    print(f"\nencode_speedup {result['encode_speedup']:.3g}, of CPU {result['encode_speedup_cpu']:.3g}")


def forward_voxels(source: Volume, encoder: StandardisedCpic, name: str) -> Int64:
    """The distinct voxels of a forward set, as linear indices."""
    layout = make_layout(name, source.shape, FEATURES, whole_features=True).spatial()
    field = BlockField(EncodedVoxels(source, encoder, torch.device("cpu")), layout)
    sets = cross(field, layout, random_start(layout, RANK, 0), rank=RANK, sweeps=1)
    return distinct(field.reads(ForwardSet.of(layout, sets).keys)[0])


def measured(source: Volume, encoder: StandardisedCpic, voxels: Int64) -> dict[str, Any]:
    """Times, work and agreement of both ways."""
    ways: dict[str, Callable[[], Tensor]] = {
        "boxes": lambda: EncodedVoxels(source, encoder, torch.device("cpu")).features(voxels),
        "cubes": lambda: single_cubes(source, encoder, voxels),
    }
    answers = {name: way() for name, way in ways.items()}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            wall, cpu = time.perf_counter(), time.process_time()
            way()
            seconds[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    (boxes_s, boxes_cpu), (cubes_s, cubes_cpu) = (
        [statistics.median(each) for each in zip(*pairs, strict=True)] for pairs in seconds.values()
    )
    covered, point = cover(voxels, source.shape, encoder.work), encoder.work(POINT)
    works = [(len(boxes), encoder.work(boxes.sides)) for boxes in covered]
    return {
        "voxels": len(voxels),
        "boxes": {"x".join(map(str, boxes.sides)): len(boxes) for boxes in covered},
        "boxes_s": boxes_s,
        "cubes_s": cubes_s,
        "speedup": cubes_s / boxes_s,
        "speedup_cpu": cubes_cpu / boxes_cpu,
        "read_ratio": sum(n * work.voxels for n, work in works) / (len(voxels) * point.voxels),
        "work_ratio": sum(n * work.multiplications for n, work in works)
        / (len(voxels) * point.multiplications),
        "worst": float((answers["boxes"] - answers["cubes"]).abs().max()),
    }


@torch.no_grad()
def single_cubes(source: Volume, encoder: StandardisedCpic, voxels: Int64) -> Tensor:
    """The features of voxels, each from the cube around it."""
    corners = np.stack(np.unravel_index(voxels, source.shape), axis=-1) - encoder.cube_size // 2
    parts = []
    for start in range(0, len(corners), ENCODE_BATCH):
        cubes = source.cubes(corners[start : start + ENCODE_BATCH], encoder.cube_size)
        parts.append(encoder(torch.from_numpy(cubes.astype(np.float64))).flatten(1))
    return torch.cat(parts).double()
