"""A volume's embedding: the tensor train of its encoded cubes, with counts and a certificate.

C-PIC's forward pass without training: choose fibres (`cross`), interpolate (`interpolate`), test on voxels
that were not used (`certify`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import ceil, prod
from typing import Any

import numpy as np
import torch

from models.cpic.adaptive import AdaptiveConfig, adaptive_cross, most_samples
from models.cpic.certificate import Certificate, certify
from models.cpic.cross import cross, ignore
from models.cpic.encoder import ENCODERS, Encoder, IntensityStatistics
from models.cpic.field import (
    ENCODE_BATCH,
    FETCH_BYTES,
    BlockField,
    Counts,
    EncodedVoxels,
    Field,
    SampledField,
)
from models.cpic.fit import train_of
from models.cpic.forward_set import ForwardSet
from models.cpic.index_sets import IndexSets, feasible_ranks, nested_samples, prefix_counts, random_start
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
FIRST_RANK = 4
"""Where ranks are found for a tolerance, they grow from this."""
SAMPLINGS = ("block", "scalar")
UNKNOWN_SCAN = IntensityStatistics(0.0, 1.0, 0.5, 0.25)
"""Stands in where an encoder is asked for its sizes before there is a scan."""


@dataclass(frozen=True)
class EmbedConfig:
    """How to embed. `n_dim` is the features per voxel (the encoder `identity` has one per channel instead).

    `order` matters for the layout `qtt` only. `rank` is a cap: bonds that carry less have less, and the
    embedding's `ranks` say so. `sampling` is `block` (all features of a voxel are used together) or `scalar`
    (each entry on its own, as in the paper). `oversampling` is the size of index sets over the rank: 1 is
    interpolation, which suits smooth fields; 2 is a least-squares fit, which rough ones need. With a
    `tolerance`, ranks up to `rank` are found for it, and `sweeps` and `oversampling` do not matter.
    Raises InvalidConfig, naming the setting.
    """

    encoder: str = "random_cpic"
    n_dim: int = 16
    layout: str = "qtt"
    order: str = "sequential"
    sampling: str = "block"
    rank: int = 10
    oversampling: float = 2.0
    sweeps: int = 1
    tolerance: float | None = None
    held_out: int = 1000
    confidence: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        tables = {"encoder": tuple(ENCODERS), "layout": LAYOUTS, "order": ORDERS, "sampling": SAMPLINGS}
        for setting, table in tables.items():
            if getattr(self, setting) not in table:
                raise InvalidConfig(setting, getattr(self, setting), f"one of {', '.join(table)}")
        for setting, least in (("n_dim", 1), ("rank", 1), ("sweeps", 1), ("held_out", 4), ("seed", 0)):
            if getattr(self, setting) < least:
                raise InvalidConfig(setting, getattr(self, setting), f"at least {least}")
        if not 1 <= self.oversampling <= 8:
            raise InvalidConfig("oversampling", self.oversampling, "between 1 and 8")
        if not 0 < self.confidence < 1:
            raise InvalidConfig("confidence", self.confidence, "between 0 and 1")
        if self.tolerance is not None and not 0 < self.tolerance < 1:
            raise InvalidConfig("tolerance", self.tolerance, "between 0 and 1")

    @property
    def set_size(self) -> int:
        """Elements of an index set, where its bond carries them."""
        return ceil(self.rank * self.oversampling)


@dataclass(frozen=True)
class Estimate:
    """What an embedding looks at, known beforehand.

    Samples and the forward set's unique samples are exact; unique cubes, and the unique samples of all
    sweeps, are upper limits; so is everything where ranks are found for a tolerance. `held_out_cubes` come on
    top.
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
        layout = _layout((z, y, x), manifest["features"], config)
        cores, bonds = range(len(layout.modes)), range(len(_target(layout, config).modes) - 1)
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
    layout = _layout(source.shape, encoder.features, config)
    voxels = EncodedVoxels(source, encoder, device)
    start_seed, cross_seed, held_out_seed = np.random.SeedSequence(config.seed).generate_state(3).tolist()
    field = _field(voxels, layout, config)
    sets = _chosen(field, config, encoder.rank_tolerance, start_seed, cross_seed, report)
    forward = ForwardSet.of(field.layout, sets)
    train = train_of(field(forward.keys), forward, config.rank, rank_tolerance=encoder.rank_tolerance)
    all_sweeps = field.counts
    return Embedding(
        config=config,
        train=train,
        layout=layout,
        sets=sets,
        forward=Counts(forward.samples, len(forward.keys), len(np.unique(field.voxels(forward.keys)))),
        all_sweeps=all_sweeps,
        certificate=_certificate(train, layout, voxels, encoder, config, held_out_seed, report),
    )


