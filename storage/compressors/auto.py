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
from math import floor, inf, isfinite, log10
from typing import ClassVar

from storage.compressors.base import Compressor, MissingPeer, Setting, UnsuitableValues, spread, suitable
from storage.compressors.fit import Fitted, Search, Target, searched, target, tried, unreachable
from storage.compressors.frame import Array, opened
from storage.compressors.mosaic import mosaic

MOST = 3
"""Lossy compressors that are searched in full."""
WHOLE = 1.15
"""Hopeful is whose file was at most so many times as large as the smallest, all having seen the whole."""
PART = 1.5
"""Likewise, on a mosaic: its images are smaller, and what files begin with counts for more."""
DECADE = 30.0
"""dB for a tenth of the size, at most, by which files of unequal sizes and errors are compared roughly."""


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
        UnsuitableValues for what none can take, and as `target`.
        """
        wanted = target(ratio=ratio, psnr=psnr, bound=bound)
        whole = suitable(values)
        part = mosaic(whole)
        peak = spread(whole) if peak is None else peak
        rough = self._roughly(whole if part is None else part, wanted, peak)
        likely = hopeful(rough, wanted, WHOLE if part is None else PART)
        full = [searched(one.compressor, whole, wanted, peak, one) for one in likely]
        return self._best([*full, *self._by_bound(whole, wanted, bound, peak)], wanted)

    def _roughly(self, values: Array, wanted: Target, peak: float) -> list[Search]:
        found = []
        over_time = values.ndim == 4 and len(values) > 1
        for one in (*self.among, *(self.over_time if over_time else ())):
            try:
                found.append(searched(one, values, wanted, peak, rough=True))
            except (UnsuitableValues, MissingPeer):
                continue
        return found

    def _by_bound(self, values: Array, wanted: Target, bound: float | None, peak: float) -> Iterator[Search]:
        """What keeps a bound by itself, of integers: nothing is to be searched."""
        if self.bounded is None or bound is None or values.dtype.kind not in "iu":
            return
        search = Search(self.bounded, wanted)
        try:
            search.learn(0.0, tried(self.bounded, values, {"delta": float(floor(bound))}, peak))
        except (UnsuitableValues, MissingPeer):
            return
        yield search

    def _best(self, full: Sequence[Search], wanted: Target) -> Fitted:
        met = [one.best for one in full if one.best is not None]
        if met:
            return min(met, key=lambda one: (_worth(one, wanted), len(one.data)))
        missed = [one.nearest for one in full if one.nearest is not None]
        if not missed:
            raise UnsuitableValues(f"{self.name}: no compressor that is installed takes these values")
        raise unreachable(self.name, max(missed, key=lambda one: wanted.excess(one.report)), wanted)

    def _readers(self) -> Iterator[Compressor]:
        yield from self.among
        yield from self.over_time
        if self.bounded is not None:
            yield self.bounded


def hopeful(rough: Sequence[Search], wanted: Target, margin: float) -> list[Search]:
    """Whom to try on the whole: lossless ones that may do, and a few others by what they did."""
    able = [one for one in rough if one.best is not None or one.misses_by_at_most(margin)]
    costs = {id(one): _cost(one, wanted) for one in able}
    lossless = [one for one in able if one.compressor.lossless]
    lossy = sorted((one for one in able if not one.compressor.lossless), key=lambda one: costs[id(one)])
    if wanted.kind == "ratio":
        rivals = lossy
    else:
        rivals = sorted([*lossy, *lossless], key=lambda one: costs[id(one)])
        lossless = []
    least = costs[id(rivals[0])] if rivals else inf
    near = [one for one in rivals if costs[id(one)] <= least + log10(margin)][:MOST]
    return [*lossless, *near] or list(rough)


def _cost(search: Search, wanted: Target) -> float:
    """The logarithm of a file's size, less what its quality would save beyond what is wanted."""
    found = search.found
    psnr = found.report.psnr
    decibels = {"ratio": psnr, "psnr": wanted.excess(found.report), "bound": 0.0}[wanted.kind]
    return log10(len(found.data)) - (decibels / DECADE if isfinite(decibels) else 0.0)


def _worth(found: Fitted, wanted: Target) -> float:
    """Least is best: of files that reach a ratio the quality counts, else the size."""
    return -found.report.psnr if wanted.kind == "ratio" else float(len(found.data))
