"""A bound on every voxel of real scans (`benchmarks.real_scans`), and what it costs against lossless codecs.

With a bound delta, `bounded` against the smallest file of any lossless compressor on k = floor((x + delta) /
(2 delta + 1)), which says where values are to within delta. Every voxel of what the file decodes to is
compared with the scan; `beyond` counts those farther away than delta. One thread.

    size_over_best    the worst of all scans and bounds
    beyond            over all scans and bounds together
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.real_scans import chosen, values_of
from benchmarks.targets import Target, judged, number, show_targets
from storage.compressors import BOUNDED, COMPRESSORS, MissingPeer, UnsuitableValues, decompress
from storage.compressors.bounded import quantised

DELTAS = (0, 1, 2, 4, 8)
TARGETS = (Target("beyond", 0), Target("size_over_best", 1.01))

Row = dict[str, Any]


def run(only: Sequence[str] | None = None) -> dict[str, Any]:
    """All scans, or those that are named."""
    scans: dict[str, Any] = {}
    for name, scan in chosen(None if only is None else list(only)).items():
        values = values_of(scan)
        scans[name] = {
            "shape": list(values.shape),
            "dtype": str(values.dtype),
            "bounds": {str(delta): bounded(values, delta) for delta in DELTAS},
        }
    rows = [row for scan in scans.values() for row in scan["bounds"].values()]
    keys = {
        "size_over_best": max(row["bytes"] / row["plain_bytes"] for row in rows),
        "beyond": sum(row["beyond"] for row in rows),
    }
    return {**keys, "targets": judged(keys, TARGETS), "threads": 1, "scans": scans}


def bounded(values: NDArray[Any], delta: int) -> Row:
    """A file, counted voxel by voxel, and the best plain one."""
    start = time.process_time()
    data = BOUNDED.compress(values, delta=float(delta))
    packed = time.process_time()
    told = decompress(data)
    unpacked = time.process_time()
    errors = np.abs(told.astype(np.int64) - values.astype(np.int64))
    plain = sizes(quantised(values, delta))
    best = min(plain, key=lambda name: plain[name])
    return {
        "bytes": len(data),
        "ratio": values.nbytes / len(data),
        "plain_bytes": plain[best],
        "plain": best,
        "beyond": int((errors > delta).sum()),
        "largest": int(errors.max()),
        "encode_s": packed - start,
        "decode_s": unpacked - packed,
    }


def sizes(values: NDArray[Any]) -> dict[str, int]:
    """Of all lossless files, by who wrote them."""
    found = {}
    for name, one in COMPRESSORS.items():
        if one.lossless:
            try:
                found[name] = len(one.compress(values))
            except (UnsuitableValues, MissingPeer):
                continue
    return found


def show(result: dict[str, Any]) -> None:
    """A table for each scan."""
    for name, scan in result["scans"].items():
        print(f"\n{name}: {' x '.join(map(str, scan['shape']))}, {scan['dtype']}")
        print(f"  {'delta':<7}{'ratio':>8}{'over best':>11}{'beyond':>8}{'enc s':>8}{'dec s':>8}  best plain")
        for delta, row in scan["bounds"].items():
            over = row["bytes"] / row["plain_bytes"]
            print(
                f"  {delta:<7}{row['ratio']:>8.3f}{over:>11.4f}{row['beyond']:>8}{row['encode_s']:>8.2f}"
                f"{row['decode_s']:>8.2f}  {row['plain']}"
            )
    show_targets(result["targets"])
    print(f"\nsize_over_best {number(result['size_over_best'])}")
