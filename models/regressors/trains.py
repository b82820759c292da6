"""Scans without an encoder: trains of prepared intensities, and their principal features (`FibreReadout`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float64

from models.cpic.embed import UNKNOWN_SCAN
from models.cpic.encoder import LARGEST, Identity
from models.cpic.fibres import FibreConfig
from models.intensities import IntensityStatistics
from models.learning.cohort import Cohort
from models.limits import refuse_outside
from models.regressors.base import Extent
from models.regressors.memory import look_bytes, trains_bytes
from models.regressors.readouts import PRINCIPAL, FibreReadout, FibreReadoutConfig
from models.types import Array, CubeSource, Ranged, Report

ANY = -LARGEST, LARGEST
"""The range of values of a scan that states none."""
CPU = torch.device("cpu")
"""Trains of intensities are made there: there is no network."""


@dataclass(frozen=True)
class TrainFeaturesConfig:
    """How scans become features: `count` principal axes of at most `anchors` trains of the training's.

    Where there are more scans, anchors are drawn. Raises InvalidConfig, naming the setting.
    """

    count: int = 30
    anchors: int = 256
    fibres: FibreConfig = field(default_factory=lambda: FibreConfig(layout="tt", rank=10))

    def __post_init__(self) -> None:
        refuse_outside(self, count=(1, 4096))
        self._readout()

    def read(
        self, cohort: Cohort, *, seed: int, report: Report
    ) -> tuple[FibreReadout, Float64[Array, "s q"]]:
        """The readout that the cohort's scans span, and their features. See `FibreReadout.of`."""
        return FibreReadout.of(
            cohort.inputs.scans,
            cohort.patients,
            intensities,
            self._readout(),
            seed=seed,
            device=CPU,
            report=report,
        )

    def training_bytes(self, extent: Extent) -> int:
        """What `read` takes at most."""
        kept = trains_bytes(extent, extent.channels, self.fibres, self.anchors)
        return self.answering_bytes(extent) + kept

    def answering_bytes(self, extent: Extent) -> int:
        """What a look at one scan takes at most."""
        return look_bytes(extent, Identity(extent.channels, UNKNOWN_SCAN), self.fibres)

    def _readout(self) -> FibreReadoutConfig:
        return FibreReadoutConfig(
            self.fibres,
            counts=(self.count,),
            block=PRINCIPAL,
            poolings=(),
            anchors=self.anchors,
        )


def saved_trains(tensors: Mapping[str, Array], manifest: Mapping[str, Any]) -> FibreReadout:
    """The readout that `tensors` and `manifest` are of. Raises InvalidShape where they are of two."""
    return FibreReadout.from_saved(tensors, manifest, intensities, CPU)


def intensities(scan: CubeSource) -> Identity:
    """What is seen of a prepared scan: its values as they are, within their range where it is stated."""
    low, high = scan.value_range if isinstance(scan, Ranged) else ANY
    return Identity(scan.channels, IntensityStatistics(low, high, mean=0.0, std=1.0))
