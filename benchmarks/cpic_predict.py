"""One scan that nobody has read yet: how long until a model answers, and at what memory? Beside a dense one.

Scans (`benchmarks.stored_scans`) are made and stored beforehand, and so are models: the default `cpic`, read
out through a QTT of rank 10, with a basis of 256 anchors, the most that it keeps, and the same through a TT
(`cpic_tt`) with 32, which take more room. Time does not depend on weights: encoders were trained for a step
on small bodies, anchors are the scan's own train with each number moved by a tenth.

Every subject runs in a process of its own, with the two threads that a worker on two cores has (C-PIC itself
takes one of torch's, and two to read). *Cold*: the volume is opened, its manifest compared, a reader made,
the scan prepared and the model asked: everything but importing and loading the model. Files lie in the
operating system's cache, as they do after an upload; it is the process's first prediction. *Warm*: preparing
and asking again, with the same reader. Medians of 3 processes.

That is the answer alone. What the product tells takes a look beside it: a certificate from 4,000 more voxels,
the saliency, the distance. `cpic_look` is the same `cpic` where both are timed, answer and look, cold and
warm, in processes of its own: the look fills the reader's cache. Its keys begin with `look_`.

`resnet3d` is the plain 3-D ResNet-34, asked in the same way, cold: the scan is read whole from the same
store. It runs once where a run takes more than 20 s, and not at all where 2 minutes, 16 GiB or the memory
that is free would not do: then its row is an estimate by voxels from the largest size that ran, and there is
no ratio.

`peak_mib` is the process's peak above what it had after importing, the same packages for all, with the model;
`peak_rss_mib` the peak itself. `growth` is the time of a scan over that of one with an eighth of its voxels.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from benchmarks.cohorts.made import Kept
from benchmarks.memory import peak_rss_mib
from benchmarks.provenance import digest
from benchmarks.stored_scans import Shape, body, make
from benchmarks.targets import Target, judged, number, show_targets
from models.cpic.fibres import FibreConfig
from models.cpic.projection import Basis
from models.learning.cohort import Cohort, Inputs
from models.learning.linear import LinearHead
from models.learning.preparation import Preparation, PreparationConfig
from models.learning.task import Task
from models.regressors.cpic import Cpic
from models.regressors.cpic_model import CpicModel
from models.regressors.network_model import NetworkModel
from models.regressors.neural import Answers, Scaling
from models.regressors.readouts import FibreReadout, FibreReadoutConfig
from models.regressors.resnet import ResNet
from models.regressors.resnet3d import WholeSight
from models.training import Watch
from models.tt.train import TensorTrain, stacked
from models.types import CubeSource
from storage.cubes import CubeReader
from storage.tensors import packed, unpacked
from storage.volume import Volume
from workers.scans import RecordedCubes, raw_scan

SHAPES: dict[str, Shape] = {
    "32x512x512": (32, 512, 512),
    "256": (256, 256, 256),
    "64x1024x1024": (64, 1024, 1024),
    "512": (512, 512, 512),
}
"""By voxels, ascending."""
GROWTHS = (("256", "512"), ("32x512x512", "64x1024x1024"))
RECIPES = {
    "cpic": Cpic(steps=1),
    "cpic_tt": Cpic(steps=1, readout=FibreReadoutConfig(fibres=FibreConfig(layout="tt"))),
}
LOOKS = {"cpic_look": "cpic"}
"""Ways in which the look is timed too, and their recipes."""
ROUNDS, THREADS, SEED = 3, 2, 0
ANCHORS, MOVED_BY = {"cpic": 256, "cpic_tt": 32}, 0.1
SMALL, SMALL_SCANS = (16, 16, 16), 8
"""What models are trained on."""
MOST_S, MOST_MIB, ONCE_FROM_S = 120, 16 << 10, 20
SPARE_MIB = 2 << 10
TARGETS = (
    Target("cold_s_256", 3),
    Target("warm_s_256", 1),
    Target("look_cold_s_256", 3),
    Target("look_warm_s_256", 1),
    *(Target(f"speedup_vs_resnet_{size}", 1, at_least=True) for size in SHAPES),
    Target("memory_ratio_vs_resnet_256", 10, at_least=True),
    *(Target(f"growth_{how}_{large}", 1.3) for how in ("cold", "warm") for _, large in GROWTHS),
)
TASK, CPU = Task(), torch.device("cpu")

Row = dict[str, Any]


def run() -> dict[str, Any]:
    """All sizes, from small to large."""
    with tempfile.TemporaryDirectory() as name:
        rows: dict[str, dict[str, Row]] = {}
        for size, shape in SHAPES.items():
            folder = Path(name) / size
            make_subjects(folder, shape)
            rows[size] = {way: repeated(way, folder) for way in (*RECIPES, *LOOKS)}
            rows[size]["resnet3d"] = dense_row(folder, shape, rows)
    return summary(rows)


def summary(rows: Mapping[str, Mapping[str, Row]]) -> dict[str, Any]:
    """The keys, by size, and what was asked of them."""
    found: dict[str, float] = {}
    for size, of in rows.items():
        ours, dense = of["cpic"], of["resnet3d"]
        for mark, row in (("", ours), ("look_", of["cpic_look"])):
            found |= {f"{mark}{key}_{size}": row[key] for key in ("cold_s", "warm_s", "peak_mib")}
        if dense["ran"]:
            found[f"resnet_s_{size}"], found[f"resnet_peak_mib_{size}"] = dense["cold_s"], dense["peak_mib"]
            found[f"speedup_vs_resnet_{size}"] = round(dense["cold_s"] / ours["cold_s"], 2)
            found[f"look_speedup_vs_resnet_{size}"] = round(dense["cold_s"] / of["cpic_look"]["cold_s"], 2)
            found[f"memory_ratio_vs_resnet_{size}"] = round(dense["peak_mib"] / ours["peak_mib"], 2)
    for small, large in GROWTHS:
        for how in ("cold", "warm"):
            pair = [rows[size]["cpic"][f"{how}_s"] for size in (large, small)]
            found[f"growth_{how}_{large}"] = round(pair[0] / pair[1], 3)
    return {
        **found,
        "targets": judged(found, TARGETS),
        "digest": digest(RECIPES),
        "threads": THREADS,
        "sizes": rows,
    }


def show(result: dict[str, Any]) -> None:
    """Print a table per way."""
    sizes = result["sizes"]
    shared = ("cold_s", "cold_cpu_s", "peak_mib", "peak_rss_mib")
    own = ("warm_s", "warm_cpu_s", "cubes", "chunks", "bytes", "voxels_read", "share_read")
    for way in (*RECIPES, *LOOKS, "resnet3d"):
        print(f"\n{way:<16}" + "".join(f"{size:>15}" for size in sizes))
        for key in (*shared, *(own if way != "resnet3d" else ())):
            print(f"  {key:<14}" + "".join(f"{cell(rows[way], key):>15}" for rows in sizes.values()))
    show_targets(result["targets"])


def cell(row: Row, key: str) -> str:
    """What was measured, or an estimate in brackets."""
    if key not in row:
        return ""
    return number(row[key]) if row["ran"] else f"({number(row[key])})"


def make_subjects(folder: Path, shape: Shape) -> None:
    """A stored scan, and models that are ready to be asked about it."""
    make(folder / "volume", shape, SEED)
    volume, reader = opened(folder)
    scan = raw_scan(reader, volume.stored)
    preparation = Preparation.fit(PreparationConfig(), [scan])
    for way, recipe in RECIPES.items():
        model = trained(recipe, preparation.apply(scan, SEED), ANCHORS[way])
        manifest = {"model": model.manifest(), "preparation": preparation.manifest()}
        (folder / way).write_bytes(packed(model.tensors(), manifest))
    reader.close()


def trained(recipe: Cpic, scan: CubeSource, anchors: int) -> CpicModel:
    """A model of a few small scans, with anchors of the scan's own shape."""
    small = [Kept(body(SMALL, number)) for number in range(SMALL_SCANS)]
    generator = np.random.default_rng(SEED)
    people = tuple(map(str, range(SMALL_SCANS)))
    cohort = Cohort(Inputs.of(small), people, generator.standard_normal(SMALL_SCANS))
    model = recipe.fit(cohort, TASK, seed=SEED, device=CPU, watch=Watch())
    assert isinstance(model.readout, FibreReadout)
    train = model.readout.see(scan).train
    assert train is not None
    axes = max(*recipe.readout.counts, anchors - 1 if "kernel" in model.readout.blocks else 0)
    basis = Basis.of(stacked([moved(train, generator) for _ in range(anchors)]), axes)
    distances = np.sort(generator.random(anchors))
    readout = replace(model.readout, basis=basis, distances=distances)
    block = readout.blocks[model.block]
    rows = generator.standard_normal((SMALL_SCANS, block.stop - block.start))
    return replace(model, readout=readout, head=LinearHead.fit(rows, cohort.targets, people, TASK))


