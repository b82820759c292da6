"""Training an encoder: which features the voxels of a scan should have, learned from a few of them.

What learns (docs/results.md has the figures) are the pooled moments of the encoded field, estimated without
bias from voxels that are drawn anew in every step, with a linear head on top. Untrained features are rough:
their cross-approximation errs by more than a constant would, and a loss behind it tells the encoder nothing.
Once the encoder is smooth, trains of it carry the same, and training may go on through them
(`ProjectedLearner`), as in the paper's Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from models.cpic.encoder import CpicEncoder, LearnedCpic
from models.cpic.fibres import FibreConfig, Fibres
from models.cpic.field import EncodedVoxels
from models.cpic.index_batching import index_batched
from models.cpic.projection import Basis
from models.cpic.random_voxels import draw
from models.cpic.strategies import Strategy
from models.errors import InvalidConfig
from models.learning.cohort import Cohort
from models.learning.saved import part, under
from models.limits import refuse_outside
from models.regressors.encoder_bound import bound_, bounds_of
from models.regressors.neural import Answers, RowLearner, RowNetwork, Scaling
from models.regressors.settings import settings_of
from models.training import Step
from models.tt.train import TensorTrain, stacked
from models.types import Array, CubeSource, Int64

FLOOR = 1e-6
"""Added to standard deviations of a batch."""
CALIBRATION_SCANS, CALIBRATION_VOXELS = 64, 256
CHUNK = 4096
"""Points whose graph is kept at once: about a hundred MiB."""
LIMIT = 4.0
"""Features are cut off at so many standard deviations."""
LARGEST_BOUND = 1e3
"""Of a layer's singular values."""


@dataclass(frozen=True)
class EncoderConfig:
    """The network that looks at cubes; see `CpicEncoder`. Raises InvalidConfig, naming the setting.

    The paper's is (5, 15, 25) with a sigmoid, without a slope and without the intensity. The smaller one here
    takes two fifths of its multiplications. With a `spectral_bound` the largest singular value of each
    layer's weight is that, in every step (`models.regressors.encoder_bound`).
    """

    hidden: tuple[int, ...] = (5, 8, 8)
    features: int = 8
    negative_slope: float = 0.1
    sigmoid: bool = False
    intensity: bool = True
    spectral_bound: float | None = None

    def __post_init__(self) -> None:
        if not self.hidden:
            raise InvalidConfig("hidden", self.hidden, "one width or more")
        refuse_outside(self, hidden=(1, 256), features=(1, 256))
        if not 0 <= self.negative_slope < 1:
            raise InvalidConfig("negative_slope", self.negative_slope, "from 0 to below 1")
        if self.spectral_bound is not None and not 0 < self.spectral_bound <= LARGEST_BOUND:
            raise InvalidConfig(
                "spectral_bound", self.spectral_bound, f"above 0, at most {LARGEST_BOUND:g}, or none"
            )

    def to_json(self) -> dict[str, Any]:
        """The settings, without a bound that there is not."""
        told = settings_of(self)
        return {name: value for name, value in told.items() if name != "spectral_bound" or value is not None}

    def network(self, channels: int, seed: int, device: torch.device) -> CpicEncoder:
        """With weights from the seed."""
        network = CpicEncoder(
            channels,
            self.features,
            seed,
            hidden=self.hidden,
            negative_slope=self.negative_slope,
            sigmoid=self.sigmoid,
            intensity=self.intensity,
        )
        if self.spectral_bound is not None:
            bound_(network, self.spectral_bound)
        return network.to(device)


