"""Tiles of real scans as trains of integers: bytes against lzma, CPU milliseconds to code and to read one.

Of each scan, tiles of at most 64^3 are cut from its middle, and the step is found for which they take about
1/10, 1/20 and 1/50 of their source bytes.

    coder_over_lzma           bytes of the trains over those of lzma (preset 9e) on the same integers, all in
                              as few whole bytes each as hold them
    quantised_over_float32    as in `putt_rate`, of one tile
    encode_ms, decode_ms      the smallest of REPEATS, of one 64^3 tile: `block_bytes` and `block_values`

Keys stand for the worst of the scans at about 20:1; times only for scans whose tiles are cubes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.putt_rate import lzma_bytes, quantised_over_float32
from benchmarks.real_scans import RealScan, missing, values_of
from benchmarks.targets import Target, judged, number, show_targets
from storage.compressors.parts import grid
from storage.putt.block import block_bytes, block_values
from storage.putt.coder import decoded, encoded
from storage.putt.digits import Digits
from storage.putt.factorising import factorised
from storage.putt.integer_train import IntegerTrain

SIDE = 64
RATIOS = (10, 20, 50)
JUDGED = 20
REPEATS, TRIALS = 5, 10
SCANS = {
    "stroke_t1": RealScan("nifti/stroke_T1.nii.gz", "MR", (64, 64, 128)),
    "abdomen_ct": RealScan("zarr/example_ct_v3.zarr", "CT", (64, 64, 64)),
    "head_ct_8bit": RealScan("nifti/CT_pitch.nii.gz", "CT", (58, 64, 128)),
    "chest_ct": RealScan("dicom/chest_ct_A0002_30x8mm.zip", "CT", (30, 128, 128)),
}
TARGETS = (
    Target("coder_over_lzma", 0.7),
    Target("quantised_over_float32", 0.2),
    Target("encode_ms", 50),
    Target("decode_ms", 10),
)

Array = NDArray[Any]


def run(only: Sequence[str] | None = None) -> dict[str, Any]:
    """All scans, or those of these names."""
    if reason := missing():
        raise SystemExit(reason)
    if unknown := sorted(set(only or ()) - set(SCANS)):
        raise SystemExit(f"no scan {', '.join(unknown)}: there are {', '.join(SCANS)}")
    scans = {name: measured(values_of(SCANS[name])) for name in only or SCANS}
    judged_rows = [scan["ratios"][str(JUDGED)] for scan in scans.values()]
    cubes = [scan["ratios"][str(JUDGED)] for scan in scans.values() if scan["tile"] == [SIDE] * 3]
    keys: dict[str, Any] = {
        "coder_over_lzma": max(row["coder_over_lzma"] for row in judged_rows),
        "quantised_over_float32": max(scan["quantised_over_float32"] for scan in scans.values()),
    }
    if cubes:
        keys |= {key: max(row[key] for row in cubes) for key in ("encode_ms", "decode_ms")}
    return {**keys, "scans": scans, "targets": judged(keys, TARGETS)}


def measured(values: Array) -> dict[str, Any]:
    """A scan's tiles at each ratio."""
    tiles = [np.ascontiguousarray(values[where]) for where in grid(values.shape, SIDE)]
    return {
        "tiles": len(tiles),
        "tile": list(tiles[0].shape),
        "dtype": str(values.dtype),
        "quantised_over_float32": quantised_over_float32(tiles[0]),
        "ratios": {str(ratio): at_ratio(tiles, ratio) for ratio in RATIOS},
    }


def at_ratio(tiles: list[Array], ratio: float) -> dict[str, Any]:
    """Sizes of all tiles, and times of the first."""
    step = step_for(tiles, ratio)
    trains = [train_of(tile, step) for tile in tiles]
    first, coded = trains[0], [encoded(train) for train in trains]
    data = block_bytes(tiles[0], step)
    shape, dtype = Digits.of(tiles[0].shape).shape, tiles[0].dtype
    return {
        "step": step,
        "ratio": sum(tile.nbytes for tile in tiles) / sum(map(len, coded)),
        "psnr": psnr(tiles, trains),
        "coder_over_lzma": sum(map(len, coded)) / lzma_bytes(trains),
        "integers": sum(core.size for core in first.cores),
        "ranks": list(first.ranks),
        "factorise_ms": milliseconds(lambda: train_of(tiles[0], step)),
        "code_ms": milliseconds(lambda: encoded(first)),
        "read_ms": milliseconds(lambda: decoded(coded[0], first.modes)),
        "values_ms": milliseconds(lambda: IntegerTrain(first.cores, first.step, first.offset).values()),
        "encode_ms": milliseconds(lambda: block_bytes(tiles[0], step)),
        "decode_ms": milliseconds(lambda: block_values(data, shape, dtype)),
    }


def step_for(tiles: list[Array], ratio: float) -> float:
    """A step for which the tiles take so much less than they are, by bisection."""
    peak = max(float(np.ptp(tile.astype(np.float64))) for tile in tiles)
    fine, coarse = 1e-3 * peak, 10 * peak
    source = sum(tile.nbytes for tile in tiles)
    for _ in range(TRIALS):
        step = float(np.sqrt(fine * coarse))
        if source < ratio * sum(len(encoded(train_of(tile, step))) for tile in tiles):
            fine = step
        else:
            coarse = step
    return float(np.sqrt(fine * coarse))


def train_of(tile: Array, step: float) -> IntegerTrain:
    """A tile's train."""
    return factorised(Digits.of(tile.shape).split(tile.astype(np.float64)), step)


def psnr(tiles: list[Array], trains: list[IntegerTrain]) -> float:
    """Of all tiles, before rounding; the peak is their range."""
    errors = [
        np.square(Digits.of(tile.shape).joined(train.values()) - tile)
        for tile, train in zip(tiles, trains, strict=True)
    ]
    squared = float(np.mean(np.concatenate([error.ravel() for error in errors])))
    peak = float(max(tile.max() for tile in tiles)) - float(min(tile.min() for tile in tiles))
    return float(10 * np.log10(peak**2 / squared))


def milliseconds(work: Callable[[], object]) -> float:
    """Of the processor, the smallest of REPEATS."""
    seconds = []
    for _ in range(REPEATS):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return 1e3 * min(seconds)


COLUMNS = ("ratio", "psnr", "coder_over_lzma", "factorise_ms", "code_ms", "read_ms", "values_ms")


def show(result: dict[str, Any]) -> None:
    """A table for each scan."""
    for name, scan in result["scans"].items():
        tile = " x ".join(map(str, scan["tile"]))
        print(f"\n{name}: {scan['tiles']} tiles of {tile}, {scan['dtype']}")
        print("".join(f"{column:>17}" for column in (*COLUMNS, "encode_ms", "decode_ms")))
        for row in scan["ratios"].values():
            print("".join(f"{number(row[column]):>17}" for column in (*COLUMNS, "encode_ms", "decode_ms")))
        print(f"quantised_over_float32 {number(scan['quantised_over_float32'])}")
    show_targets(result["targets"])