def moved(train: TensorTrain, generator: np.random.Generator) -> TensorTrain:
    """A train of the same ranks."""
    noise = (torch.from_numpy(generator.standard_normal(core.shape)) for core in train.cores)
    return TensorTrain(tuple(core * (1 + MOVED_BY * of) for core, of in zip(train.cores, noise, strict=True)))


def repeated(way: str, folder: Path, rounds: int = ROUNDS) -> Row:
    """Medians over fresh processes; counts are those of the first."""
    rows = [measure(way, folder) for _ in range(rounds)]
    measured = [key for key in rows[0] if key.endswith(("_s", "_mib"))]
    medians = {key: round(statistics.median(row[key] for row in rows), 4) for key in measured}
    return {**rows[0], **medians, "runs": rounds, "ran": True}


def dense_row(folder: Path, shape: Shape, rows: Mapping[str, Mapping[str, Row]]) -> Row:
    """The dense network: three times, once, or, where it would take too much, an estimate."""
    ran = [size for size, of in rows.items() if of.get("resnet3d", {"ran": False})["ran"]]
    if not ran:
        return repeated("resnet3d", folder)
    largest, larger = rows[ran[-1]]["resnet3d"], math.prod(shape) / math.prod(SHAPES[ran[-1]])
    estimate = {key: round(largest[key] * larger, 1) for key in ("cold_s", "peak_mib")}
    free = psutil.virtual_memory().available / 2**20 - SPARE_MIB
    if estimate["cold_s"] > MOST_S or estimate["peak_mib"] > min(MOST_MIB, free):
        return {**estimate, "runs": 0, "ran": False}
    return repeated("resnet3d", folder, 1 if estimate["cold_s"] > ONCE_FROM_S else ROUNDS)


