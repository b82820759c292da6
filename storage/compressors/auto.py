"""The smallest file that does what is wanted, whoever writes it.

Every compressor is searched roughly, on a mosaic of a large volume; the hopeful are then searched in full,
and the one whose file is the smallest is kept, or for a ratio the one that decodes best. Its file is the
answer, as if it had been called alone. Nothing is added: the choice can cost as much as a mistaken guess
about who is hopeful, which margins make improbable, and the half percent by which targets are met.

It stands beside `COMPRESSORS`, not among them: it chooses among those, and no file is its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import floor, isfinite, log10
from typing import ClassVar

from storage.compressors.base import Compressor, MissingPeer, Setting, UnsuitableValues, spread, suitable
from storage.compressors.fit import Fitted, Search, searched, tried, unreachable
from storage.compressors.frame import Array, opened
from storage.compressors.goals import Goal, goal
from storage.compressors.mosaic import mosaic
from storage.compressors.ranking import Candidate, hopeful, rank

WHOLE = 1.15
"""What files of the whole are uncertain by, as factors of their sizes: searches were rough."""
PART = 1.5
"""Likewise, of a mosaic: its images are smaller, and what files begin with counts for more."""


@dataclass(frozen=True)
class Auto:
    """A choice among compressors. Those whose library is missing, or that cannot take the values, are left
    out.
    """

    name: ClassVar[str] = "auto"
    lossless: ClassVar[bool] = False

    among: tuple[Compressor, ...]
    over_time: tuple[Compressor, ...] = ()
    """More of them, for several frames."""
    bounded: Compressor | None = None
    """One that takes a bound itself, `delta`, for integers."""

    def setting(self, values: Array) -> Setting | None:
        """`error`: the root mean square of all voxels' errors, at most."""
        known = spread(values) or 1.0
        return Setting("error", 1e-6 * known, known)

    def compress(self, values: Array, **setting: float) -> bytes:
        """The smallest file for an error. Raises as `Compressor.compress`, and UnreachableTarget."""
        if set(setting) != {"error"}:
            raise ValueError(f"{self.name} is set by error = ..., got {', '.join(setting) or 'nothing'}")
        error = setting["error"]
        if not (isfinite(error) and error > 0):
            raise ValueError(f"{self.name}: error = {error}: must be above 0 and finite")
        peak = spread(suitable(values)) or 1.0
        return self.fitted(values, psnr=max(0.0, 20 * log10(peak / error)), peak=peak).data

    def decompress(self, data: bytes) -> Array:
        """The values, by the compressor that was chosen. Raises as `Compressor.decompress`."""
        name = opened(data).compressor
        for one in self._readers():
            if one.name == name:
                return one.decompress(data)
        raise ValueError(f"{name} wrote these bytes, among which {self.name} does not choose")

    def fitted(
        self,
        values: Array,
        *,
        ratio: float | None = None,
        psnr: float | None = None,
        bound: float | None = None,
        peak: float | None = None,
    ) -> Fitted:
        """As `fit.fitted` of the best compressor. Raises UnreachableTarget if all of them do,
        UnsuitableValues for what none can take, and as `goals.goal`.
        """
        wanted = goal(ratio=ratio, psnr=psnr, bound=bound)
        whole = suitable(values)
        part = mosaic(whole)
        peak = spread(whole) if peak is None else peak
        rough = self._roughly(whole if part is None else part, wanted, peak)
        full = [
            searched(one.compressor, whole, wanted, peak, one.end)
            for one in _hopeful(rough, wanted, WHOLE if part is None else PART)
        ]
        return self._best([*full, *self._by_bound(whole, wanted, peak)], wanted)

    def _roughly(self, values: Array, wanted: Goal, peak: float) -> list[Search]:
        found = []
        over_time = values.ndim == 4 and len(values) > 1
        for one in (*self.among, *(self.over_time if over_time else ())):
            try:
                found.append(searched(one, values, wanted, peak, rough=True))
            except (UnsuitableValues, MissingPeer):
                continue
        return found

    def _by_bound(self, values: Array, wanted: Goal, peak: float) -> Iterator[Search]:
        """What keeps a bound by itself, of integers: nothing is to be searched."""
        if self.bounded is None or wanted.kind != "bound" or values.dtype.kind not in "iu":
            return
        search = Search(self.bounded, wanted)
        try:
            search.learn(tried(self.bounded, values, {"delta": float(floor(wanted.value))}, peak))
        except (UnsuitableValues, MissingPeer):
            return
        yield search

    def _best(self, full: Sequence[Search], wanted: Goal) -> Fitted:
        if not full:
            raise UnsuitableValues(f"{self.name}: no compressor that is installed takes these values")
        best = min(full, key=lambda one: rank(one.found.report, wanted))
        if best.best is None:
            raise unreachable(self.name, best.found, wanted)
        return best.best

    def _readers(self) -> Iterator[Compressor]:
        yield from self.among
        yield from self.over_time
        if self.bounded is not None:
            yield self.bounded


def _hopeful(rough: Sequence[Search], wanted: Goal, margin: float) -> list[Search]:
    """See `ranking.hopeful`."""
    candidates = [Candidate(one, one.compressor.lossless, one.found.report) for one in rough]
    return [one.who for one in hopeful(candidates, wanted, margin)]
