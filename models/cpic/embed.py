"""A volume's embedding: the tensor train of its encoded cubes, with counts and a certificate.

C-PIC's forward pass without training: choose fibres (`cross`), interpolate (`interpolate`), test on voxels
that were not used (`certify`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from models.cpic.certificate import Certificate, certify
from models.cpic.cross import cross, ignore
from models.cpic.encoder import ENCODERS, Encoder, IntensityStatistics
from models.cpic.field import ENCODE_BATCH, FETCH_BYTES, Counts, EncodedVoxels, SampledField, linear_voxels
from models.cpic.forward_set import ForwardSet
from models.cpic.index_sets import IndexSets, feasible_ranks, nested_samples, random_start
from models.cpic.interpolate import interpolate
from models.errors import InvalidConfig, InvalidShape
from models.tt.qtt import LAYOUTS, ORDERS, Layout, make_layout
from models.tt.train import TensorTrain
from models.types import Array, CubeSource, Int64, Report

HELD_OUT_NUMBERS = 1 << 18
"""Features of held-out voxels that are compared between two reports."""
PORTION_NUMBERS = 1 << 20
"""Float64 numbers that evaluating a train at many entries may take, per copy."""
RUNTIME_BYTES = 64 << 20
"""What torch's and numpy's own buffers take beside ours."""
UNKNOWN_SCAN = IntensityStatistics(0.0, 1.0, 0.5, 0.25)
"""Stands in where an encoder is asked for its sizes before there is a scan."""


@dataclass(frozen=True)
class EmbedConfig:
    """How to embed. `n_dim` is the features per voxel (the encoder `identity` has one per channel instead).

    `order` matters for the layout `qtt` only. `rank` is a cap: bonds that carry less have less, and the
    embedding's `ranks` say so. Raises InvalidConfig, naming the setting.
    """

    encoder: str = "random_cpic"
    n_dim: int = 16
    layout: str = "qtt"
    order: str = "sequential"
    rank: int = 10
    sweeps: int = 2
    held_out: int = 1000
    confidence: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        for setting, table in (("encoder", tuple(ENCODERS)), ("layout", LAYOUTS), ("order", ORDERS)):
            if getattr(self, setting) not in table:
                raise InvalidConfig(setting, getattr(self, setting), f"one of {', '.join(table)}")
        for setting, least in (("n_dim", 1), ("rank", 1), ("sweeps", 1), ("held_out", 4), ("seed", 0)):
            if getattr(self, setting) < least:
                raise InvalidConfig(setting, getattr(self, setting), f"at least {least}")
        if not 0 < self.confidence < 1:
            raise InvalidConfig("confidence", self.confidence, "between 0 and 1")


@dataclass(frozen=True)
class Estimate:
    """What an embedding looks at, known beforehand.

    Samples and the forward set's unique samples are exact; unique cubes, and the unique samples of all
    sweeps, are upper limits. `held_out_cubes` come on top.
    """

    forward: Counts
    all_sweeps: Counts
    held_out_cubes: int
    memory_bytes: int

    @property
    def samples(self) -> int:
        """Entries looked at in all sweeps."""
        return self.all_sweeps.samples

    @property
    def cubes(self) -> int:
        """At most so many cubes are read."""
        return self.all_sweeps.unique_cubes + self.held_out_cubes


@dataclass(frozen=True, eq=False)
class Embedding:
    """The result: train, the indices that it was interpolated from, what that took, and how good it is.

    `forward` counts the forward set alone (all that a pass with known indices needs), `all_sweeps`
    everything that was looked at to choose it; held-out voxels are in neither.
    """

    config: EmbedConfig
    train: TensorTrain
    layout: Layout
    sets: IndexSets
    forward: Counts
    all_sweeps: Counts
    certificate: Certificate

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks of the inner bonds, after caps and cuts."""
        return self.train.ranks

    def tensors(self) -> dict[str, Array]:
        """Everything that is an array, by name: cores (float64) and index sets (int64)."""
        return {
            **{f"core.{k}": core.detach().cpu().numpy() for k, core in enumerate(self.train.cores)},
            **{f"left.{k}": J for k, J in enumerate(self.sets.left)},
            **{f"right.{k}": K for k, K in enumerate(self.sets.right)},
        }

    def manifest(self) -> dict[str, Any]:
        """Everything else, as JSON."""
        return {
            "config": asdict(self.config),
            "shape": list(self.layout.shape[:3]),
            "features": self.layout.features,
            "modes": list(self.layout.modes),
            "strides": list(self.layout.strides),
            "ranks": list(self.ranks),
            "forward": asdict(self.forward),
            "all_sweeps": asdict(self.all_sweeps),
            "certificate": self.certificate.to_json(),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Array], manifest: Mapping[str, Any]) -> Embedding:
        """What `tensors` and `manifest` gave. Raises InvalidShape when they do not belong together."""
        config = EmbedConfig(**manifest["config"])
        z, y, x = manifest["shape"]
        layout = make_layout(config.layout, (z, y, x), manifest["features"], config.order)
        cores, bonds = range(len(layout.modes)), range(len(layout.modes) - 1)
        names = [f"core.{k}" for k in cores] + [f"{side}.{k}" for side in ("left", "right") for k in bonds]
        if missing := [name for name in names if name not in tensors]:
            raise InvalidShape(f"the embedding lacks {', '.join(missing)}")
        train = TensorTrain(tuple(torch.from_numpy(np.array(tensors[f"core.{k}"])) for k in cores))
        if train.modes != layout.modes:
            raise InvalidShape(f"cores of modes {train.modes} do not fit the layout's {layout.modes}")
        if list(layout.strides) != list(manifest["strides"]):
            raise InvalidShape(f"strides {manifest['strides']} are not the layout's {list(layout.strides)}")
        return cls(
            config=config,
            train=train,
            layout=layout,
            sets=IndexSets(
                tuple(np.array(tensors[f"left.{k}"]) for k in bonds),
                tuple(np.array(tensors[f"right.{k}"]) for k in bonds),
            ),
            forward=Counts(**manifest["forward"]),
            all_sweeps=Counts(**manifest["all_sweeps"]),
            certificate=Certificate.from_json(manifest["certificate"]),
        )