def measure(way: str, folder: Path) -> Row:
    """One fresh process."""
    command = [sys.executable, "-m", "benchmarks.cpic_predict", way, str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS)}
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, timeout=600, env=environment
    )
    row: Row = json.loads(done.stdout)
    return row


def opened(folder: Path) -> tuple[Volume, CubeReader]:
    """The scan as a worker opens it."""
    volume = Volume.open(folder / "volume")
    return volume, volume.cube_reader()


def child(way: str, folder: Path) -> Row:
    """What one subject takes; called in a process of its own."""
    before = psutil.Process().memory_info().rss / 2**20
    torch.set_num_threads(THREADS)
    row = by_resnet(folder) if way == "resnet3d" else by_cpic(folder, way)
    peak = peak_rss_mib()
    return {**row, "peak_mib": peak - before, "peak_rss_mib": peak}


def by_cpic(folder: Path, way: str) -> Row:
    """Load the model; then cold and warm."""
    recipe = LOOKS.get(way, way)
    tensors, manifest = unpacked((folder / recipe).read_bytes())
    preparation = Preparation.from_manifest(manifest["preparation"])
    model = RECIPES[recipe].load(tensors, manifest["model"], TASK, CPU)
    del tensors

    def asked(volume: Volume, read: RecordedCubes) -> float:
        scan = preparation.apply(raw_scan(read, volume.stored), SEED)
        answer = float(model.predict(Inputs.of([scan]))[0, 0])
        if way in LOOKS:
            model.look(scan, np.empty(0))
        return answer

    wall, cpu = time.perf_counter(), time.process_time()
    volume, reader = opened(folder)
    read = RecordedCubes(reader)
    answer = asked(volume, read)
    cold, cold_cpu = time.perf_counter() - wall, time.process_time() - cpu
    counts, voxels = reader.counts, read.covered_voxels()
    wall, cpu = time.perf_counter(), time.process_time()
    again = asked(volume, RecordedCubes(reader))
    warm, warm_cpu = time.perf_counter() - wall, time.process_time() - cpu
    reader.close()
    if again != answer:
        raise RuntimeError(f"{way} says {answer} of a scan, and then {again}")
    return {
        "cold_s": cold,
        "cold_cpu_s": cold_cpu,
        "warm_s": warm,
        "warm_cpu_s": warm_cpu,
        "answer": answer,
        "cubes": counts.cubes,
        "chunks": counts.chunks,
        "bytes": counts.bytes,
        "voxels_read": voxels,
        "share_read": voxels / math.prod(reader.shape),
    }


def by_resnet(folder: Path) -> Row:
    """Make the network; then read everything and look at it."""
    network = ResNet(1, TASK.outputs, SEED).to(CPU, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    preparation = Preparation.from_manifest(unpacked((folder / "cpic").read_bytes())[1]["preparation"])
    nothing = Scaling(np.empty(0), np.empty(0))
    wall, cpu = time.perf_counter(), time.process_time()
    volume, reader = opened(folder)
    scan = preparation.apply(raw_scan(reader, volume.stored), SEED)
    sight = WholeSight(scan.shape, scan.channels, CPU)
    model = NetworkModel(sight, network, Answers(TASK), nothing)
    answer = float(model.predict(Inputs.of([scan]))[0, 0])
    cold, cold_cpu = time.perf_counter() - wall, time.process_time() - cpu
    reader.close()
    return {"cold_s": cold, "cold_cpu_s": cold_cpu, "answer": answer}


if __name__ == "__main__":
    print(json.dumps(child(sys.argv[1], Path(sys.argv[2]))))
