"""Memory of recipes with a trained encoder: upper limits, beside the process and the sources of scans."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import torch

from models.cpic.embed import RUNTIME_BYTES
from models.cpic.encoder import KERNEL, LearnedCpic
from models.cpic.encoding import ENCODE_BATCH, FETCH_BYTES
from models.regressors.base import Extent
from models.regressors.encoders import CHUNK, EncoderConfig, ProjectionConfig
from models.regressors.memory import FLOAT64, head_bytes, look_bytes, slab_bytes, train_bytes, trains_bytes
from models.regressors.readouts import FibreReadoutConfig, VoxelReadoutConfig

GRAPH_COPIES, SCRATCH_COPIES = 4, 2
"""Of what layers give: with activations, and the gradients of both; and where nothing descends."""
VOXEL_COPIES = 8
"""Of the features of a scan's voxels: as encoded, as they are kept, in moments, and their gradients."""
WEIGHT_COPIES = 2
"""Of the weights of a voxel in all moments."""


class EncoderMemory:
    """What `EncoderTraining` says of memory; its fields are those named here."""

    encoder: EncoderConfig
    batch: int
    voxels: int
    projected_steps: int
    projection: ProjectionConfig
    readout: FibreReadoutConfig | VoxelReadoutConfig

    def training_bytes(self, extent: Extent) -> int:
        """See `Regressor`: a step back through the encoder, a look at a scan, and the trains of all."""
        encoder = self._encoder(extent)
        points = CHUNK if self.projected_steps else min(CHUNK, 2 * self.batch * self.voxels)
        needed = RUNTIME_BYTES + GRAPH_COPIES * points * _cube_bytes(encoder)
        if self.projected_steps:
            own = self.projection
            needed += look_bytes(extent, encoder, own.fibres)
            needed += trains_bytes(extent, encoder.features, own.fibres, own.anchors)
        if isinstance(self.readout, FibreReadoutConfig):
            fibres, anchors = self.readout.fibres, self.readout.anchors
            needed += trains_bytes(extent, encoder.features, fibres, anchors)
        numbers = (max(self._counts, default=0), *(encoder.features * n**3 for n in self.readout.poolings))
        features = sum(numbers) + self._overview(extent)
        return needed + self.answering_bytes(extent) + head_bytes(extent.rows, features)

    def answering_bytes(self, extent: Extent) -> int:
        """See `Regressor`: a look at a scan."""
        encoder = self._encoder(extent)
        if isinstance(self.readout, FibreReadoutConfig):
            whole = slab_bytes(extent) if self.readout.overview else 0
            return look_bytes(extent, encoder, self.readout.fibres) + whole
        cubes = ENCODE_BATCH * (encoder.scratch_bytes + _cube_bytes(encoder))
        moments = max(self.readout.poolings) ** 3
        kept = FLOAT64 * self.readout.count * (VOXEL_COPIES * encoder.features + WEIGHT_COPIES * moments)
        return RUNTIME_BYTES + 2 * FETCH_BYTES + cubes + kept

    def kept_bytes(self, extent: Extent) -> int:
        """What a trained model is: its anchors, beside which all else is small."""
        if not isinstance(self.readout, FibreReadoutConfig):
            return 0
        one = train_bytes(extent, self._encoder(extent).features, self.readout.fibres)
        return min(self.readout.anchors, extent.scans) * one

    @property
    def _counts(self) -> tuple[int, ...]:
        """Of principal features that a head is offered; with a kernel nearly as many as anchors."""
        if not isinstance(self.readout, FibreReadoutConfig):
            return ()
        return (*self.readout.counts, self.readout.anchors) if self.readout.whole else self.readout.counts

    def _overview(self, extent: Extent) -> int:
        """Block means of a scan, where they are read."""
        grid = self.readout.overview if isinstance(self.readout, FibreReadoutConfig) else 0
        return extent.channels * prod(min(grid, size) for size in extent.shape)

    def _encoder(self, extent: Extent) -> LearnedCpic:
        """One of the kind that is trained, with what encoding a cube takes."""
        made = LearnedCpic(self.encoder.network(extent.channels, 0, torch.device("cpu")))
        return replace(made, scratch_bytes=max(made.scratch_bytes, SCRATCH_COPIES * _cube_bytes(made)))


def _cube_bytes(encoder: LearnedCpic) -> int:
    """What all layers give of one cube, the cube among it."""
    widths, sides = encoder.network.widths, range(encoder.cube_size, 0, 1 - KERNEL)
    return FLOAT64 * sum(width * side**3 for width, side in zip(widths, sides, strict=True))
