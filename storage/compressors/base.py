"""What a compressor of volumes is, and how its quality is set.

Each lossy compressor has one number, its setting, along which files shrink and errors grow. `fit.fitted`
finds it for a ratio, a PSNR or a bound.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import isfinite, log, log10
from types import ModuleType
from typing import Any, ClassVar, Protocol

import numpy as np

from storage.compressors.frame import Array, Dtype, Frame, opened


class UnsuitableValues(ValueError):
    """Values that a compressor cannot take."""


class MissingPeer(ImportError):
    """A compressor's library is not installed."""


@dataclass(frozen=True)
class Setting:
    """A compressor's number: its name as an argument, and what it runs between for some values, both above 0.

    Sizes fall and errors grow from `finest` to `coarsest`, whichever is the larger number.
    """

    name: str
    finest: float
    coarsest: float

    def at(self, share: float) -> float:
        """The number at a share of the way to `coarsest`, evenly in its logarithm."""
        return float(self.finest * (self.coarsest / self.finest) ** share)

    def share(self, number: float) -> float:
        """At what share of the way to `coarsest` a number lies; 0 before it begins, 1 behind its end."""
        return min(1.0, max(0.0, log(number / self.finest) / log(self.coarsest / self.finest)))

    @property
    def decades(self) -> float:
        """How often the number grows or falls tenfold on all of the way."""
        return abs(log10(self.coarsest / self.finest))


class Compressor(Protocol):
    """Volumes (z, y, x), or several of them (t, z, y, x), of an integer or float dtype, to bytes and back."""

    @property
    def name(self) -> str:
        """In `COMPRESSORS`, and in the bytes."""

    @property
    def lossless(self) -> bool:
        """Whether values always come back as they were."""

    def setting(self, values: Array) -> Setting | None:
        """The number that sets its quality for such values; None of a lossless one."""

    def compress(self, values: Array, **setting: float) -> bytes:
        """Bytes that are complete in themselves. Raises UnsuitableValues, and ValueError for a setting that
        is missing, unknown or not above 0.
        """

    def decompress(self, data: bytes) -> Array:
        """The values, of the source's shape and dtype. Raises DamagedBytes and NewerFormat before it decodes,
        and ValueError for another compressor's bytes.
        """


class Framed(ABC):
    """A compressor of which only what stands within the frame is left to be written."""

    name: ClassVar[str]
    lossless: ClassVar[bool] = False

    @abstractmethod
    def packed(self, values: Array, number: float) -> bytes:
        """Values that have at least one voxel, little-endian, for the setting's number."""

    @abstractmethod
    def unpacked(self, payload: bytes, shape: tuple[int, ...], dtype: Dtype) -> Array:
        """What `packed` was given, as near as the compressor keeps it."""

    @abstractmethod
    def setting(self, values: Array) -> Setting | None:
        """See `Compressor`."""

    def compress(self, values: Array, **setting: float) -> bytes:
        """See `Compressor`."""
        checked = suitable(values)
        number = self.number(checked, setting)
        return Frame(self.name, checked.dtype, checked.shape, self.packed(checked, number)).bytes()

    def decompress(self, data: bytes) -> Array:
        """See `Compressor`."""
        frame = opened(data)
        if frame.compressor != self.name:
            raise ValueError(f"{frame.compressor} wrote these bytes, not {self.name}")
        return self.unpacked(frame.payload, frame.shape, frame.dtype)

    def number(self, values: Array, setting: dict[str, float]) -> float:
        """The setting's number; 0 of a lossless compressor. Raises ValueError as `compress`."""
        own = self.setting(values)
        if own is None:
            if setting:
                raise ValueError(f"{self.name} is lossless and has no {', '.join(setting)}")
            return 0.0
        if set(setting) != {own.name}:
            raise ValueError(f"{self.name} is set by {own.name} = ..., got {', '.join(setting) or 'nothing'}")
        number = setting[own.name]
        if not (isfinite(number) and number > 0):
            raise ValueError(f"{self.name}: {own.name} = {number}: must be above 0 and finite")
        return float(number)


def suitable(values: Array) -> Array:
    """Values as compressors take them: contiguous, little-endian. Raises UnsuitableValues."""
    if values.dtype.kind not in "iuf":
        raise UnsuitableValues(f"values of dtype {values.dtype}: integers and floats can be compressed")
    if values.ndim not in (3, 4) or not values.size:
        raise UnsuitableValues(
            f"values of shape {values.shape}: (z, y, x) or (t, z, y, x), with voxels in it"
        )
    return np.ascontiguousarray(values, values.dtype.newbyteorder("<"))


def finite(name: str, values: Array) -> Array:
    """The values. Raises UnsuitableValues where some are NaN or infinite."""
    if gaps := int(values.size - np.count_nonzero(np.isfinite(values))):
        raise UnsuitableValues(
            f"{name} takes finite values, {gaps:,} of {values.size:,} voxels are not: fill them first, or "
            "use a lossless compressor"
        )
    return values


def spread(values: Array) -> float:
    """Maximum minus minimum of the finite values: 0 without any, infinite where no float64 holds it."""
    known = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    return float(known.max()) - float(known.min()) if known.size else 0.0


def in_voxel_units(name: str, values: Array, coarsest: float) -> Setting:
    """A setting in units of the values: from where rounding hides it to `coarsest` times their range. Raises
    UnsuitableValues where that is no finite number.
    """
    known = spread(values) or 1.0
    if not isfinite(coarsest * known):
        raise UnsuitableValues(f"values over a range of {known:g}: scale them, or use a lossless compressor")
    least = 0.05 if values.dtype.kind in "iu" else 0.0
    return Setting(name, max(least, 1e-6 * known), coarsest * max(known, least))


def as_dtype(values: Array, dtype: Dtype) -> Array:
    """Floats in the source's dtype: kept within it, and rounded where it is an integer one. A float dtype
    keeps NaN and infinities.
    """
    if dtype.kind not in "iu":
        with np.errstate(over="ignore"):
            told = values.astype(dtype)
        beyond = np.isinf(told) & np.isfinite(values)
        return np.where(beyond, np.copysign(np.finfo(dtype).max, told), told) if beyond.any() else told
    limits = np.iinfo(dtype)
    return np.clip(np.rint(values), limits.min, limits.max).astype(dtype)


def peer(name: str, module: str) -> ModuleType | Any:
    """The library of a compressor. Raises MissingPeer with the cure."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingPeer(f"{name} needs {module}: pip install 'tomotrain[peers]'") from error
