"""What can go wrong in the mathematics. Errors name the bond, the voxel or the limit, with a stable `code`.

ModelError
├── InvalidShape        a mode, rank or array that the method cannot take
├── InvalidConfig       a setting outside of what the method takes
├── NonFinite           an array that must be finite is not
├── NonFiniteSample     a sampled value is NaN or infinite
├── SampleOutOfRange    a sampled value lies outside of the range that was stated for it
└── SourceFailed        a source of cubes broke off or returned the wrong shape
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, isfinite


class ModelError(Exception):
    """Base class. `str(error)` names the cause and, where there is one, the cure."""

    code: ClassVar[str] = "model-error"
    retryable: ClassVar[bool] = False

    def facts(self) -> dict[str, Any]:
        """The error's numbers and names, for a machine: its public attributes."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}


class InvalidShape(ModelError):
    """A mode, rank or array that the method cannot take."""

    code = "invalid-shape"


class InvalidConfig(ModelError):
    """A setting outside of what the method takes. `setting` is its name, with dots in nested tables."""

    code = "invalid-config"

    def __init__(self, setting: str, value: object, allowed: str) -> None:
        super().__init__(f"{setting} = {value!r}: must be {allowed}")
        self.setting, self.value, self.allowed = setting, value, allowed


class NonFinite(ModelError):
    """An array that must be finite is not. `what` is its name, `at` the first place that is not."""

    code = "non-finite"

    def __init__(self, what: str, at: tuple[int, ...], value: float) -> None:
        super().__init__(f"{what} must be finite, but the one at {at} is {value}")
        self.what, self.at, self.value = what, at, value


def refuse_non_finite(values: Tensor, what: str) -> None:
    """Raise NonFinite for an array that holds NaN or infinity."""
    if not bool((finite := isfinite(values)).all()):
        at = tuple(int(i) for i in (~finite).nonzero()[0])
        raise NonFinite(what, at, float(values[at]))


class NonFiniteSample(ModelError):
    """A sampled value is NaN or infinite. `voxel` is `(z, y, x)`."""

    code = "non-finite-sample"

    def __init__(self, voxel: tuple[int, ...], value: float) -> None:
        super().__init__(
            f"the value sampled at voxel {voxel} is {value}; the source must be finite everywhere"
        )
        self.voxel, self.value = voxel, value


class SampleOutOfRange(ModelError):
    """A sampled value lies outside of the range [low, high] that bounds rest on. `voxel` is `(z, y, x)`."""

    code = "sample-out-of-range"

    def __init__(self, voxel: tuple[int, ...], value: float, low: float, high: float) -> None:
        super().__init__(
            f"the value {value} sampled at voxel {voxel} is outside of [{low}, {high}]; "
            "the intensity statistics are not those of this scan"
        )
        self.voxel, self.value, self.low, self.high = voxel, value, low, high


class SourceFailed(ModelError):
    """A source of cubes broke off or returned the wrong shape. `__cause__` is the source's own error."""

    code = "source-failed"
