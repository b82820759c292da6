"""Features of scans without an encoder: trains of prepared intensities, along the principal axes of those of
the training (`models.cpic.fibres`, `models.cpic.projection`).

How far a scan is from the training's is told by what of its train the axes do not span,

    d(x) = sqrt(outside(x) / N),

the root mean square over the N values of a scan. For scans that the axes were made from, all scans of their
patient are left out, of the Gram matrix alone: with G of the others, M their mean and (L, U) the leading
eigenpairs of H G H,

    outside(x) = ||T_x - M||^2 - ||L^{-1/2} U^T H (g(x) - mean g)||^2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float64

from models.cpic.certificate import certify
from models.cpic.embed import features_at
from models.cpic.encoder import LARGEST, Identity
from models.cpic.fibres import FibreConfig, Fibres
from models.cpic.field import EncodedVoxels
from models.cpic.projection import ENERGY_TOLERANCE, Basis
from models.errors import InvalidConfig, InvalidShape
from models.intensities import IntensityStatistics
from models.learning.saved import part, under
from models.regressors.base import Look, Saliency
from models.regressors.settings import recipe_of, settings_of
from models.tt.gram import gram
from models.tt.train import TensorTrain, stacked
from models.types import Array, CubeSource, Report

AS_PREPARED = IntensityStatistics(-LARGEST, LARGEST, 0.0, 1.0)
"""By which prepared intensities stay as they are."""
HELD_OUT, CONFIDENCE = 1000, 0.95
"""Voxels that a look tests a train at, and the confidence of its certificate."""


@dataclass(frozen=True)
class TrainConfig:
    """How scans become features: `count` principal axes of at most `anchors` trains of the training's.

    Where there are more scans, anchors are drawn. Raises InvalidConfig, naming the setting.
    """

    count: int = 30
    anchors: int = 256
    fibres: FibreConfig = field(default_factory=lambda: FibreConfig(layout="tt", rank=10))

    def __post_init__(self) -> None:
        for setting, least in (("count", 1), ("anchors", 2)):
            if getattr(self, setting) < least:
                raise InvalidConfig(setting, getattr(self, setting), f"at least {least}")


@dataclass(frozen=True, eq=False)
class Sampled:
    """A scan's train, and the fibres that it was made from."""

    volume: EncodedVoxels
    fibres: Fibres
    train: TensorTrain


