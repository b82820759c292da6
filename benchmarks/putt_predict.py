"""C-PIC on compressed scans, against itself on the originals: features, answers, and the bytes that are read.

Scans are stored as ingest stores them, and compressed by `putt` for each ratio as the job `compress` does it;
all levels of the pyramid count. Whoever computes on a compressed volume knows nothing of that: its reader,
its statistics and its preparation are made as for any other.

`spread`: phantoms at 32^3 whose brains carry a texture with a period of two voxels; which share of the left
half does it involve? What a compressor drops first is all that there is to see. A `cpic` model is trained on
originals, and asked about scans of other people, original and compressed.

`stroke_T1`: a real scan, seen through the random C-PIC encoder of `embed`. Its features at 4,000 voxels; the
train of the original's fibres, of features of the compressed scan; and a train whose fibres were chosen in
the compressed scan. `seed_change` is how far the original's train moves with another seed of its fibres.

    ratio               bytes of the finest level's voxels for each byte of compressed chunks, of all levels
    psnr                dB, the peak a scan's range; of a cohort, the mean over scans
    feature_change      |f' - f| / |f|, for a cohort the median over scans; f is what the head takes
    centred_change      the same, each feature's mean (over the cohort, over the scan) taken off f
    answer_change       root mean square of p' - p over the standard deviation of p
    bytes               that the reader fetched, indexes and checksums too; of a cohort, the mean over scans
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.cohorts import MadeCohort, Protocol, phantom_heads, spread
from benchmarks.fields import DATA, HEAD
from benchmarks.provenance import digest
from benchmarks.targets import number
from models.cpic.embed import EmbedConfig
from models.cpic.encoder import ENCODERS
from models.cpic.fibres import Fibres
from models.cpic.field import EncodedVoxels
from models.learning.cohort import Cohort, Inputs
from models.learning.preparation import Preparation, PreparationConfig
from models.learning.task import Task
from models.regressors.cpic import Cpic
from models.regressors.cpic_model import CpicModel
from models.training import Watch
from models.tt.train import TensorTrain
from storage.checkpoints import Checkpoints
from storage.compressors.goals import Goal
from storage.cubes import CubeReader
from storage.derived import Drafts
from storage.derived_compressed import compressed
from storage.grid import VoxelGrid
from storage.ingest import ingest
from storage.readers import open_scan
from storage.readers.base import Scan, ScanHeader, Slab
from storage.records import Derivation
from storage.volume import Volume
from workers.scans import HeldScan, intensities, raw_scan

Float64 = NDArray[np.float64]

CASES = ("spread", "stroke_T1")
RATIOS = (5, 10, 20, 50, 100)
SEED = 0
SIZE, TRAIN, ASKED = 32, (40, 3), (16, 32)
"""Of `spread`: its edge; people who are learned from, and scans of each; people and scans asked about."""
RECIPE = Cpic(steps=60, starts=1)
VOXELS = 4000
EMBED = EmbedConfig(seed=SEED)
TASK, CPU = Task(), torch.device("cpu")

Row = dict[str, Any]


def run(cases: Sequence[str] = CASES) -> dict[str, Any]:
    """The cases, each from scratch."""
    if unknown := sorted(set(cases) - set(CASES)):
        raise SystemExit(f"no case {', '.join(unknown)}: there are {', '.join(CASES)}")
    told = {"spread": of_cohort, "stroke_T1": of_scan}
    found: dict[str, Any] = {}
    for case in cases:
        began = time.process_time()
        with tempfile.TemporaryDirectory() as name:
            found[case] = told[case](Path(name))
        found[case]["cpu_s"] = round(time.process_time() - began, 1)
    return {"scans": found, "digest": digest({"cpic": RECIPE}), "seed": SEED}


def show(result: dict[str, Any]) -> None:
    """Print a table per case."""
    for case, told in result["scans"].items():
        facts = [f"{key} {number(value)}" for key, value in told.items() if isinstance(value, int | float)]
        print(f"\n{case}: {', '.join(facts)}")
        rows = told["rows"]
        for key in rows["original"] | next(iter(rows.values())) | rows[str(RATIOS[-1])]:
            cells = [number(row[key]) if key in row else "" for row in rows.values()]
            print(f"  {key:<22}" + "".join(f"{cell:>12}" for cell in cells))


# Volumes


@dataclass(frozen=True)
class Held:
    """Voxels in memory as a reader opens them; fits `storage.readers.base.Scan`."""

    voxels: NDArray[np.int16]
    warnings: tuple[str, ...] = ()

    @property
    def header(self) -> ScanHeader:
        """Its size; 1 mm."""
        z, y, x = self.voxels.shape
        return ScanHeader("made", VoxelGrid.from_affine((z, y, x), np.eye(4)), self.voxels.dtype)

    def slabs(self, depth: int) -> Iterator[Slab]:
        """All planes, `depth` at a time."""
        for start in range(0, len(self.voxels), depth):
            yield Slab(0, start, self.voxels[start : start + depth])

    def close(self) -> None:
        """Nothing is open."""

    def __enter__(self) -> Held:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def stored(scan: Scan, folder: Path) -> Volume:
    """A scan as the service keeps it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    return Volume.open(folder, ingest(scan, folder).digest)


