"""Compression of trained regressors: a `NetworkModel` planned, compressed and descended further.

The functions of `models.compression` with scans for their inputs. Each gives a new model; the given one is
left as it was, and shares with it how scans are seen, and the scaling of covariates and answers. A `Watch`
hears of every layer and every batch, and what its report raises ends the work.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from models.compression.applying import compressed
from models.compression.curvature import Curvature
from models.compression.eligible import Filter
from models.compression.planning import Config, plan
from models.compression.plans import CompressionPlan, digest_of
from models.compression.recalibration import recalibrate_
from models.errors import InvalidConfig, InvalidShape
from models.learning.cohort import Cohort, Inputs
from models.regressors.network_model import NetworkModel, Sight
from models.regressors.neural import RowLearner, refuse_covariates
from models.rsdtr.layers import FactorisedLayer
from models.training import TrainingConfig, Watch, train
from models.types import CubeSource, Int64

KEEP_BYTES = 1 << 30
"""What is seen of scans is kept from epoch to epoch up to this; other scans are read again."""
RECALIBRATING = "recalibrating"
"""What a `Report` is told while averages of normalisations are taken anew."""

Sees = TypeVar("Sees", bound=Sight)
Batch = tuple[Tensor, Float[Tensor, "n t"], Tensor]
"""What `RowNetwork.forward` takes: what is seen of scans, covariates of rows, and which scan each is of."""


def example_of(model: NetworkModel[Sees], inputs: Inputs) -> Batch:
    """The first row, alone: what plans count for. Raises InvalidShape where there is none."""
    return _batch(model, inputs, _scans(model, inputs)[:1], rows=1)


def batches_of(model: NetworkModel[Sees], inputs: Inputs, size: int) -> Iterator[Batch]:
    """All scans that have rows, with them, `size` scans or more at once where there are as many.

    Scans are read as the batches are taken. Raises InvalidShape where there is none, and InvalidConfig for a
    size below 1.
    """
    for scans in _parts(model, inputs, size):
        yield _batch(model, inputs, scans)


def planned(
    model: NetworkModel[Sees],
    config: Config,
    inputs: Inputs,
    watch: Watch,
    *,
    filter_fn: Filter | None = None,
) -> CompressionPlan:
    """The plan for a model's network, for scans as the first of these. Raises as `plan`."""
    return plan(model.network, example_of(model, inputs), config, filter_fn, report=watch.report)


def compressed_model(
    model: NetworkModel[Sees],
    plan: CompressionPlan,
    inputs: Inputs,
    watch: Watch,
    *,
    batch: int,
    curvature: Curvature | None = None,
) -> NetworkModel[Sees]:
    """The model as its plan says, its normalisations recalibrated on `batch` of these scans at once.

    The same plan and scans give the same bits. `curvature` is the one that the plan was made with. Raises
    InvalidConfig for another model's plan.
    """
    network = compressed(model.network, plan, curvature)
    _lay_out_(network)
    return _recalibrated(replace(model, network=network), inputs, watch, batch)


def tuned(
    model: NetworkModel[Sees], cohort: Cohort, training: TrainingConfig, *, seed: int, watch: Watch
) -> NetworkModel[Sees]:
    """The model, descended further on a cohort, its normalisations then recalibrated there.

    A training that was broken off goes on from the watch's checkpoints to the same bits. Raises as `train`;
    InvalidShape too where batches leave nothing to normalise by.
    """
    network, inputs = deepcopy(model.network), cohort.inputs
    refuse_covariates(inputs, len(model.covariates.centre))
    covariates, device = model.covariates(inputs.covariates), model.sight.device
    how = f"{model.sight.manifest()} tuned from {digest_of(network)}"
    look = _Kept(model.sight, inputs.scans)
    learner = RowLearner(network, cohort, model.answers, covariates, look, device, how)
    try:
        train(learner, training, seed=seed, watch=watch)
    except ValueError as error:
        raise InvalidShape(f"the network does not train on these batches: {error}") from error
    return _recalibrated(replace(model, network=network), inputs, watch, training.batch)


def _recalibrated(model: NetworkModel[Sees], inputs: Inputs, watch: Watch, size: int) -> NetworkModel[Sees]:
    """The model itself, with averages of these scans, where it has any."""
    if any(isinstance(m, _BatchNorm) and m.running_mean is not None for m in model.network.modules()):
        recalibrate_(model.network, _reported(model, inputs, size, watch))
    return model


def _reported(model: NetworkModel[Sees], inputs: Inputs, size: int, watch: Watch) -> Iterator[Batch]:
    total = len(_parts(model, inputs, size))
    for number, batch in enumerate(batches_of(model, inputs, size)):
        watch.report(RECALIBRATING, number, total)
        yield batch


def _lay_out_(network: nn.Module) -> None:
    """Factors in memory as a loaded model has them: the order of sums depends on it."""
    for layer in network.modules():
        if isinstance(layer, FactorisedLayer):
            for factor in layer.parameters():
                factor.data = factor.data.contiguous()


def _scans(model: NetworkModel[Sees], inputs: Inputs) -> Int64:
    """The numbers of the scans that have rows."""
    refuse_covariates(inputs, len(model.covariates.centre))
    if not len(inputs):
        raise InvalidShape("there is no row to look at: give one scan or more")
    return np.unique(inputs.scan_of)


def _parts(model: NetworkModel[Sees], inputs: Inputs, size: int) -> list[Int64]:
    if size < 1:
        raise InvalidConfig("batch", size, "at least 1")
    scans = _scans(model, inputs)
    return np.array_split(scans, max(1, len(scans) // size))


def _batch(model: NetworkModel[Sees], inputs: Inputs, scans: Int64, rows: int | None = None) -> Batch:
    """These scans with all rows of them, or the first few."""
    own = np.flatnonzero(np.isin(inputs.scan_of, scans))[:rows]
    seen = torch.cat([model.sight.see(inputs.scans[scan]) for scan in scans.tolist()])
    covariates = torch.from_numpy(model.covariates(inputs.covariates[own])).float().to(model.sight.device)
    scan_of = torch.from_numpy(np.searchsorted(scans, inputs.scan_of[own]))
    return seen, covariates, scan_of.to(model.sight.device)


class _Kept:
    """What is seen of scans, kept while there is room."""

    def __init__(self, sight: Sight, scans: tuple[CubeSource, ...]) -> None:
        self._sight, self._scans, self._room = sight, scans, KEEP_BYTES
        self._seen: dict[int, Tensor] = {}

    def __call__(self, numbers: Int64) -> Tensor:
        """Some scans."""
        return torch.cat([self._of(number) for number in numbers.tolist()])

    def _of(self, number: int) -> Tensor:
        if number in self._seen:
            return self._seen[number]
        seen = self._sight.see(self._scans[number])
        if seen.nbytes <= self._room:
            self._room -= seen.nbytes
            self._seen[number] = seen
        return seen