@dataclass(frozen=True, eq=False)
class TrainFeatures:
    """The features of any scan, by principal axes that were learnt. Make one with `TrainFeatures.of`.

    `distances` are those of the anchors, ascending, each without its patient.
    """

    config: TrainConfig
    seed: int
    basis: Basis
    distances: Float64[Array, " k"]

    @classmethod
    def of(
        cls,
        scans: Sequence[CubeSource],
        patients: Sequence[str],
        config: TrainConfig,
        *,
        seed: int,
        report: Report,
    ) -> tuple[Self, Float64[Array, "s q"]]:
        """The features that these scans span, and theirs. Each scan is looked at once.

        `report` is called with the phase "trains". Raises InvalidShape for fewer than two scans.
        """
        if len(scans) < 2:
            raise InvalidShape(f"{len(scans)} scan has no principal axes: train on two or more")
        trains = []
        for done, scan in enumerate(scans):
            report("trains", done, len(scans))
            trains.append(sampled(scan, config, seed).train)
        drawn = np.random.default_rng([seed, len(scans)]).permutation(len(scans))[: config.anchors]
        chosen = np.sort(drawn).tolist()
        basis = Basis.of(stacked([trains[number] for number in chosen]), config.count)
        G = gram(basis.anchors, basis.anchors).numpy()
        outside = left_out(G, [patients[number] for number in chosen], config.count)
        distances = np.sort(np.sqrt(outside / _values(scans[0])))
        features = torch.cat([basis.features(stacked([train])) for train in trains])
        return cls(config, seed, basis, distances), features.numpy()

    def __call__(self, scan: CubeSource) -> Float64[Array, " q"]:
        """The features of a scan."""
        train = self.sampled(scan).train
        return np.asarray(self.basis.features(stacked([train]))[0].numpy())

    def sampled(self, scan: CubeSource) -> Sampled:
        """A look at a scan; the same for the same scan, whatever is looked at beside it."""
        return sampled(scan, self.config, self.seed)

    def look(
        self, scan: CubeSource, gradient: Callable[[Float64[Array, " q"]], Float64[Array, " q"]]
    ) -> Look:
        """What stands behind an answer that changes with the features as `gradient` says."""
        seen = self.sampled(scan)
        one = stacked([seen.train])
        distance = float((self.basis.outside(one)[0] / _values(scan)).sqrt())
        sides = [np.searchsorted(self.distances, distance, side=side) for side in ("left", "right")]
        features = self.basis.features(one)[0].numpy()
        return Look(
            distance=distance,
            distance_percentile=float(50 * sum(sides) / len(self.distances)),
            certificate=self._certificate(seen, scan),
            voxels=len(seen.fibres.voxels),
            saliency=self._saliency(seen, gradient(features)),
        )

    def tensors(self) -> dict[str, Array]:
        """Everything that is an array, by name."""
        return {**under("basis", self.basis.tensors()), "distances": self.distances}

    def manifest(self) -> dict[str, Any]:
        """Everything else, as JSON."""
        return {"config": settings_of(self.config), "seed": self.seed, "basis": self.basis.manifest()}

    @classmethod
    def from_saved(cls, tensors: Mapping[str, Array], manifest: Mapping[str, Any]) -> Self:
        """What `tensors` and `manifest` gave. Raises InvalidShape where they do not belong together."""
        basis = Basis.from_tensors(part("basis", tensors), manifest["basis"])
        return cls(
            recipe_of(TrainConfig, manifest["config"]),
            manifest["seed"],
            basis,
            np.array(tensors["distances"]),
        )

    def _saliency(self, seen: Sampled, gradient: Float64[Array, " q"]) -> Saliency:
        """Gradient times value, voxel by voxel."""
        values = seen.volume.features(seen.fibres.voxels).requires_grad_()
        features = self.basis.features(stacked([seen.fibres.train(values)]))[0]
        (slopes,) = torch.autograd.grad(features @ torch.from_numpy(gradient), values)
        moved = (slopes * values.detach()).sum(dim=1).numpy()
        shape = seen.volume.scan.shape
        return Saliency(np.stack(np.unravel_index(seen.fibres.voxels, shape), axis=1), moved)

    def _certificate(self, seen: Sampled, scan: CubeSource) -> dict[str, Any] | None:
        """At voxels drawn for it alone; None for a scan whose values have no known range."""
        value_range: tuple[float, float] | None = getattr(scan, "value_range", None)
        if value_range is None:
            return None
        held_seed = int(np.random.SeedSequence(self.seed).generate_state(3)[2])
        layout = seen.fibres.layout
        drawn = np.random.default_rng(held_seed).integers(layout.voxels, size=HELD_OUT)
        zyx = np.stack(np.unravel_index(drawn, layout.shape[:3]), axis=-1)
        truth = seen.volume.features(drawn).numpy()
        approximation = features_at(seen.train, layout, zyx)
        return certify(approximation, truth, zyx, value_range, CONFIDENCE).to_json()


def sampled(scan: CubeSource, config: TrainConfig, seed: int) -> Sampled:
    """A scan's train of prepared intensities; in float64 on a CPU, there being no network."""
    volume = EncodedVoxels(scan, Identity(scan.channels, AS_PREPARED), torch.device("cpu"))
    fibres = Fibres.choose(volume, config.fibres, seed)
    return Sampled(volume, fibres, fibres.train(volume.features(fibres.voxels)))


def left_out(G: Float64[Array, "k k"], patients: Sequence[str], count: int) -> Float64[Array, " k"]:
    """The energy of each of K > 1 trains outside of the basis of all other patients' trains, from <T_k, T_l>.

    Of a single patient, outside of that of all other trains.
    """
    names = np.asarray(patients)
    if len(set(patients)) == 1:
        names = np.arange(len(G))
    outside = np.empty(len(G))
    for name in np.unique(names):
        own, others = np.flatnonzero(names == name), np.flatnonzero(names != name)
        g = G[np.ix_(own, others)]
        outside[own] = _outside(G[np.ix_(others, others)], g, np.diag(G)[own], count)
    return outside


def _outside(
    G: Float64[Array, "k k"], g: Float64[Array, "m k"], energy: Float64[Array, " m"], count: int
) -> Float64[Array, " m"]:
    """||T_x - M||^2 - ||f(x)||^2 of trains x with inner products `g` with those of the Gram matrix G."""
    means = G.mean(axis=1)
    centred = G - means - means[:, None] + means.mean()
    eigenvalues, U = np.linalg.eigh((centred + centred.T) / 2)
    kept = max(0, len(G) - count) + np.flatnonzero(eigenvalues[-count:] > ENERGY_TOLERANCE * np.trace(G))
    A = U[:, kept] / np.sqrt(eigenvalues[kept])
    f = (g - means) @ (A - A.mean(axis=0))
    distance = energy - 2 * g.mean(axis=1) + means.mean()
    return np.asarray(np.maximum(distance - np.square(f).sum(axis=1), 0))


def _values(scan: CubeSource) -> int:
    return scan.channels * int(np.prod(scan.shape, dtype=np.int64))
