"""How scans are to be brought to one grid and one scale of intensities."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from models.errors import InvalidConfig
from models.learning.preparation.scans import Spacing
from models.learning.preparation.views import Sides

GRIDS = ("as_is", "pad", "resample")
ORIENTATIONS = ("canonical", "as_stored")
INTENSITIES = ("standard", "robust", "fixed")


@dataclass(frozen=True)
class PreparationConfig:
    """How scans are brought to one grid and one scale. Raises InvalidConfig, naming the setting.

    - `orientation`: `canonical` (axes permuted and flipped to grow towards (S, A, R)) or `as_stored`.
    - `grid`: `as_is` (all scans must have one shape), `pad` (cropped and padded about the centre; voxels are
      not touched) or `resample` (linearly, to `spacing` in mm, then cropped and padded; with a `shape` and no
      spacing every scan is stretched to the shape: sizes in mm are lost). All (z, y, x), after orientation.
      A shape that is not given is that of the largest training scan on each axis, up to a multiple of 8; a
      spacing that is not given either is the median of the training scans'.
    - `average`: where voxels grow by more than 1.5, the mean over each new voxel's extent. Off: fine texture
      is aliased, but not wiped out.
    - `intensity`: `standard` (mean and standard deviation of each scan), `robust` (median and percentiles of
      its foreground) or `fixed` (`centre` and `scale`, or mean and standard deviation of the whole training
      cohort: for CT and for masks). Values are clipped to [-clip, clip].
    """

    orientation: str = "canonical"
    grid: str = "pad"
    shape: Sides | None = None
    spacing: Spacing | None = None
    average: bool = False
    intensity: str = "robust"
    centre: float | None = None
    scale: float | None = None
    clip: float = 5.0

    def __post_init__(self) -> None:
        for setting, table in (
            ("orientation", ORIENTATIONS),
            ("grid", GRIDS),
            ("intensity", INTENSITIES),
        ):
            if getattr(self, setting) not in table:
                raise InvalidConfig(setting, getattr(self, setting), f"one of {', '.join(table)}")
        self._refuse_sizes()
        self._refuse_numbers()

    def to_json(self) -> dict[str, Any]:
        """As plain JSON."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> PreparationConfig:
        """What `to_json` gave, or part of it. Raises InvalidConfig, naming a setting that there is not."""
        known = [field.name for field in fields(cls)]
        if unknown := sorted(set(record) - set(known)):
            raise InvalidConfig(unknown[0], record[unknown[0]], f"one of the settings {', '.join(known)}")
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in record.items()}
        return cls(**values)

    def _refuse_sizes(self) -> None:
        for setting, grids in (("spacing", ("resample",)), ("shape", ("pad", "resample"))):
            if getattr(self, setting) is not None and self.grid not in grids:
                raise InvalidConfig(setting, getattr(self, setting), f"left out: the grid is {self.grid}")
        if self.shape is not None and not _are(self.shape, lambda n: isinstance(n, int) and n >= 1):
            raise InvalidConfig("shape", self.shape, "three whole numbers (z, y, x), at least 1")
        if self.spacing is not None and not _are(self.spacing, _is_positive):
            raise InvalidConfig("spacing", self.spacing, "three sizes (z, y, x) in mm, finite and above 0")

    def _refuse_numbers(self) -> None:
        if not isinstance(self.average, bool):
            raise InvalidConfig("average", self.average, "true or false")
        if not _is_positive(self.clip):
            raise InvalidConfig("clip", self.clip, "finite and above 0")
        if (self.centre is None) != (self.scale is None):
            raise InvalidConfig("scale", self.scale, "given together with centre, or neither")
        if self.centre is None:
            return
        if self.intensity != "fixed" or not _is_finite(self.centre):
            raise InvalidConfig("centre", self.centre, "finite, and given for the intensity fixed alone")
        if not _is_positive(self.scale):
            raise InvalidConfig("scale", self.scale, "finite and above 0")


def _are(values: object, sound: Callable[[Any], bool]) -> bool:
    """Whether there are three of them, and all are sound."""
    return isinstance(values, tuple) and len(values) == 3 and all(map(sound, values))


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and _is_finite(value) and value > 0
