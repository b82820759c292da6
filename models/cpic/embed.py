"""A volume's embedding: the tensor train of its encoded cubes, with counts and a certificate.

C-PIC's forward pass without training: choose fibres and make a train of them (`Fibres`), and test it on
voxels that were not used (`certify`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

import numpy as np
import torch

from models.cpic.adaptive import most_samples
from models.cpic.certificate import Certificate, certify
from models.cpic.cross import ignore
from models.cpic.encoder import ENCODERS, Encoder
from models.cpic.encoding import ENCODE_BATCH, FETCH_BYTES
from models.cpic.fibres import FibreConfig, Fibres, field_of
from models.cpic.field import (
    Counts,
    EncodedVoxels,
)
from models.cpic.index_sets import IndexSets, feasible_ranks, nested_samples, prefix_counts
from models.errors import InvalidConfig, InvalidShape
from models.intensities import IntensityStatistics
from models.tt.qtt import Layout
from models.tt.train import TensorTrain
from models.types import Array, CubeSource, Int64, Report

HELD_OUT_NUMBERS = 1 << 18
"""Features of held-out voxels that are compared between two reports."""
PORTION_NUMBERS = 1 << 20
"""Float64 numbers that evaluating a train at many entries may take, per copy."""
RUNTIME_BYTES = 64 << 20
"""What torch's and numpy's own buffers take beside ours."""
PRECISION_MARGIN = 10
"""Tolerances are at least so many times the relative precision of an encoder's features."""
UNKNOWN_SCAN = IntensityStatistics(0.0, 1.0, 0.5, 0.25)
"""Stands in where an encoder is asked for its sizes before there is a scan."""
BEFORE_BLOCKS = {"sampling": "scalar", "oversampling": 1.0, "tolerance": None}
"""How embeddings were made whose manifests do not say: then there was nothing else."""


