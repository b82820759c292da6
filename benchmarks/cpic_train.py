"""One training step of a batch of 20 scans: forward, backward, and the optimiser's. Beside a dense network.

Scans (`benchmarks.stored_scans`) of 128^3 and 256^3 are stored beforehand, each a volume of its own; a step
reads what it looks at from their chunks, through readers as a worker has them for scans that it does not keep
in memory. `read_s` is the part of a step that its thread spent on reading and scaling.

- `pooled`: moments of 128 random voxels per scan, linear head: what a training consists of by default;
- `projected`: features of trains, QTT of rank 10 in blocks, with a graph through the cross-approximation's
  samples; the basis of the anchors' trains, made anew once per epoch, is apart (`anchors_s`);
- `paper`: the same in the paper's form: each entry on its own, 16 features, interpolated, two sweeps.

`resnet3d` has whole scans, read before, and as many at once as 12 GiB, the memory that is free and 60 s per
step allow, judged by steps with two and with four of 128^3; where one is too much, its row is judged so too.

Each in a process of its own on two cores: C-PIC takes one of torch's threads, and two to read; `resnet3d` two
of torch's. Medians of 3 steps, and one for `resnet3d`. `peak_mib` is the peak above what the process had
after importing. The paper reports 17.5 s per scan and step, on a GPU.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from jaxtyping import Float64
from torch import nn

from benchmarks.cpic_predict import cell
from benchmarks.memory import peak_rss_mib
from benchmarks.provenance import digest
from benchmarks.stored_scans import make
from benchmarks.targets import number
from models.cpic.encoder import LearnedCpic
from models.cpic.head import Head
from models.cpic.moments import Pooling
from models.cpic.strategies import Randomly
from models.learning.cohort import Cohort, Inputs
from models.learning.preparation import Preparation, PreparationConfig, PreparedScan
from models.learning.task import Task
from models.regressors.cpic import Cpic
from models.regressors.dense import whole
from models.regressors.encoders import (
    EncoderWithHead,
    PooledLearner,
    ProjectedLearner,
    calibrated,
    linear_outputs,
)
from models.regressors.neural import Answers, RowLearner
from models.regressors.resnet import ResNet
from models.threads import one_thread
from models.training import Step, TrainingConfig
from models.types import Array, Int64, Size
from storage.volume import Volume
from workers.scans import Readers, raw_scan

SIZES, BATCH = (128, 256), 20
RECIPES = {"pooled": Cpic(), "projected": Cpic(), "paper": Cpic.paper()}
STEPS, THREADS, SEED = 3, 2, 0
CACHE_BYTES = 256 << 20
MOST_S, MOST_MIB, SPARE_MIB = 60, 12 << 10, 2 << 10
FEW = (2, 4)
LEAST = 0.05
"""Of what a step with few scans takes, that another scan takes at least: where noise says less."""
PAPER_S = 17.5
"""Per scan and step, on a GPU; as published."""
TASK, CPU = Task(), torch.device("cpu")

Row = dict[str, Any]


def run(*, sizes: Sequence[int] = SIZES, batch: int = BATCH) -> dict[str, Any]:
    """Both sizes."""
    with tempfile.TemporaryDirectory() as name:
        rows: dict[str, dict[str, Row]] = {}
        for size in sizes:
            folder = Path(name) / str(size)
            for scan in range(batch):
                make(folder / str(scan), (size,) * 3, scan)
            rows[str(size)] = {way: measure(way, folder, batch) for way in RECIPES}
            rows[str(size)]["resnet3d"] = dense_row(folder, batch, rows)
    return summary(rows)


def summary(rows: Mapping[str, Mapping[str, Row]]) -> dict[str, Any]:
    """The keys, by size."""
    found: dict[str, float] = {}
    for size, of in rows.items():
        dense = of["resnet3d"]
        for way in RECIPES:
            per_scan = of[way]["s_per_scan"]
            found |= {f"{way}_{key}_{size}": of[way][key] for key in ("step_s", "s_per_scan", "peak_mib")}
            found[f"{way}_paper_ratio_{size}"] = round(PAPER_S / per_scan, 1)
            if dense["ran"]:
                found[f"{way}_speedup_vs_resnet_{size}"] = round(dense["s_per_scan"] / per_scan, 1)
        if dense["ran"]:
            found |= {
                f"resnet_{key}_{size}": dense[key] for key in ("step_s", "s_per_scan", "peak_mib", "batch")
            }
    return {**found, "digest": digest(RECIPES), "threads": THREADS, "batch": BATCH, "sizes": rows}


def show(result: dict[str, Any]) -> None:
    """Print a table per size."""
    keys = ("batch", "step_s", "cpu_s", "read_s", "s_per_scan", "anchors_s", "peak_mib", "peak_rss_mib")
    for size, rows in result["sizes"].items():
        print(f"\n{size + '^3':<16}" + "".join(f"{way:>15}" for way in rows))
        for key in keys:
            print(f"  {key:<14}" + "".join(f"{cell(row, key):>15}" for row in rows.values()))
        ratios = [result.get(f"{way}_speedup_vs_resnet_{size}") for way in RECIPES]
        print(f"  {'resnet / ours':<14}" + "".join(f"{number(ratio):>15}" for ratio in ratios))
        ratios = [result[f"{way}_paper_ratio_{size}"] for way in RECIPES]
        print(f"  {'paper / ours':<14}" + "".join(f"{number(ratio):>15}" for ratio in ratios))


def dense_row(folder: Path, batch: int, rows: Mapping[str, Mapping[str, Row]]) -> Row:
    """The dense network with as many scans as there is room and time for."""
    voxels = int(folder.name) ** 3
    before = [of["resnet3d"]["costs"] for of in rows.values() if "resnet3d" in of]
    if before:
        costs = before[0]
    else:
        costs = costs_of(*(measure("resnet3d", folder, few) for few in FEW), voxels=voxels)
    limits = {"step_s": MOST_S, "peak_mib": min(MOST_MIB, free_mib())}
    most = min(batch, *(int((limits[key] - fixed) / (each * voxels)) for key, (fixed, each) in costs.items()))
    if most >= 1:
        return {**measure("resnet3d", folder, most), "costs": costs}
    guess = {key: round(fixed + each * voxels, 1) for key, (fixed, each) in costs.items()}
    return {**guess, "s_per_scan": guess["step_s"], "batch": 1, "ran": False, "costs": costs}


def costs_of(few: Row, more: Row, *, voxels: int) -> dict[str, tuple[float, float]]:
    """Seconds and MiB of a step, from those with few and with more scans: (in any case, per voxel)."""
    costs = {}
    for key in ("step_s", "peak_mib"):
        scan = max((more[key] - few[key]) / (more["batch"] - few["batch"]), LEAST * few[key])
        costs[key] = max(few[key] - few["batch"] * scan, 0.0), scan / voxels
    return costs


def free_mib() -> float:
    """Memory that a process may take."""
    return psutil.virtual_memory().available / 2**20 - SPARE_MIB


def measure(way: str, folder: Path, batch: int) -> Row:
    """One fresh process."""
    command = [sys.executable, "-m", "benchmarks.cpic_train", way, str(folder), str(batch)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS)}
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, timeout=900, env=environment
    )
    row: Row = json.loads(done.stdout)
    return row


def child(way: str, folder: Path, batch: int) -> Row:
    """What one subject takes; called in a process of its own."""
    before = psutil.Process().memory_info().rss / 2**20
    torch.set_num_threads(THREADS)
    with Readers(CACHE_BYTES, "threads") as readers:
        scans = stored_scans(folder, batch, readers)
        row = by_resnet(scans) if way == "resnet3d" else by_cpic(scans, way)
    peak = peak_rss_mib()
    row |= {"batch": batch, "s_per_scan": row["step_s"] / batch, "ran": True}
    return {**row, "peak_mib": round(peak - before, 1), "peak_rss_mib": round(peak, 1)}


def by_cpic(scans: Sequence[TimedScan], way: str) -> Row:
    """A first step, in which anchors are made where there are any, and some more of the same epoch."""
    make_learner = pooled if way == "pooled" else projected
    with one_thread():
        learner = make_learner(RECIPES[way], cohort_of(scans))
        first, *others = timed_steps(learner, scans, STEPS + 1)
    row = {key: round(statistics.median(each[key] for each in others), 4) for key in first}
    return row if way == "pooled" else {**row, "anchors_s": round(first["step_s"] - row["step_s"], 4)}


def by_resnet(scans: Sequence[TimedScan]) -> Row:
    """One step of whole scans, read before."""
    network = ResNet(1, TASK.outputs, SEED).to(CPU, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    cohort = cohort_of(scans)
    voxels = torch.stack([torch.from_numpy(whole(scan)) for scan in scans])
    voxels = voxels.to(memory_format=torch.channels_last_3d)
    learner = RowLearner(network, cohort, *answers_of(cohort), lambda numbers: voxels[numbers], CPU)
    return timed_steps(learner, scans, 1)[0]


def pooled(recipe: Cpic, cohort: Cohort) -> RowLearner:
    """Encoder and linear head, by moments of random voxels."""
    encoder, pooling = recipe.encoder.network(1, SEED, CPU), Pooling("hat", recipe.pooling)
    head = linear_outputs(pooling.moments * encoder.features, TASK.outputs, CPU)
    network, strategy = EncoderWithHead(encoder, head), Randomly(recipe.voxels, pooling)
    return PooledLearner(network, cohort, *answers_of(cohort), strategy, CPU)


def projected(recipe: Cpic, cohort: Cohort) -> RowLearner:
    """Encoder and head, through trains: the perceptron on features as they are, or a linear head."""
    encoder, width = recipe.encoder.network(1, SEED, CPU), recipe.projection.count
    head: nn.Module = linear_outputs(width, TASK.outputs, CPU)
    seen_as = LearnedCpic(encoder)
    if recipe.perceptron:
        head = Head(width, SEED, outputs=TASK.outputs, dtype=torch.float64)
    else:
        seen_as = calibrated(encoder, cohort.inputs.scans, SEED, CPU)
    network = EncoderWithHead(encoder, head)
    return ProjectedLearner(network, cohort, *answers_of(cohort), seen_as, recipe.projection, CPU)


def answers_of(cohort: Cohort) -> tuple[Answers, Float64[Array, "n 0"]]:
    """Targets as they are learned, and no covariates."""
    return Answers.of(TASK, cohort.targets), np.zeros((len(cohort), 0))


def timed_steps(learner: RowLearner, scans: Sequence[TimedScan], count: int) -> list[Row]:
    """Steps of all scans together, as `models.training` makes them."""
    config = TrainingConfig()
    optimiser = torch.optim.RAdam(learner.weights.parameters(), lr=config.rate, betas=config.betas)
    everyone, rows = np.arange(learner.items), []
    for at in range(count):
        before = sum(scan.seconds for scan in scans)
        wall, cpu = time.perf_counter(), time.process_time()
        optimiser.zero_grad(set_to_none=True)
        learner.loss(everyone, Step(at, 0, SEED + at)).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(learner.weights.parameters(), config.clip)
        optimiser.step()
        seconds, cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
        read = sum(scan.seconds for scan in scans) - before
        rows.append({"step_s": seconds, "cpu_s": cpu_seconds, "read_s": read})
    return rows


def cohort_of(scans: Sequence[TimedScan]) -> Cohort:
    """Scans with random targets."""
    targets = np.random.default_rng(SEED).standard_normal(len(scans))
    return Cohort(Inputs.of(scans), tuple(map(str, range(len(scans)))), targets)


def stored_scans(folder: Path, count: int, readers: Readers) -> list[TimedScan]:
    """The first scans of a folder, prepared together."""
    volumes = [Volume.open(folder / str(number)) for number in range(count)]
    raw = [raw_scan(StoredCubes(volume, readers), volume.stored) for volume in volumes]
    preparation = Preparation.fit(PreparationConfig(), raw)
    return [TimedScan(preparation.apply(scan, SEED)) for scan in raw]


class StoredCubes:
    """A volume through a reader that is open when it is needed; fits `models.types.CubeSource`."""

    def __init__(self, volume: Volume, readers: Readers) -> None:
        self._volume, self._readers = volume, readers
        self.shape, self.channels = volume.stored.grid.shape, 1

    def cubes(self, origins: Int64, size: Size) -> Array:
        """As the reader gives them."""
        return self._readers.of(self._volume).cubes(origins, size)


class TimedScan:
    """A prepared scan, and the seconds that were spent on its boxes."""

    def __init__(self, scan: PreparedScan) -> None:
        self._scan = scan
        self.shape, self.channels, self.seconds = scan.shape, scan.channels, 0.0

    def cubes(self, origins: Int64, size: Size) -> Array:
        """As the scan gives them."""
        began = time.perf_counter()
        boxes = self._scan.cubes(origins, size)
        self.seconds += time.perf_counter() - began
        return boxes


if __name__ == "__main__":
    print(json.dumps(child(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))))
