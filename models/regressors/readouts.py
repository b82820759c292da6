"""What is read of a scan behind an encoder that stands still: a vector of features, in named blocks.

Two ways, with one face. `FibreReadout` is C-PIC's: fibres, their train, its principal features (by the
anchors of the training), itself (`KERNEL`: all principal features in proportion, so that a ridge on them is
kernel ridge regression with inner products of trains) and its pooled moments. `VoxelReadout` is the plain
one: pooled moments, estimated from random voxels. A head takes one block: the train itself, which has all
that the others have, or whichever inner cross-validation prefers. That is misled by an encoder that has
learned from the same rows, most where they are few.

How far a scan is from those of the training is told by what of its train the principal axes do not span
(`models.regressors.distances`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from models.cpic.certificate import certify
from models.cpic.embed import features_at
from models.cpic.encoder import LARGEST, Encoder
from models.cpic.encoding import Scan
from models.cpic.fibres import FibreConfig, Fibres
from models.cpic.field import EncodedVoxels
from models.cpic.guided_voxels import drawn_by
from models.cpic.moments import Pooling, pooled_moments
from models.cpic.projection import Basis
from models.cpic.random_voxels import RandomVoxels
from models.errors import InvalidConfig, InvalidShape
from models.learning.saved import part, under
from models.limits import refuse_outside
from models.regressors.base import Look, Saliency
from models.regressors.blocks import BlockMeans
from models.regressors.distances import left_out
from models.regressors.guides import guide_of
from models.regressors.overview import Overview
from models.regressors.settings import recipe_of, settings_of
from models.threads import one_thread
from models.tt.gram import gram
from models.tt.qtt import Layout
from models.tt.train import TensorTrain, stacked
from models.types import Array, CubeSource, Int64, Report

HELD_OUT, CONFIDENCE = 4000, 0.95
"""Voxels that a look tests a train at, and the confidence of its certificate."""
KERNEL = "kernel"
"""The block of a train itself."""
BEST, PRINCIPAL = "best", "principal"
"""What may be asked for beside blocks by name: whichever has the least inner error, or all of `counts`."""
LEAST_DISTANCE_SCANS = 3
"""With fewer anchors nothing can be said of distances."""

EncoderOf = Callable[[CubeSource], Encoder]
"""The encoder of a scan."""


@dataclass(frozen=True, eq=False)
class Seen:
    """One scan as a readout sees it: `vector` makes features (p,) of the values (m, f) of `voxels` (m,).

    `fibres` are those that the voxels make up, where they do.
    """

    volume: EncodedVoxels
    voxels: Int64
    vector: Callable[[Tensor], Float64[Tensor, " p"]]
    fibres: Fibres | None = None

    @property
    def values(self) -> Float64[Tensor, "m f"]:
        """The features of the voxels."""
        return self.volume.features(self.voxels)

    @cached_property
    def train(self) -> TensorTrain | None:
        """What the fibres make, if there are any."""
        return None if self.fibres is None else self.fibres.train(self.values)

    @one_thread()
    def features(self) -> Float64[Array, " p"]:
        """All blocks, side by side."""
        return np.asarray(self.vector(self.values).cpu().numpy())

    @one_thread()
    def saliency(self, gradient: Float64[Array, " p"]) -> Saliency:
        """Gradient times value at every voxel, for an answer that changes with the features so."""
        values = self.values.requires_grad_()
        moved = self.vector(values) @ torch.from_numpy(gradient).to(values.device)
        (slopes,) = torch.autograd.grad(moved, values)
        weights = (slopes * values.detach()).sum(dim=1).cpu().numpy()
        edge = float(self.volume.scan.encoder.cube_size)
        voxels = np.stack(np.unravel_index(self.voxels, self.volume.scan.shape), axis=1)
        return Saliency(voxels, weights, (edge, edge, edge))


class Readout(ABC):
    """A way to read scans; what it learnt of the training is in it. A `ScanFeatures` of all its blocks."""

    @property
    @abstractmethod
    def blocks(self) -> dict[str, slice]:
        """Where each block of features stands."""

    @property
    def offered(self) -> tuple[str, ...]:
        """The blocks that a head may take."""
        return tuple(self.blocks)

    @property
    def proportional(self) -> frozenset[str]:
        """Blocks whose features keep their proportions."""
        return frozenset()

    @abstractmethod
    def see(self, scan: CubeSource) -> Seen:
        """One scan; the same for the same scan, whatever is seen beside it."""

    @abstractmethod
    def distance(self, seen: Seen) -> tuple[float, float] | None:
        """How far the scan is from those of the training, and its percentile among them, if that is known."""

    @abstractmethod
    def certificate(self, seen: Seen) -> dict[str, Any] | None:
        """Of the approximation that was used, if there is one."""

    @abstractmethod
    def tensors(self) -> dict[str, Array]:
        """Everything that is an array, by name."""

    @abstractmethod
    def manifest(self) -> dict[str, Any]:
        """Everything else, as JSON."""

    def __call__(self, scan: CubeSource) -> Float64[Array, " p"]:
        """The features of a scan."""
        return self.see(scan).features()

    def look(
        self, scan: CubeSource, gradient: Callable[[Float64[Array, " p"]], Float64[Array, " p"]]
    ) -> Look:
        """What stands behind an answer that changes with the features as `gradient` says."""
        seen = self.see(scan)
        return self.look_of(seen, gradient(seen.features()))

    def look_of(self, seen: Seen, gradient: Float64[Array, " p"]) -> Look:
        """The same, of what was seen."""
        distance, percentile = self.distance(seen) or (None, None)
        return Look(
            distance=distance,
            distance_percentile=percentile,
            certificate=self.certificate(seen),
            voxels=len(seen.voxels),
            saliency=seen.saliency(gradient),
        )


@dataclass(frozen=True)
class FibreReadoutConfig:
    """How scans are read by fibres. Raises InvalidConfig, naming the setting.

    `counts` are numbers of principal features, `poolings` functions per axis of moments; either may be empty.
    `block` is what the head takes: `kernel`, the train itself (which needs counts), `principal`, the largest
    of `counts`, `principal 10`, `moments 2`, or `best`, whichever inner cross-validation prefers. At most
    `anchors` scans make the basis: drawn, where there are more. With an `overview` of so many blocks per axis
    the kernel is that of the train and of the scan's block means, for which the whole scan is read.
    """

    fibres: FibreConfig = field(default_factory=FibreConfig)
    counts: tuple[int, ...] = (10, 30)
    block: str = KERNEL
    poolings: tuple[int, ...] = (2, 3)
    anchors: int = 256
    overview: int = 0

    def __post_init__(self) -> None:
        if not self.counts and not self.poolings:
            raise InvalidConfig("counts", self.counts, "not empty where poolings are")
        refuse_outside(self, counts=(1, 4096), poolings=(1, 16), anchors=(2, 4096), overview=(0, 64))
        if self.block not in (known := [BEST, *self._names]):
            raise InvalidConfig("block", self.block, f"one of {', '.join(known)}")
        if self.overview and not self.whole:
            raise InvalidConfig("overview", self.overview, f"0 where the block is {self.block}, not {KERNEL}")

    @property
    def whole(self) -> bool:
        """Whether trains themselves may be taken."""
        return bool(self.counts) and self.block in (KERNEL, BEST)

    @property
    def _names(self) -> list[str]:
        principal = [f"principal {count}" for count in self.counts]
        whole = [KERNEL, PRINCIPAL] if self.counts else []
        return principal + whole + [f"moments {count}" for count in self.poolings]


@dataclass(frozen=True, eq=False)
class FibreReadout(Readout):
    """See the module's text. Make one with `FibreReadout.of`; `distances` are those of the anchors,
    ascending.
    """

    config: FibreReadoutConfig
    encoder_of: EncoderOf
    features: int
    seed: int
    basis: Basis | None
    distances: Float64[Array, " k"]
    device: torch.device
    overview: Overview | None = None

    @classmethod
    @one_thread()
    def of(
        cls,
        scans: Sequence[CubeSource],
        patients: Sequence[str],
        encoder_of: EncoderOf,
        config: FibreReadoutConfig,
        *,
        seed: int,
        device: torch.device,
        report: Report,
    ) -> tuple[Self, Float64[Array, "s p"]]:
        """The readout that these scans span, and their features. Each scan is looked at once.

        `report` is called with the phase "trains". Raises InvalidShape for a lone scan.
        """
        if config.counts and len(scans) < 2:
            raise InvalidShape(f"{len(scans)} scan has no principal axes: train on two or more")
        width = encoder_of(scans[0]).features
        own = cls(config, encoder_of, width, seed, None, np.empty(0), device)
        made = []
        for done, scan in enumerate(scans):
            report("trains", done, len(scans))
            volume, fibres = own._sampled(scan)
            made.append((fibres.train(volume.features(fibres.voxels)), fibres.layout))
        if config.counts:
            drawn = np.random.default_rng([seed, len(scans)]).permutation(len(scans))[: config.anchors]
            chosen = np.sort(drawn).tolist()
            axes = max(*config.counts, len(chosen) - 1 if config.whole else 0)
            basis = Basis.of(stacked([made[number][0] for number in chosen]), axes)
            distances = np.empty(0)
            if len(chosen) >= LEAST_DISTANCE_SCANS:
                G = gram(basis.anchors, basis.anchors).cpu().numpy()
                outside = left_out(G, [patients[number] for number in chosen], max(config.counts))
                distances = np.sort(np.sqrt(outside / own._values(scans[0])))
            own = replace(own, basis=basis, distances=distances)
        features = np.stack([own._vector(train, layout).cpu().numpy() for train, layout in made])
        return own._with_overview(scans, features) if config.overview else (own, features)

    @property
    def blocks(self) -> dict[str, slice]:
        """Principal features first; smaller counts are the first of them."""
        blocks = {f"principal {count}": slice(0, count) for count in self.config.counts}
        start = self._principal + (0 if self.overview is None else self.overview.width)
        if self.config.whole and start:
            blocks[KERNEL] = slice(0, start)
        return blocks | _moments(self.config.poolings, self.features, start)

    @property
    def _principal(self) -> int:
        """Features of the basis."""
        return 0 if self.basis is None else self.basis.width

    @property
    def offered(self) -> tuple[str, ...]:
        """The block of the settings."""
        if self.config.block == BEST:
            return tuple(self.blocks)
        if self.config.block == PRINCIPAL:
            return (f"principal {max(self.config.counts)}",)
        return (self.config.block,)

    @property
    def proportional(self) -> frozenset[str]:
        """The block of a train itself."""
        return frozenset({KERNEL})

    def see(self, scan: CubeSource) -> Seen:
        """See `Readout`."""
        volume, fibres = self._sampled(scan)
        beside = None if self.overview is None else self.overview(scan)
        return Seen(
            volume,
            fibres.voxels,
            lambda values: self._vector(fibres.train(values), fibres.layout, beside),
            fibres,
        )

    @one_thread()
    def distance(self, seen: Seen) -> tuple[float, float] | None:
        """See `Readout`."""
        if self.basis is None or not len(self.distances) or seen.train is None:
            return None
        outside = self.basis.leading(max(self.config.counts)).outside(stacked([seen.train]))[0]
        distance = float((outside / self._values(seen.volume.scan)).sqrt())
        sides = [np.searchsorted(self.distances, distance, side=side) for side in ("left", "right")]
        return distance, float(50 * sum(sides) / len(self.distances))

    @one_thread()
    def certificate(self, seen: Seen) -> dict[str, Any] | None:
        """At voxels drawn for it alone; None for features without a known range."""
        low, high = seen.volume.scan.encoder.value_range
        if max(-low, high) >= LARGEST or seen.fibres is None or seen.train is None:
            return None
        held_seed = int(np.random.SeedSequence(self.seed).generate_state(3)[2])
        layout = seen.fibres.layout
        drawn = np.random.default_rng(held_seed).integers(layout.voxels, size=HELD_OUT)
        zyx = np.stack(np.unravel_index(drawn, layout.shape[:3]), axis=-1)
        truth = seen.volume.features(drawn).cpu().numpy()
        approximation = features_at(seen.train, layout, zyx)
        return certify(approximation, truth, zyx, (low, high), CONFIDENCE).to_json()

    def tensors(self) -> dict[str, Array]:
        """See `Readout`."""
        basis = {} if self.basis is None else under("basis", self.basis.tensors())
        overview = {} if self.overview is None else under("overview", self.overview.tensors())
        return {**basis, **overview, "distances": self.distances}

    def manifest(self) -> dict[str, Any]:
        """See `Readout`."""
        return {
            "config": settings_of(self.config),
            "features": self.features,
            "seed": self.seed,
            "basis": None if self.basis is None else self.basis.manifest(),
        }

    @classmethod
    def from_saved(
        cls,
        tensors: Mapping[str, Array],
        manifest: Mapping[str, Any],
        encoder_of: EncoderOf,
        device: torch.device,
    ) -> Self:
        """What `tensors` and `manifest` gave. Raises InvalidShape where they do not belong together."""
        told = manifest["basis"]
        basis = None if told is None else Basis.from_tensors(part("basis", tensors), told).to(device)
        config = recipe_of(FibreReadoutConfig, manifest["config"])
        blocks = BlockMeans(config.overview)
        overview = Overview.from_tensors(blocks, part("overview", tensors)) if config.overview else None
        return cls(
            config,
            encoder_of,
            manifest["features"],
            manifest["seed"],
            basis,
            np.array(tensors["distances"]),
            device,
            overview,
        )

    def _with_overview(
        self, scans: Sequence[CubeSource], features: Float64[Array, "s p"]
    ) -> tuple[Self, Float64[Array, "s q"]]:
        """With an overview of the scans, and its features after those of the basis."""
        blocks, width = BlockMeans(self.config.overview), self._principal
        means = [blocks(scan) for scan in scans]
        overview = Overview.of(blocks, means, features[:, :width])
        beside = np.stack([overview.standardised(each) for each in means])
        return replace(self, overview=overview), np.hstack([features[:, :width], beside, features[:, width:]])

    @one_thread()
    def _sampled(self, scan: CubeSource) -> tuple[EncodedVoxels, Fibres]:
        volume = EncodedVoxels(scan, self.encoder_of(scan), self.device)
        return volume, Fibres.choose(volume, self.config.fibres, self.seed)

    def _values(self, scan: CubeSource | Scan) -> int:
        """Values of an encoded scan."""
        return self.features * int(np.prod(scan.shape, dtype=np.int64))

    def _vector(
        self, train: TensorTrain, layout: Layout, beside: Float64[Array, " w"] | None = None
    ) -> Float64[Tensor, " p"]:
        blocks = [] if self.basis is None else [self.basis.features(stacked([train]))[0]]
        if beside is not None:
            blocks.append(torch.from_numpy(beside).to(self.device))
        for count in self.config.poolings:
            blocks.append(pooled_moments(train, layout, Pooling("hat", count)).flatten())
        return torch.cat(blocks)


@dataclass(frozen=True)
class VoxelReadoutConfig:
    """How scans are read by random voxels: `count` of them, stratified or, with `uniform` < 1, where scans
    are rough. Raises InvalidConfig, naming the setting.
    """

    count: int = 4000
    strata: int = 8
    uniform: float = 1.0
    poolings: tuple[int, ...] = (2, 3)

    def __post_init__(self) -> None:
        if not self.poolings:
            raise InvalidConfig("poolings", self.poolings, "one or more")
        refuse_outside(self, poolings=(1, 16), strata=(1, 100), count=(1, 10**7))
        if not 0 < self.uniform <= 1:
            raise InvalidConfig("uniform", self.uniform, "above 0, at most 1")
        if not 1 <= self.strata**3 <= self.count:
            raise InvalidConfig("count", self.count, f"at least strata^3, {self.strata**3}")


@dataclass(frozen=True, eq=False)
class VoxelReadout(Readout):
    """Moments from random voxels: the same voxels in every scan of a shape."""

    config: VoxelReadoutConfig
    encoder_of: EncoderOf
    features: int
    seed: int
    device: torch.device

    @property
    def blocks(self) -> dict[str, slice]:
        """Moments by pooling."""
        return _moments(self.config.poolings, self.features, 0)

    def see(self, scan: CubeSource) -> Seen:
        """See `Readout`."""
        drawn = [self._drawn(scan, Pooling("hat", count)) for count in self.config.poolings]
        volume = EncodedVoxels(scan, self.encoder_of(scan), self.device)
        return Seen(
            volume, drawn[0].voxels, lambda values: torch.cat([each.moments(values) for each in drawn])
        )

    def distance(self, seen: Seen) -> None:
        """Left to the head."""

    def certificate(self, seen: Seen) -> None:
        """Nothing is approximated but a mean."""

    def tensors(self) -> dict[str, Array]:
        """None."""
        return {}

    def manifest(self) -> dict[str, Any]:
        """See `Readout`."""
        return {"config": settings_of(self.config), "features": self.features, "seed": self.seed}

    @classmethod
    def from_saved(cls, manifest: Mapping[str, Any], encoder_of: EncoderOf, device: torch.device) -> Self:
        """What `manifest` gave."""
        config = recipe_of(VoxelReadoutConfig, manifest["config"])
        return cls(config, encoder_of, manifest["features"], manifest["seed"], device)

    def _drawn(self, scan: CubeSource, pooling: Pooling) -> RandomVoxels:
        config = self.config
        if config.uniform < 1:
            guide = guide_of(scan)
            return drawn_by(
                guide, config.count, self.seed, pooling, uniform=config.uniform, self_normalised=True
            )
        return RandomVoxels.drawn(
            scan.shape, config.count, self.seed, pooling, strata=config.strata, self_normalised=True
        )


def _moments(poolings: Sequence[int], features: int, start: int) -> dict[str, slice]:
    """Where the moments of each pooling stand, side by side from `start`."""
    widths = [Pooling("hat", count).moments * features for count in poolings]
    edges = accumulate(widths, initial=start)
    return {f"moments {count}": slice(*ends) for count, ends in zip(poolings, pairwise(edges), strict=True)}
