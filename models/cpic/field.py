"""The tensor that is approximated, E = f(cubes), looked at entry by entry; every voxel is encoded once.

A voxel's features are kept while the encoder's weights stand still. Only voxels that were asked for are kept,
though boxes hold others too: what is known, and what it costs to know more, never depends on the boxes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from models.cpic.encoder import Encoder
from models.cpic.encoding import Scan, batches, check, naming, shares
from models.cpic.raw_boxes import RawBoxes, Rows
from models.errors import InvalidShape
from models.keys import distinct
from models.tt.qtt import Layout
from models.types import CubeSource, Int64

COUNTED_AT_ONCE = 1 << 16
"""Keys that wait at least before they are counted."""


@dataclass(frozen=True)
class Counts:
    """What was looked at: `samples` with repetition, distinct entries of the layout, distinct cubes.

    A cube stands for a voxel that was encoded, in whichever box.
    """

    samples: int
    unique_samples: int
    unique_cubes: int


class EncodedVoxels:
    """Features of voxels, encoded when first asked for and kept, while the encoder stands still.

    Voxels are linear indices (z Y + y) X + x. When weights have changed, all features are forgotten. Raw
    boxes are kept beside them, up to `keep_bytes`, and stay. `stepped` is called after each batch that is
    encoded; what it raises ends the work. Raises SourceFailed, NonFiniteSample, SampleOutOfRange.
    """

    def __init__(
        self,
        source: CubeSource,
        encoder: Encoder,
        device: torch.device,
        *,
        keep_bytes: int = 0,
        stepped: Callable[[], None] = lambda: None,
    ) -> None:
        self.stepped = stepped
        self.scan = Scan(RawBoxes(source, keep_bytes), encoder, device)
        self._weights = [] if encoder.network is None else list(encoder.network.parameters())
        self.forget()

    def __len__(self) -> int:
        return len(self._rows)

    def forget(self) -> None:
        """Drop all features; raw boxes stay."""
        self._rows = Rows()
        self._values: Tensor | None = None  # (capacity, features), in the encoder's own precision
        self._version = self._weights_version()

    def features(self, voxels: Int64) -> Float64[Tensor, "m f"]:
        """All features of voxels (m,)."""
        at = self._positions(voxels)
        return self._table()[torch.from_numpy(at).to(self.scan.device)].double()

    def entries(self, voxels: Int64, features: Int64) -> Float64[Tensor, " m"]:
        """One feature of each voxel (m,)."""
        at = self._positions(voxels) * self.scan.encoder.features + features
        return self._table().view(-1)[torch.from_numpy(at).to(self.scan.device)].double()

    def unknown(self, voxels: Int64) -> Int64:
        """Which of these voxels are still to be encoded; distinct and ascending."""
        if self._version != self._weights_version():
            self.forget()
        new = self._rows.find(voxels) < 0
        return distinct(voxels[new]) if new.any() else voxels[:0]

    def keep(self, voxels: Int64, values: Tensor) -> None:
        """Store the features (m, f) of unknown voxels (m,)."""
        first = len(self._rows)
        self._rows.add(voxels)
        if self._values is None or len(self._rows) > len(self._values):
            grown = values.new_empty(max(len(self._rows), 3 * first // 2), values.shape[1])
            if self._values is not None:
                grown[:first] = self._values[:first]
            self._values = grown
        self._values[first : len(self._rows)] = values

    def _positions(self, voxels: Int64) -> Int64:
        """Where the voxels stand in the table, after encoding those that were never seen."""
        at = self._rows.find(voxels)
        if self._version != self._weights_version() or (at < 0).any():
            encode_together([self], [voxels])
            at = self._rows.find(voxels)
        return at

    def _table(self) -> Tensor:
        if self._values is None:
            return torch.empty(0, self.scan.encoder.features, device=self.scan.device)
        return self._values

    def _weights_version(self) -> int:
        """A number that grows when a weight is written to."""
        return sum(weight._version for weight in self._weights)


@torch.no_grad()
def encode_together(volumes: Sequence[EncodedVoxels], voxels: Sequence[Int64]) -> None:
    """Encode what is still unknown of several volumes, in shared batches where they share a network.

    A volume may come several times. Raises SourceFailed, NonFiniteSample and SampleOutOfRange; they name the
    volume where there are several.
    """
    asked: dict[int, list[Int64]] = {}
    for volume, wanted in zip(volumes, voxels, strict=True):
        asked.setdefault(id(volume), []).append(wanted)
    nothing = np.empty(0, np.int64)
    missing = [volume.unknown(np.concatenate(asked.pop(id(volume), [nothing]))) for volume in volumes]
    scans, sizes = [volume.scan for volume in volumes], [len(new) for new in missing]
    found: dict[int, Tensor] = {}
    for batch in batches(scans, missing):
        values = batch.features()
        for owner, own, numbers in shares(batch.rows, sizes):
            with naming(owner, scans):
                check(values[own], missing[owner][numbers], scans[owner])
            if owner not in found:
                found[owner] = values.new_empty(sizes[owner], values.shape[1])
            found[owner][torch.from_numpy(numbers).to(values.device)] = values[own]
            volumes[owner].stepped()
    for owner, values in found.items():
        volumes[owner].keep(missing[owner], values)


class Field(ABC):
    """E in a layout: keys in, entries out, counted."""

    def __init__(self, voxels: EncodedVoxels, layout: Layout) -> None:
        self.encoded, self.layout = voxels, layout
        self._samples = 0
        self._keys = np.empty(0, np.int64)  # counted: distinct and ascending
        self._waiting: list[Int64] = []
        self._waiting_keys = 0

    @abstractmethod
    def __call__(self, keys: Int64) -> Float64[Tensor, "..."]:
        """What stands at keys of any shape."""

    def reads(self, keys: Int64) -> tuple[Int64, Int64]:
        """The linear voxels and the features that keys of any shape read, (m,) each."""
        if self.layout.padded == self.layout.shape:
            voxels, features = np.divmod(keys.ravel(), self.layout.features)
            return voxels, features
        entries = self.layout.entries(keys.ravel())
        return linear_voxels(entries, self.layout), entries[:, 3]

    @property
    def counts(self) -> Counts:
        """Of everything that was asked so far."""
        self._count_waiting()
        return Counts(self._samples, len(self._keys), len(self.encoded))

    def _count(self, keys: Int64) -> None:
        self._samples += keys.size
        self._waiting.append(keys.flatten())
        self._waiting_keys += keys.size
        if self._waiting_keys > COUNTED_AT_ONCE + len(self._keys):
            self._count_waiting()

    def _count_waiting(self) -> None:
        if self._waiting:
            self._keys = distinct(np.concatenate([self._keys, *self._waiting]))
            self._waiting, self._waiting_keys = [], 0


class SampledField(Field):
    """E as a scalar at each entry (z, y, x, feature) of a layout."""

    def __call__(self, keys: Int64) -> Float64[Tensor, "..."]:
        """The entries at keys of any shape, in the same shape."""
        values = self.encoded.entries(*self.reads(keys))
        self._count(keys)
        return values.reshape(keys.shape)


class BlockField(Field):
    """E as a vector at each voxel of a spatial layout (`Layout.spatial`): all features at once.

    Raises InvalidShape for a layout that splits features.
    """

    def __init__(self, voxels: EncodedVoxels, layout: Layout) -> None:
        if layout.padded[3] != 1:
            raise InvalidShape(
                f"blocks need a layout of voxels alone, not one of {layout.padded[3]} features"
            )
        super().__init__(voxels, layout)

    def __call__(self, keys: Int64) -> Float64[Tensor, "... f"]:
        """The features at keys of any shape, in the same shape and one axis more."""
        values = self.encoded.features(self.reads(keys)[0])
        self._count(keys)
        return values.reshape(*keys.shape, -1)


class FieldBatch:
    """Fields of several volumes, asked together: row b of the keys is for volume b.

    New voxels of all volumes are encoded in shared batches where volumes share a network. What an error says
    names the volume, where there are several.
    """

    def __init__(self, fields: Sequence[Field]) -> None:
        self.fields = tuple(fields)

    def __call__(self, keys: Int64) -> Float64[Tensor, "b ..."]:
        """What stands at keys (b, ...), volume by volume. Raises InvalidShape for another number of rows."""
        if len(keys) != len(self.fields):
            raise InvalidShape(f"{len(keys)} rows of keys for {len(self.fields)} volumes")
        pairs = list(zip(self.fields, keys, strict=True))
        encode_together(
            [field.encoded for field in self.fields], [field.reads(row)[0] for field, row in pairs]
        )
        return torch.stack([field(row) for field, row in pairs])

    @property
    def counts(self) -> tuple[Counts, ...]:
        """Of each volume."""
        return tuple(field.counts for field in self.fields)


def linear_voxels(entries: Int64, layout: Layout) -> Int64:
    """Linear voxel indices of (z, y, x, ...) rows."""
    _, Y, X, _ = layout.shape
    return np.asarray((entries[:, 0] * Y + entries[:, 1]) * X + entries[:, 2], np.int64)