class EncoderWithHead(RowNetwork):
    """An encoder, and a head on what was made of a scan's features: what descends.

    The head standardises by the batch's own mean and deviation: nothing lags behind an encoder that moves.
    """

    def __init__(self, encoder: CpicEncoder, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head
        self.seed = 0

    def forward(
        self, seen: Float64[Tensor, "b p"], covariates: Float[Tensor, "n t"], scan_of: Tensor
    ) -> Float[Tensor, "n o"]:
        """Outputs of rows."""
        features = torch.cat([seen[scan_of], covariates.double()], dim=1)
        return self.head(standardised(features))  # type: ignore[no-any-return]

    def seeded(self, seed: int) -> None:
        """What is drawn next is drawn from this."""
        self.seed = seed


def recalibrated(
    head: nn.Module,
    features: Float64[Array, "n p"],
    asked: Float64[Array, "m p"],
    answers: Answers,
    device: torch.device,
) -> Float64[Array, "m o"]:
    """The answers of a head that descended with its encoder, to features `asked`.

    The statistics by which it standardises are made anew, of the training's `features` (n, p): those of small
    batches lag behind, or are noise.
    """
    scaling = Scaling.of(features)
    head.eval()
    with torch.no_grad():
        return answers.from_outputs(head(torch.from_numpy(scaling(asked)).to(device)))


def standardised(features: Float64[Tensor, "n p"]) -> Float64[Tensor, "n p"]:
    """By the batch's own mean and standard deviation; what does not vary is 0, and its slope finite."""
    centred = features - features.mean(dim=0)
    return centred / (centred.square().mean(dim=0) + FLOOR**2).sqrt()


def linear_outputs(features: int, outputs: int, device: torch.device) -> nn.Linear:
    """A linear head in float64, zero at first."""
    head: nn.Linear = nn.utils.skip_init(nn.Linear, features, outputs, dtype=torch.float64)  # type: ignore[no-untyped-call]
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head.to(device)


class PooledLearner(RowLearner):
    """Encoder and head, by the moments of voxels that `strategy` chooses anew in each step.

    An item is a scan; it is encoded once per step, however many rows it has.
    """

    def __init__(
        self,
        network: EncoderWithHead,
        cohort: Cohort,
        answers: Answers,
        covariates: Float64[Array, "n t"],
        strategy: Strategy,
        device: torch.device,
    ) -> None:
        super().__init__(
            network, cohort, answers, covariates, self._moments, device, how=_how(strategy, network)
        )
        self._own, self._strategy = network, strategy
        self._volumes = volumes_of(cohort.inputs.scans, LearnedCpic(network.encoder), device)

    def _moments(self, scans: Int64) -> Float64[Tensor, "b p"]:
        """The moments of some scans, differentiable."""
        volumes = [self._volumes[scan] for scan in scans.tolist()]
        chosen = [
            self._strategy.choose(volume, seed)
            for volume, seed in zip(volumes, seeds_of(self._own.seed, len(volumes)), strict=True)
        ]
        features = index_batched(volumes, [each.voxels for each in chosen], chunk=CHUNK)
        return torch.stack([each.moments(values) for each, values in zip(chosen, features, strict=True)])


@dataclass(frozen=True)
class ProjectionConfig:
    """Features of trains while training: `count` principal directions of at most `anchors` scans' trains.

    Raises InvalidConfig, naming the setting.
    """

    count: int = 10
    anchors: int = 48
    low_rank: float = 0.0
    probes: int = 64
    fibres: FibreConfig = field(default_factory=FibreConfig)

    def __post_init__(self) -> None:
        refuse_outside(self, count=(1, 4096), anchors=(1, 4096), low_rank=(0, 1e6), probes=(2, 10**6))


class ProjectedLearner(RowLearner):
    """Encoder and head, by the principal features of trains: Algorithm 1 of the paper, with anchors.

    At the start of each epoch the anchors' trains are made anew and their basis is rotated onto the last one;
    within an epoch it stands still. With `low_rank` > 0 the loss has a further term, that much times the mean
    squared residual of the trains at `probes` random voxels over the features' variance there (ours): nothing
    else asks of an encoder that its field be of low rank.
    """

    def __init__(
        self,
        network: EncoderWithHead,
        cohort: Cohort,
        answers: Answers,
        covariates: Float64[Array, "n t"],
        encoder: LearnedCpic,
        config: ProjectionConfig,
        device: torch.device,
    ) -> None:
        super().__init__(
            network, cohort, answers, covariates, self._features, device, how=_how(config, network)
        )
        self._own, self._config, self._encoder = network, config, encoder
        self._volumes = volumes_of(cohort.inputs.scans, encoder, device)
        self._basis: Basis | None = None
        self._basis_epoch = -1
        self._residual: Tensor | None = None
        self._at = device

    def loss(self, items: Int64, step: Step) -> Tensor:
        """Of all rows of some scans, and of their trains."""
        if step.epoch != self._basis_epoch:
            self._refresh(step)
        loss = super().loss(items, step)
        return loss if self._residual is None else loss + self._config.low_rank * self._residual

    def state(self) -> dict[str, Array]:
        """The basis, and the epoch that it was made for."""
        if self._basis is None:
            return {}
        numbers = {
            "total_energy": np.array(self._basis.total_energy),
            "epoch": np.array(self._basis_epoch),
        }
        return {**under("basis", self._basis.tensors()), **numbers}

    def restore(self, state: Mapping[str, Array]) -> None:
        """Go on with the basis."""
        if state:
            arrays = {name: torch.from_numpy(a).to(self._at) for name, a in part("basis", state).items()}
            modes = [name for name in arrays if name.startswith("anchor.")]
            anchors = TensorTrain(tuple(arrays[f"anchor.{k}"] for k in range(len(modes))))
            rest = {name: tensor for name, tensor in arrays.items() if not name.startswith("anchor.")}
            self._basis = Basis(anchors=anchors, total_energy=float(state["total_energy"]), **rest)
            self._basis_epoch = int(state["epoch"])

    def _refresh(self, step: Step) -> None:
        """Anchors of the weights as they are now."""
        drawn = np.random.default_rng([step.seed, 0]).permutation(len(self._volumes))[: self._config.anchors]
        with torch.no_grad():
            trains = [self._train(self._volumes[scan], step.seed)[0] for scan in np.sort(drawn).tolist()]
        self._basis_epoch = step.epoch
        basis = Basis.of(stacked(trains), self._config.count)
        self._basis = basis if self._basis is None else basis.aligned_to(self._basis)

    def _train(self, volume: EncodedVoxels, seed: int) -> tuple[TensorTrain, Fibres]:
        fibres = Fibres.choose(volume, self._config.fibres, seed >> 1)
        return fibres.train(volume.features(fibres.voxels)), fibres

    def _features(self, scans: Int64) -> Float64[Tensor, "b q"]:
        """The features of some scans, differentiable."""
        assert self._basis is not None
        volumes = [self._volumes[scan] for scan in scans.tolist()]
        seeds = seeds_of(self._own.seed, len(volumes))
        fibres = [
            Fibres.choose(volume, self._config.fibres, seed)
            for volume, seed in zip(volumes, seeds, strict=True)
        ]
        values = index_batched(volumes, [each.voxels for each in fibres], chunk=CHUNK)
        trains = [each.train(of) for each, of in zip(fibres, values, strict=True)]
        if self._config.low_rank > 0:
            self._residual = self._residuals(volumes, fibres, trains, seeds)
        return torch.cat([self._basis.features(stacked([train]), standardised=True) for train in trains])

    def _residuals(
        self,
        volumes: Sequence[EncodedVoxels],
        fibres: Sequence[Fibres],
        trains: Sequence[TensorTrain],
        seeds: Sequence[int],
    ) -> Float64[Tensor, ""]:
        """Mean squared residual at random voxels over the variance there, averaged over scans."""
        probes = [
            draw(volume.scan.shape, self._config.probes, seed ^ 1)[0]
            for volume, seed in zip(volumes, seeds, strict=True)
        ]
        truth = index_batched(volumes, probes, chunk=CHUNK)
        shares = []
        for layout, train, at, E in zip((f.layout for f in fibres), trains, probes, truth, strict=True):
            zyx = np.stack(np.unravel_index(at, layout.shape[:3]), axis=-1)
            keys = layout.keys_of(np.column_stack([zyx, np.zeros(len(zyx), np.int64)]))
            indices = torch.from_numpy(layout.indices(keys)[:, : layout.spatial_modes]).to(self._at)
            T = train.fibres_at(indices).reshape(len(zyx), -1)[:, : layout.features]
            shares.append((T - E).square().sum() / ((E - E.mean(dim=0)).square().sum() + FLOOR))
        return torch.stack(shares).mean()


def calibrated(
    network: CpicEncoder, scans: Sequence[CubeSource], seed: int, device: torch.device
) -> LearnedCpic:
    """The encoder with features of mean 0 and variance 1 over random voxels of drawn scans: frozen
    weights.
    """
    drawn = np.random.default_rng([seed, len(scans)]).permutation(len(scans))[:CALIBRATION_SCANS]
    chosen = [scans[number] for number in np.sort(drawn).tolist()]
    raw = volumes_of(chosen, LearnedCpic(network), device)
    seen = torch.cat(
        [
            volume.features(draw(volume.scan.shape, CALIBRATION_VOXELS, own)[0])
            for volume, own in zip(raw, seeds_of(seed, len(raw)), strict=True)
        ]
    )
    shift, scale = seen.mean(dim=0), seen.std(dim=0, correction=0)
    scale = torch.where(scale > FLOOR * (1 + shift.abs()), scale, 1.0)
    return LearnedCpic(network, shift.float(), scale.float(), LIMIT)


def _how(what: object, network: nn.Module) -> str:
    """What a checkpoint must agree in, beside the network's layers."""
    return f"{what!r}{bounds_of(network) or ''}"


def volumes_of(
    scans: Sequence[CubeSource], encoder: LearnedCpic, device: torch.device
) -> list[EncodedVoxels]:
    """The scans, as one encoder sees them."""
    return [EncodedVoxels(scan, encoder, device) for scan in scans]


def seeds_of(seed: int, count: int) -> list[int]:
    """Streams of their own, for each of several."""
    return [int(each >> 1) for each in np.random.SeedSequence(seed).generate_state(count, np.uint64).tolist()]