@dataclass(frozen=True)
class Small:
    """A compressed volume, bytes of voxels for each of its bytes, and its PSNR."""

    volume: Volume
    ratio: float
    psnr: float


def squeezed(source: Volume, ratio: float, folder: Path) -> Small:
    """A volume at a ratio, as the job `compress` makes it."""
    made = compressed(
        source,
        Goal("ratio", ratio),
        compressor="putt",
        seed=SEED,
        drafts=Drafts(folder / "drafts", "job_1", 1),
        derivation=Derivation("vol_1", source.stored.digest, "compress"),
        checkpoints=Checkpoints(folder / "checkpoints", 1),
    )
    facts = made.written.publish(folder / "volume")
    kept = next(one for one in made.passes if one.number in made.setting.values())
    achieved = source.stored.voxel_bytes / sum(made.written.level_bytes)
    psnr = float("inf") if kept.psnr is None else kept.psnr
    return Small(Volume.open(folder / "volume", facts.digest), achieved, psnr)


# A cohort


@dataclass(frozen=True, eq=False)
class Asked:
    """What a model says of scans: features (n, p) that its head takes, answers (n,), and bytes read."""

    features: Float64
    answers: Float64
    bytes: float


def of_cohort(folder: Path) -> Row:
    """A model, asked about scans of other people, as they were and compressed."""
    made = spread(
        SIZE,
        heads=phantom_heads(TRAIN[0] + ASKED[0], SEED),
        protocol=Protocol(*TRAIN, ASKED[1]),
        seed=SEED,
    )
    volumes = [
        stored(Held(source.steps), folder / str(k))  # type: ignore[attr-defined]
        for k, source in enumerate(made.dense().sources)
    ]
    train, asked = made.split.train, made.split.test
    preparation, model = learned(made, volumes, train)

    def told(of: Sequence[Volume]) -> Asked:
        return asked_about(model, preparation, of)

    original = told([volumes[k] for k in asked])
    truth = made.targets[asked]
    rows = {"original": {"ratio": 1.0, "r2": r2(original.answers, truth), "bytes": original.bytes}}
    centre = original.features.mean(axis=0)
    for ratio in RATIOS:
        small = [squeezed(volumes[k], ratio, folder / f"{k} at {ratio}") for k in asked]
        again = told([one.volume for one in small])
        moved = np.linalg.norm(again.features - original.features, axis=1)
        rows[str(ratio)] = {
            "ratio": float(np.mean([one.ratio for one in small])),
            "psnr": float(np.mean([one.psnr for one in small])),
            "feature_change": float(np.median(moved / np.linalg.norm(original.features, axis=1))),
            "centred_change": float(np.median(moved / np.linalg.norm(original.features - centre, axis=1))),
            "answer_change": change(again.answers, original.answers),
            "r2": r2(again.answers, truth),
            "bytes": again.bytes,
        }
    return {"trained_on": len(train), "asked_about": len(asked), "edge": SIZE, "rows": rows}


def learned(
    made: MadeCohort, volumes: Sequence[Volume], train: NDArray[np.int64]
) -> tuple[Preparation, CpicModel]:
    """What training on stored originals gives."""
    readers = [volumes[k].cube_reader() for k in train]
    raw = [raw_scan(reader, volumes[k].stored) for reader, k in zip(readers, train, strict=True)]
    preparation = Preparation.fit(PreparationConfig(), raw)
    scans = [HeldScan(preparation.apply(scan, SEED)) for scan in raw]
    for reader in readers:
        reader.close()
    people = tuple(made.patients[k] for k in train)
    cohort = Cohort(Inputs.of(scans), people, made.targets[train])
    return preparation, RECIPE.fit(cohort, TASK, seed=SEED, device=CPU, watch=Watch())


