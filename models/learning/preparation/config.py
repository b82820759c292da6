"""How scans are to be brought to one grid and one scale of intensities."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from math import prod
from typing import Any

from models.errors import InvalidConfig
from models.learning.preparation.scans import Spacing
from models.learning.preparation.views import Sides

GRIDS = ("as_is", "pad", "resample")
ORIENTATIONS = ("canonical", "as_stored")
INTENSITIES = ("standard", "robust", "fixed")
MOST_VOXELS, MOST_SIDE = 1 << 33, 1 << 16
"""Of a grid: as many as 2,048^3. What lies on it is read in parts, but some are as wide and long as it is."""
FEASIBLE = f"at most {MOST_SIDE:,} each and {MOST_VOXELS:,} voxels together"
LEAST_SPACING, MOST_SPACING = 1e-6, 1e6
"""mm: a nanometre, a kilometre."""
LEAST_CLIP, MOST_CLIP = 1e-6, 1e6
LEAST_SCALE, LARGEST = 1e-30, 1e30
"""Of intensities: they, and what they become, are kept in 32 bits."""


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
        if self.shape is not None and not (_are(self.shape, _is_count) and is_feasible(self.shape)):
            allowed = f"three whole numbers (z, y, x), at least 1, {FEASIBLE}"
            raise InvalidConfig("shape", self.shape, allowed)
        if self.spacing is not None and not _are(self.spacing, _is_spacing):
            allowed = f"three sizes (z, y, x) in mm, from {LEAST_SPACING:g} to {MOST_SPACING:g}"
            raise InvalidConfig("spacing", self.spacing, allowed)

    def _refuse_numbers(self) -> None:
        if not isinstance(self.average, bool):
            raise InvalidConfig("average", self.average, "true or false")
        if not _is_within(self.clip, LEAST_CLIP, MOST_CLIP):
            raise InvalidConfig("clip", self.clip, f"a number from {LEAST_CLIP:g} to {MOST_CLIP:g}")
        if (self.centre is None) != (self.scale is None):
            raise InvalidConfig("scale", self.scale, "given together with centre, or neither")
        if self.centre is None:
            return
        if self.intensity != "fixed" or not _is_within(self.centre, -LARGEST, LARGEST):
            allowed = f"from {-LARGEST:g} to {LARGEST:g}, and given for the intensity fixed alone"
            raise InvalidConfig("centre", self.centre, allowed)
        if not _is_within(self.scale, LEAST_SCALE, LARGEST):
            raise InvalidConfig("scale", self.scale, f"from {LEAST_SCALE:g} to {LARGEST:g}")


def is_feasible(shape: Sides) -> bool:
    """Whether a grid of these sides is `FEASIBLE`."""
    return max(shape) <= MOST_SIDE and prod(shape) <= MOST_VOXELS


def _are(values: object, sound: Callable[[Any], bool]) -> bool:
    """Whether there are three of them, and all are sound."""
    return isinstance(values, tuple) and len(values) == 3 and all(map(sound, values))


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_spacing(value: object) -> bool:
    return _is_within(value, LEAST_SPACING, MOST_SPACING)


def _is_within(value: object, least: float, most: float) -> bool:
    """Whether it is a number, of any size, from one to the other."""
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most
