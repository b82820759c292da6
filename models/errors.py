"""What can go wrong in the mathematics. Each error names the bond, the voxel or the limit, with a stable `code`.

    ModelError
    ├── InvalidShape        a mode, rank or array that the method cannot take
    ├── NonFiniteSample     a sampled value is NaN or infinite
    └── SourceFailed        a source of cubes broke off or returned the wrong shape
"""

from __future__ import annotations

from typing import Any, ClassVar


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


class NonFiniteSample(ModelError):
    """A sampled value is NaN or infinite. `voxel` is `(z, y, x)`."""

    code = "non-finite-sample"

    def __init__(self, voxel: tuple[int, ...], value: float) -> None:
        super().__init__(f"the value sampled at voxel {voxel} is {value}; the source must be finite everywhere")
        self.voxel, self.value = voxel, value


class SourceFailed(ModelError):
    """A source of cubes broke off or returned the wrong shape."""

    code = "source-failed"