def estimate(shape: tuple[int, int, int], channels: int, config: EmbedConfig) -> Estimate:
    """What `embed` will look at and the memory that it takes beside its source, before any voxel is read.

    Raises InvalidShape, naming the limit, for volumes that no layout can hold.
    """
    encoder = _encoder(channels, config, UNKNOWN_SCAN, torch.device("cpu"))
    layout = _layout(shape, encoder.features, config)
    modes = _target(layout, config).modes
    width = encoder.features if _in_blocks(layout, config) else 1
    K = feasible_ranks(modes, config.set_size)
    J = prefix_counts(modes, K, width, max(*K, config.rank, 1))
    blocks = [p * n * q for p, n, q in zip((1, *J), modes, (*K, 1), strict=True)]
    samples, unique = nested_samples(modes, J, K)
    rightward, leftward = samples - blocks[-1], samples - blocks[0]
    forward = Counts(samples, unique, min(unique, layout.voxels))
    asked = config.sweeps * rightward + (config.sweeps - 1) * leftward + unique
    seen = (2 * config.sweeps - 1) * unique
    if config.tolerance is not None:
        asked = seen = most_samples(modes, config.rank, _adaptive(config))
    all_sweeps = Counts(asked, min(seen, prod(modes)), min(seen, layout.voxels))
    return Estimate(
        forward,
        all_sweeps,
        config.held_out,
        _memory(channels, encoder, config, all_sweeps, samples, max(blocks), width),
    )


def _memory(
    channels: int,
    encoder: Encoder,
    config: EmbedConfig,
    all_sweeps: Counts,
    samples: int,
    block: int,
    width: int,
) -> int:
    """Bytes beside the source's own: what is kept, one read, one batch, one block, the cores, the check."""
    features = encoder.features
    cubes = all_sweeps.unique_cubes + config.held_out
    cube_bytes = 8 * channels * encoder.cube_size**3
    return (
        cubes * (28 * features + 64)  # stored features, while they grow; their voxels
        + 24 * all_sweeps.unique_samples  # keys that were asked for
        + 2 * min(FETCH_BYTES, max(block, config.held_out) * cube_bytes)  # as read, and as given
        + ENCODE_BATCH * (cube_bytes + encoder.scratch_bytes)
        + (96 + 40 * width) * block  # keys, entries, values, basis and coefficients; plans of boxes
        + (16 + 32 * width) * samples  # forward set and cores
        + config.held_out * (40 * features + 128)  # both values, error, squares and pairs; voxels
        + 24 * PORTION_NUMBERS
        + RUNTIME_BYTES
    )


def _chosen(
    field: Field, config: EmbedConfig, rank_tolerance: float, start_seed: int, seed: int, report: Report
) -> IndexSets:
    """The index sets: of given sizes, or of those that the tolerance needs."""
    start = random_start(field.layout, config.set_size, start_seed)
    if config.tolerance is not None:
        small = random_start(field.layout, min(config.rank, FIRST_RANK), start_seed)
        return adaptive_cross(field, field.layout, small, _adaptive(config), seed=seed, report=report).sets
    return cross(
        field,
        field.layout,
        start,
        rank=config.rank,
        sweeps=config.sweeps,
        seed=seed,
        rank_tolerance=rank_tolerance,
        report=report,
    )


def _adaptive(config: EmbedConfig) -> AdaptiveConfig:
    return AdaptiveConfig(tolerance=config.tolerance or 1e-6, max_rank=config.rank)


def _in_blocks(layout: Layout, config: EmbedConfig) -> bool:
    """Whether samples are vectors: with one feature, or one voxel, there is nothing to take together."""
    return config.sampling == "block" and layout.features > 1 and layout.voxels > 1


def _layout(shape: tuple[int, int, int], features: int, config: EmbedConfig) -> Layout:
    whole = config.sampling == "block"
    return make_layout(config.layout, shape, features, config.order, whole_features=whole)


def _target(layout: Layout, config: EmbedConfig) -> Layout:
    """What index sets are chosen in: voxels alone, or all entries."""
    return layout.spatial() if _in_blocks(layout, config) else layout


def _field(voxels: EncodedVoxels, layout: Layout, config: EmbedConfig) -> Field:
    make = BlockField if _in_blocks(layout, config) else SampledField
    return make(voxels, _target(layout, config))


def _encoder(
    channels: int, config: EmbedConfig, statistics: IntensityStatistics, device: torch.device
) -> Encoder:
    return ENCODERS[config.encoder](channels, config.n_dim, config.seed, statistics, device)


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
    spatial = layout.spatial_modes
    keys = layout.keys_of(np.column_stack([voxels, np.zeros(len(voxels), np.int64)]))
    step = max(
        1, PORTION_NUMBERS // max(layout.padded[3], len(layout.modes), max(train.ranks, default=1) ** 2)
    )
    values = np.empty((len(voxels), layout.features))
    for start in range(0, len(keys), step):
        part = slice(start, start + step)
        indices = torch.from_numpy(layout.indices(keys[part])[:, :spatial]).to(train.cores[0].device)
        found = train.fibres_at(indices).reshape(len(indices), -1)
        values[part] = found[:, : layout.features].detach().cpu().numpy()
    return values