def embed(
    source: CubeSource,
    config: EmbedConfig,
    statistics: IntensityStatistics,
    *,
    device: str | torch.device = "cpu",
    report: Report = ignore,
) -> Embedding:
    """The embedding of a volume. Same source, config and device: same bits, on a CPU.

    `report` is called between steps with the phases "sampling" and "certificate"; what it raises ends the
    work. Raises SourceFailed, NonFiniteSample and SampleOutOfRange (naming the voxel), and InvalidShape
    (naming the limit).
    """
    device = torch.device(device)
    encoder = _encoder(source.channels, config, statistics, device)
    layout = make_layout(config.layout, source.shape, encoder.features, config.order)
    voxels = EncodedVoxels(source, encoder, device)
    field = SampledField(voxels, layout)
    start_seed, cross_seed, held_out_seed = np.random.SeedSequence(config.seed).generate_state(3).tolist()
    sets = cross(
        field,
        layout,
        random_start(layout, config.rank, start_seed),
        sweeps=config.sweeps,
        seed=cross_seed,
        rank_tolerance=encoder.rank_tolerance,
        report=report,
    )
    forward = ForwardSet.of(layout, sets)
    train = interpolate(field(forward.keys), forward, rank_tolerance=encoder.rank_tolerance)
    all_sweeps = field.counts
    return Embedding(
        config=config,
        train=train,
        layout=layout,
        sets=sets,
        forward=_forward_counts(forward, layout),
        all_sweeps=all_sweeps,
        certificate=_certificate(train, layout, voxels, encoder, config, held_out_seed, report),
    )


