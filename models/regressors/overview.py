"""A scan as a whole, coarsely, beside what is sampled of it: means of a grid of blocks.

Inner products of trains say where features lie, to the resolution of the train; an overview adds where the
intensities of the whole scan lie. Two kernels of one scale are added, K = K_train + K_overview: block means,
each of the same variance, are brought to the mean square norm of the train's features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from jaxtyping import Float64

from models.errors import InvalidShape
from models.learning.principal import Standard
from models.regressors.blocks import BlockMeans
from models.types import Array, CubeSource


@dataclass(frozen=True, eq=False)
class Overview:
    """Means over `blocks`, standardised by the training's: (p,). Reads the whole scan, slab by slab."""

    blocks: BlockMeans
    centre: Float64[Array, " p"]
    weight: Float64[Array, " p"]

    @classmethod
    def of(
        cls, blocks: BlockMeans, rows: Sequence[Float64[Array, " p"]], features: Float64[Array, "s q"]
    ) -> Self:
        """The overview whose features of the training's scans weigh as much as `features` of the same scans.

        `rows` are the scans' block means.
        """
        standard = Standard.of(np.stack(rows))
        energy = float(np.square(features - features.mean(axis=0)).sum(axis=1).mean())
        return cls(blocks, standard.centre, standard.inverse_scale * np.sqrt(energy))

    @property
    def width(self) -> int:
        """p."""
        return len(self.centre)

    def __call__(self, scan: CubeSource) -> Float64[Array, " p"]:
        """The features of a scan. Raises InvalidShape for one with other blocks than the training's."""
        return self.standardised(self.blocks(scan))

    def standardised(self, means: Float64[Array, " q"]) -> Float64[Array, " p"]:
        """Of block means. Raises InvalidShape."""
        if len(means) != self.width:
            raise InvalidShape(f"the scan has {len(means)} block means, the training's had {self.width}")
        return (means - self.centre) * self.weight

    def tensors(self) -> dict[str, Array]:
        """Everything that is an array, by name."""
        return {"centre": self.centre, "weight": self.weight}

    @classmethod
    def from_tensors(cls, blocks: BlockMeans, tensors: Mapping[str, Array]) -> Self:
        """What `tensors` gave."""
        return cls(blocks, np.array(tensors["centre"]), np.array(tensors["weight"]))
