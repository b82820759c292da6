"""What is known of a scan's intensities as a whole."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from models.errors import InvalidConfig


@dataclass(frozen=True)
class IntensityStatistics:
    """Of all intensities of a scan, over all its channels. Raises InvalidConfig for what no scan can have."""

    minimum: float
    maximum: float
    mean: float
    std: float

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not math.isfinite(value):
                raise InvalidConfig(f"statistics.{name}", value, "finite")
        if self.minimum > self.maximum:
            raise InvalidConfig("statistics.minimum", self.minimum, f"at most the maximum, {self.maximum}")
        if self.std < 0:
            raise InvalidConfig("statistics.std", self.std, "at least 0")

    def standardised(self, values: Float64[Tensor, "..."]) -> Float64[Tensor, "..."]:
        """(value - mean) / std; zeros for a constant scan."""
        return torch.zeros_like(values) if self.std == 0 else (values - self.mean) / self.std