def estimate(shape: tuple[int, int, int], channels: int, config: EmbedConfig) -> Estimate:
    """What `embed` will look at and the memory that it takes beside its source, before any voxel is read.

    Raises InvalidShape, naming the limit, for volumes that no layout can hold.
    """
    encoder = _encoder(channels, config, UNKNOWN_SCAN, torch.device("cpu"))
    layout = make_layout(config.layout, shape, encoder.features, config.order)
    ranks = (1, *feasible_ranks(layout.modes, config.rank), 1)
    blocks = [ranks[k] * n * ranks[k + 1] for k, n in enumerate(layout.modes)]
    samples, unique = nested_samples(layout.modes, ranks[1:-1])
    rightward, leftward = samples - blocks[-1], samples - blocks[0]
    half_sweeps = 2 * config.sweeps - 1
    seen = half_sweeps * unique
    forward = Counts(samples, unique, min(unique, layout.voxels))
    all_sweeps = Counts(
        config.sweeps * rightward + (config.sweeps - 1) * leftward + unique, seen, min(seen, layout.voxels)
    )
    cubes = all_sweeps.unique_cubes + config.held_out
    cube_bytes = 8 * channels * encoder.cube_size**3
    memory = (
        cubes * (24 * encoder.features + 64)  # stored features, thrice while they grow; their voxels
        + 24 * seen  # keys that were asked for
        + 2 * min(FETCH_BYTES, max(*blocks, config.held_out) * cube_bytes)  # as read, and as given
        + ENCODE_BATCH * (cube_bytes + encoder.scratch_bytes)
        + 96 * max(blocks)  # one block: keys, entries, values, basis and coefficients
        + 48 * samples  # forward set and cores
        + config.held_out * (40 * encoder.features + 128)  # both values, error, squares and pairs; voxels
        + 24 * PORTION_NUMBERS
        + RUNTIME_BYTES
    )
    return Estimate(forward, all_sweeps, config.held_out, memory)


def _encoder(
    channels: int, config: EmbedConfig, statistics: IntensityStatistics, device: torch.device
) -> Encoder:
    return ENCODERS[config.encoder](channels, config.n_dim, config.seed, statistics, device)


def _forward_counts(forward: ForwardSet, layout: Layout) -> Counts:
    cubes = np.unique(linear_voxels(layout.entries(forward.keys), layout))
    return Counts(forward.samples, len(forward.keys), len(cubes))


def _certificate(
    train: TensorTrain,
    layout: Layout,
    voxels: EncodedVoxels,
    encoder: Encoder,
    config: EmbedConfig,
    seed: int,
    report: Report,
) -> Certificate:
    """Draw voxels uniformly, with replacement and from a stream of their own, and compare there."""
    drawn = np.random.default_rng(seed).integers(layout.voxels, size=config.held_out)
    zyx = np.stack(np.unravel_index(drawn, layout.shape[:3]), axis=-1)
    step = max(1, HELD_OUT_NUMBERS // layout.features)
    approximation, truth = np.empty((2, len(drawn), layout.features))
    for start in range(0, len(drawn), step):
        part = slice(start, start + step)
        truth[part] = voxels.features(drawn[part]).cpu().numpy()
        approximation[part] = features_at(train, layout, zyx[part])
        report("certificate", min(start + step, len(drawn)), len(drawn))
    return certify(approximation, truth, zyx, encoder.value_range, config.confidence)


def features_at(train: TensorTrain, layout: Layout, voxels: Int64) -> Array:
    """The train's features (m, f) at voxels (m, 3) in (z, y, x); memory is bounded but for the result's."""
    first = layout.keys_of(np.column_stack([voxels, np.zeros(len(voxels), np.int64)]))
    keys = (first[:, None] + np.arange(layout.features)).ravel()
    step = max(1, PORTION_NUMBERS // max(len(layout.modes), max(train.ranks, default=1) ** 2))
    values = np.empty(len(keys))
    for start in range(0, len(keys), step):
        part = slice(start, start + step)
        indices = torch.from_numpy(layout.indices(keys[part])).to(train.cores[0].device)
        values[part] = train.at(indices).detach().cpu().numpy()
    return values.reshape(len(voxels), layout.features)