@dataclass(frozen=True, kw_only=True)
class EmbedConfig(FibreConfig):
    """How to choose fibres (`FibreConfig`), of what, and how to test their train.

    `n_dim` is the features per voxel (the encoder `identity` has one per channel instead). Raises
    InvalidConfig, naming the setting.
    """

    encoder: str = "random_cpic"
    n_dim: int = 16
    held_out: int = 1000
    confidence: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.encoder not in ENCODERS:
            raise InvalidConfig("encoder", self.encoder, f"one of {', '.join(ENCODERS)}")
        for setting, least in (("n_dim", 1), ("held_out", 4), ("seed", 0)):
            if getattr(self, setting) < least:
                raise InvalidConfig(setting, getattr(self, setting), f"at least {least}")
        if not 0 < self.confidence < 1:
            raise InvalidConfig("confidence", self.confidence, "between 0 and 1")


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
    """The result: train, the indices that it was made from, what that took, and how good it is.

    `forward` counts the forward set alone (all that a pass with known indices needs), `all_sweeps`
    everything that was looked at to choose it; held-out voxels are in neither. `converged` says whether ranks
    were found for the tolerance; None where there is none.
    """

    config: EmbedConfig
    train: TensorTrain
    layout: Layout
    sets: IndexSets
    forward: Counts
    all_sweeps: Counts
    converged: bool | None
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
            "converged": self.converged,
            "forward": asdict(self.forward),
            "all_sweeps": asdict(self.all_sweeps),
            "certificate": self.certificate.to_json(),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Array], manifest: Mapping[str, Any]) -> Embedding:
        """What `tensors` and `manifest` gave. Raises InvalidShape when they do not belong together."""
        config = EmbedConfig(**{**BEFORE_BLOCKS, **manifest["config"]})
        z, y, x = manifest["shape"]
        layout = config.train_layout((z, y, x), manifest["features"])
        cores, bonds = range(len(layout.modes)), range(len(config.sampled_layout(layout).modes) - 1)
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
            converged=manifest.get("converged"),
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

    `report` is called between steps with the phases "adapting" (with a tolerance), "sampling" and
    "certificate", and within long steps with what it was told last; what it raises ends the work.
    Raises SourceFailed, NonFiniteSample and SampleOutOfRange (naming the voxel), and InvalidShape (naming the
    limit).
    """
    device = torch.device(device)
    encoder = _encoder(source.channels, config, statistics, device)
    layout = config.train_layout(source.shape, encoder.features)
    report = _Repeatable(report, "sampling" if config.tolerance is None else "adapting")
    voxels = EncodedVoxels(source, encoder, device, stepped=report.again)
    field = field_of(voxels, config, layout)
    fibres = Fibres.choose(voxels, config, config.seed, field=field, report=report)
    train = fibres.train(voxels.features(fibres.voxels), stepped=report.again)
    forward = fibres.forward
    return Embedding(
        config=config,
        train=train,
        layout=layout,
        sets=fibres.sets,
        forward=Counts(forward.samples, len(forward.keys), len(fibres.voxels)),
        all_sweeps=field.counts,
        converged=fibres.converged,
        certificate=_certificate(train, layout, voxels, encoder, config, report),
    )


class _Repeatable:
    """A report that can be made again, so that work may be ended within a step too; `first` is a phase."""

    def __init__(self, report: Report, first: str) -> None:
        self._report = report
        self._last: tuple[str, int, int | None] = first, 0, None

    def __call__(self, phase: str, done: int, total: int | None) -> None:
        self._last = phase, done, total
        self.again()

    def again(self) -> None:
        """Report what was reported last; before that, the first phase."""
        self._report(*self._last)


def estimate(shape: tuple[int, int, int], channels: int, config: EmbedConfig) -> Estimate:
    """What `embed` will look at and the memory that it takes beside its source, before any voxel is read.

    Raises InvalidShape, naming the limit, for volumes that no layout can hold.
    """
    encoder = _encoder(channels, config, UNKNOWN_SCAN, torch.device("cpu"))
    return estimate_of(shape, channels, encoder, config, config.held_out)


def estimate_of(
    shape: tuple[int, int, int], channels: int, encoder: Encoder, config: FibreConfig, held_out: int
) -> Estimate:
    """The same of any encoder, where `held_out` voxels test the train. Raises InvalidShape."""
    layout = config.train_layout(shape, encoder.features)
    modes = config.sampled_layout(layout).modes
    width = encoder.features if config.in_blocks(layout) else 1
    K = feasible_ranks(modes, config.set_size)
    J = prefix_counts(modes, K, width, max(*K, config.rank, 1))
    blocks = [p * n * q for p, n, q in zip((1, *J), modes, (*K, 1), strict=True)]
    samples, unique = nested_samples(modes, J, K)
    rightward, leftward = samples - blocks[-1], samples - blocks[0]
    forward = Counts(samples, unique, min(unique, layout.voxels))
    asked = config.sweeps * rightward + (config.sweeps - 1) * leftward + unique
    seen = (2 * config.sweeps - 1) * unique
    if config.tolerance is not None:
        most = most_samples(modes, config.rank, config.adaptive)
        asked, seen = asked + most, seen + most
    all_sweeps = Counts(asked, min(seen, prod(modes)), min(seen, layout.voxels))
    return Estimate(
        forward,
        all_sweeps,
        held_out,
        _memory(channels, encoder, held_out, all_sweeps, samples, max(blocks), width),
    )


def cube_size(channels: int, config: EmbedConfig) -> int:
    """Edge of the cube around a voxel that its features depend on."""
    return _encoder(channels, config, UNKNOWN_SCAN, torch.device("cpu")).cube_size


def _memory(
    channels: int,
    encoder: Encoder,
    held_out: int,
    all_sweeps: Counts,
    samples: int,
    block: int,
    width: int,
) -> int:
    """Bytes beside the source's own: what is kept, one read, one batch, one block, the cores, the check."""
    features = encoder.features
    cubes = all_sweeps.unique_cubes + held_out
    cube_bytes = 8 * channels * encoder.cube_size**3
    return (
        cubes * (28 * features + 64)  # stored features, while they grow; their voxels
        + 24 * all_sweeps.unique_samples  # keys that were asked for
        + 2 * min(FETCH_BYTES, max(block, held_out) * cube_bytes)  # as read, and as given
        + ENCODE_BATCH * (cube_bytes + encoder.scratch_bytes)
        + (96 + 40 * width) * block  # keys, entries, values, basis and coefficients; plans of boxes
        + (16 + 32 * width) * samples  # forward set and cores
        + held_out * (40 * features + 128)  # both values, error, squares and pairs; voxels
        + 24 * PORTION_NUMBERS
        + RUNTIME_BYTES
    )


def _encoder(
    channels: int, config: EmbedConfig, statistics: IntensityStatistics, device: torch.device
) -> Encoder:
    """The encoder of a scan. Raises InvalidConfig for a tolerance that its precision cannot reach."""
    encoder = ENCODERS[config.encoder](channels, config.n_dim, config.seed, statistics, device)
    if config.tolerance is not None and config.tolerance < (
        least := PRECISION_MARGIN * encoder.rank_tolerance
    ):
        raise InvalidConfig("tolerance", config.tolerance, f"at least {least:g} with this encoder")
    return encoder


def _certificate(
    train: TensorTrain,
    layout: Layout,
    voxels: EncodedVoxels,
    encoder: Encoder,
    config: EmbedConfig,
    report: Report,
) -> Certificate:
    """Draw voxels uniformly, with replacement and from a stream of their own, and compare there."""
    seed = np.random.SeedSequence(config.seed).generate_state(3)[2]
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