def asked_about(model: CpicModel, preparation: Preparation, volumes: Sequence[Volume]) -> Asked:
    """Each scan through a reader of its own, which has nothing yet."""
    features, read = [], []
    for volume in volumes:
        reader = volume.cube_reader()
        scan = preparation.apply(raw_scan(reader, volume.stored), SEED)
        features.append(model.readout.see(scan).features()[model.readout.blocks[model.block]])
        read.append(reader.counts.bytes)
        reader.close()
    told = np.stack(features)
    answers = model.head.predict(told, np.empty((len(told), 0)))[:, 0]
    return Asked(told, answers, float(np.mean(read)))


def change(answers: Float64, before: Float64) -> float:
    """Of answers, in their standard deviations."""
    return float(np.sqrt(np.square(answers - before).mean()) / before.std())


def r2(answers: Float64, truth: Float64) -> float:
    """Share of the variance that is explained."""
    return float(1 - np.square(answers - truth).mean() / truth.var())


# A scan


def of_scan(folder: Path) -> Row:
    """The features of a real scan, and trains of them. Raises SystemExit where it is not at hand."""
    path = DATA / HEAD
    if not path.exists():
        raise SystemExit(f"{HEAD} is not under TOMOTRAIN_DATA or ../shared/data")
    with open_scan(path) as scan:
        return of_volume(stored(scan, folder / "original"), folder)


def of_volume(source: Volume, folder: Path) -> Row:
    """The same of any volume."""
    drawn = np.random.default_rng(SEED).integers(source.array(0).size, size=VOXELS)
    features, fibres, train, read = seen(source, drawn)
    other = seen(source, drawn, seed=SEED + 1)[2]
    rows: dict[str, Row] = {"original": {"ratio": 1.0, "bytes": read, "seed_change": distance(other, train)}}
    for ratio in RATIOS:
        small = squeezed(source, ratio, folder / str(ratio))
        again, _, chosen, read = seen(small.volume, drawn)
        moved = np.linalg.norm(again - features)
        rows[str(ratio)] = {
            "ratio": small.ratio,
            "psnr": small.psnr,
            "feature_change": float(moved / np.linalg.norm(features)),
            "centred_change": float(moved / np.linalg.norm(features - features.mean(axis=0))),
            "train_change": distance(same_fibres(small.volume, fibres), train),
            "chosen_change": distance(chosen, train),
            "bytes": read,
        }
    return {"voxels": int(source.array(0).size), "rank": EMBED.rank, "rows": rows}


def seen(
    volume: Volume, drawn: NDArray[np.int64], seed: int = SEED
) -> tuple[Float64, Fibres, TensorTrain, int]:
    """Features at voxels, fibres, their train, and the bytes that choosing and making these took."""
    reader = volume.cube_reader()
    voxels = encoded(volume, reader)
    fibres = Fibres.choose(voxels, EMBED, seed)
    train = fibres.train(voxels.features(fibres.voxels))
    read = reader.counts.bytes
    features = voxels.features(drawn).numpy()
    reader.close()
    return features, fibres, train, read


def same_fibres(volume: Volume, fibres: Fibres) -> TensorTrain:
    """The train that a volume's features make along fibres chosen elsewhere."""
    reader = volume.cube_reader()
    train = fibres.train(encoded(volume, reader).features(fibres.voxels))
    reader.close()
    return train


def encoded(volume: Volume, reader: CubeReader) -> EncodedVoxels:
    """A volume behind the encoder of `embed`."""
    statistics = intensities(volume.stored.statistics)
    encoder = ENCODERS[EMBED.encoder](reader.channels, EMBED.n_dim, EMBED.seed, statistics, CPU)
    return EncodedVoxels(reader, encoder, CPU)


def distance(train: TensorTrain, of: TensorTrain) -> float:
    """|T' - T| / |T|."""
    square = train.inner(train) - 2 * train.inner(of) + of.inner(of)
    return float(torch.sqrt(square.clamp(min=0) / of.inner(of)))
