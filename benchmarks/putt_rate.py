"""Rate and distortion of every registered compressor on whole scans (`benchmarks.real_scans`), one thread.

Nothing is cut: what a file or a slice begins with weighs as much as it does in use.

A curve is of files near the ratios RATIOS; PSNR between them goes by the logarithm of the ratio, and stands
nowhere where a compressor did not reach. Ratios are source bytes, of the dtype as it was read, over all bytes
of a file; the peak of a PSNR is the scan's range. Seconds are of the processor, of the file nearest to 20:1.

    quantised_over_float32    a block's train of rank 40 and less, quantised and coded so that it loses at
                              most 0.1 dB, over the same ranks' cores in float32
    coder_over_lzma           the trains of all blocks at about 20:1, coded by putt, over lzma (preset 9e) of
                              the same integers, in as few whole bytes each as hold them all
    auto_over_best            the file that `auto` chooses for the PSNR that the best compressor has at 20:1,
                              over the smallest that any compressor makes for it
    temporal_over_frames      `temporal` over `wavelet`, which stands behind its core, frame by frame, for the
                              PSNR that this has at 10:1; the same with putt behind it is beside it

Each stands for the worst of the scans; those of the others are with them.
"""

from __future__ import annotations

import lzma
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf, isfinite, log
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.real_scans import RealScan, chosen, whole
from benchmarks.targets import Target, judged, number, show_targets
from models.tt.rounding import tt_svd
from storage.compressors import AUTO, COMPRESSORS, TEMPORAL, MissingPeer, UnsuitableValues, reported
from storage.compressors.base import Compressor
from storage.compressors.fit import Fitted, searched
from storage.compressors.goals import Goal
from storage.compressors.parts import grid
from storage.compressors.putt import Putt
from storage.compressors.report import psnr_of
from storage.compressors.search import Start
from storage.compressors.temporal import Temporal
from storage.compressors.wavelet import Wavelet
from storage.putt.coder import encoded
from storage.putt.digits import Digits
from storage.putt.factorising import factorised
from storage.putt.integer_train import IntegerTrain

RATIOS = (5, 10, 20, 50, 100)
NEAR, TRIALS = 0.05, 4
"""A file so near to a ratio, in its logarithm, is enough, and so many are made for each at most."""
STEEP = 20.0
"""Logarithms of the ratio for all shares of a setting: where nothing is known of its slope yet."""
TIMED = 20
AUTO_AT, TEMPORAL_AT = 20, 10
CLOSE = 1.1
"""Compressors are searched exactly whose curve says that they come so near to the best."""
RANK, LOST_DB, BLOCK = 40, 0.1, 64
LZMA = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}]
TARGETS = (
    Target("quantised_over_float32", 0.2),
    Target("coder_over_lzma", 0.7),
    Target("auto_over_best", 1.01),
    Target("temporal_over_frames", 0.8),
)
KEYS = tuple(each.key for each in TARGETS)

Array = NDArray[Any]
Row = dict[str, Any]


@dataclass(frozen=True)
class Point:
    """One file: its setting as a share of all, what came of it, and CPU seconds."""

    share: float
    ratio: float
    psnr: float
    encode_s: float
    decode_s: float


Curve = list[Point]


def run(only: Sequence[str] | None = None) -> dict[str, Any]:
    """All scans, or those that are named."""
    torch.set_num_threads(1)
    scans = {name: told_of(scan) for name, scan in chosen(None if only is None else list(only)).items()}
    worst = {key: max(known) for key in KEYS if (known := [one[key] for one in scans.values() if key in one])}
    return {
        **worst,
        "targets": judged(worst, TARGETS),
        "threads": 1,
        "ratios": list(RATIOS),
        "scans": scans,
    }


def told_of(scan: RealScan) -> Row:
    """What is measured of it, and CPU seconds of all."""
    start = time.process_time()
    row = measured(whole(scan))
    return {"modality": scan.modality, "file": scan.path, **row, "cpu_s": time.process_time() - start}


def measured(values: Array) -> Row:
    """A scan's curves and keys."""
    curves = {name: curve(one, values) for name, one in compressors(values)}
    curves = {name: points for name, points in curves.items() if points}
    row: Row = {"shape": list(values.shape), "dtype": str(values.dtype)}
    row |= {"range": float(values.max()) - float(values.min())}
    row["compressors"] = {name: told(points) for name, points in curves.items()}
    row["lossless"] = {name: one.ratio for name, points in curves.items() if (one := exact(points))}
    row |= choice(values, curves)
    row |= of_integers(values, curves["putt"])
    if values.ndim == 3:
        row["quantised_over_float32"] = quantised_over_float32(middle_block(values))
    else:
        row |= over_time(values, curves)
    return row


def compressors(values: Array) -> Iterator[tuple[str, Compressor]]:
    """All that take part."""
    yield from COMPRESSORS.items()
    if values.ndim == 4:
        yield TEMPORAL.name, TEMPORAL


def curve(compressor: Compressor, values: Array) -> Curve:
    """Files near the ratios, by ratio; one of a lossless compressor, none of what cannot take the values."""
    try:
        scale = compressor.setting(values)
        if scale is None:
            return [point(compressor, values, {}, 0.0)]
        points = [point(compressor, values, {scale.name: scale.at(0.5)}, 0.5)]
        for ratio in RATIOS:
            for _ in range(TRIALS):
                nearest = min(points, key=lambda one: abs(log(one.ratio / ratio)))
                if abs(log(nearest.ratio / ratio)) < NEAR:
                    break
                share = share_for(points, ratio)
                if min(abs(one.share - share) for one in points) < 1e-4:
                    break
                points.append(point(compressor, values, {scale.name: scale.at(share)}, share))
    except (UnsuitableValues, MissingPeer):
        return []
    return sorted(points, key=lambda one: one.ratio)


def share_for(points: Curve, ratio: float) -> float:
    """Where a ratio is to be expected: on the line through the two files nearest to it, one on either side
    where there are such.
    """
    below = max((one for one in points if one.ratio < ratio), key=lambda one: one.ratio, default=None)
    above = min((one for one in points if one.ratio >= ratio), key=lambda one: one.ratio, default=None)
    a, *others = [one for one in (below, above) if one is not None]
    if not others:
        others = sorted(
            (one for one in points if one is not a), key=lambda one: abs(log(one.ratio / a.ratio))
        )
    slope = (log(others[0].ratio / a.ratio) / (others[0].share - a.share)) if others else STEEP
    slope = slope if STEEP / 10 < slope < STEEP * 10 else STEEP
    return float(np.clip(a.share + log(ratio / a.ratio) / slope, 0.0, 1.0))


def point(compressor: Compressor, values: Array, setting: dict[str, float], share: float) -> Point:
    """One file, timed."""
    start = time.process_time()
    data = compressor.compress(values, **setting)
    packed = time.process_time()
    back = compressor.decompress(data)
    unpacked = time.process_time()
    report = reported(values, back, len(data), with_ssim=False)
    return Point(share, report.ratio, report.psnr, packed - start, unpacked - packed)


def exact(points: Curve) -> Point | None:
    """The smallest file that lost nothing."""
    return max((one for one in points if one.psnr == inf), key=lambda one: one.ratio, default=None)


def psnr_at(points: Curve, ratio: float) -> float | None:
    """Between the files on both sides, by the logarithm of the ratio; None outside of them."""
    known = [one for one in points if isfinite(one.psnr)]
    pairs = [pair for pair in pairwise(known) if pair[0].ratio <= ratio <= pair[1].ratio]
    if not pairs:
        near = [one for one in known if abs(log(one.ratio / ratio)) < NEAR]
        return near[0].psnr if near else None
    a, b = pairs[0]
    part = log(ratio / a.ratio) / log(b.ratio / a.ratio) if b.ratio > a.ratio else 0.0
    return a.psnr + part * (b.psnr - a.psnr)


def ratio_at(points: Curve, psnr: float) -> float:
    """The largest ratio at such a PSNR, between files; 0 where none is good enough."""
    found = [one.ratio for one in points if one.psnr >= psnr]
    known = [one for one in points if isfinite(one.psnr)]
    for a, b in pairwise(known):
        if b.psnr < psnr <= a.psnr:
            found.append(a.ratio * (b.ratio / a.ratio) ** ((a.psnr - psnr) / (a.psnr - b.psnr)))
    return max(found, default=0.0)


def told(points: Curve) -> Row:
    """A curve as JSON has it: without infinite numbers."""
    timed = min(points, key=lambda one: abs(log(one.ratio / TIMED)))
    return {
        "psnr_at": {str(ratio): psnr_at(points, ratio) for ratio in RATIOS},
        "files": [[one.ratio, one.psnr if isfinite(one.psnr) else None] for one in points],
        "timed_at": timed.ratio,
        "encode_s": timed.encode_s,
        "decode_s": timed.decode_s,
    }


def choice(values: Array, curves: dict[str, Curve]) -> Row:
    """`auto` against the best, for the PSNR that the best has at a ratio."""
    reached = [psnr for points in curves.values() if (psnr := psnr_at(points, AUTO_AT)) is not None]
    if not reached:
        return {}
    psnr = max(reached)
    ratios = {name: ratio_at(points, psnr) for name, points in curves.items()}
    close = [name for name, ratio in ratios.items() if ratio * CLOSE >= max(ratios.values())]
    sizes = {
        name: len(file.data)
        for name in close
        if (file := near(COMPRESSORS.get(name, TEMPORAL), values, curves[name], psnr))
    }
    start = time.process_time()
    auto = AUTO.fitted(values, psnr=psnr)
    return {
        "auto_over_best": len(auto.data) / min(sizes.values()),
        "auto": {
            "psnr": psnr,
            "chose": auto.compressor,
            "ratio": auto.report.ratio,
            "best": min(sizes, key=lambda name: sizes[name]),
            "cpu_s": time.process_time() - start,
        },
    }


def near(compressor: Compressor, values: Array, points: Curve, psnr: float) -> Fitted | None:
    """A compressor's smallest file for a PSNR, from where a curve says that it is; None: not reached."""
    lossy = [one for one in points if isfinite(one.psnr)]
    start = None
    if len(lossy) > 1:
        a, b = sorted(sorted(lossy, key=lambda one: abs(one.psnr - psnr))[:2], key=lambda one: one.share)
        slope = (a.psnr - b.psnr) / (b.share - a.share)
        start = Start(float(np.clip(a.share + (a.psnr - psnr) / slope, 0.0, 1.0)), slope)
    return searched(compressor, values, Goal("psnr", psnr), None, start).best


def of_integers(values: Array, points: Curve) -> Row:
    """putt's coder against lzma on all trains of a volume, at the file nearest to a ratio."""
    scale = COMPRESSORS["putt"].setting(values)
    assert scale is not None
    step = scale.at(min(points, key=lambda one: abs(log(one.ratio / TIMED))).share)
    trains = []
    for where in grid(values.shape, BLOCK):
        block = values[where].astype(np.float64)
        if np.ptp(block):
            trains.append(factorised(Digits.of(block.shape).split(block), step))
    if not trains:
        return {}
    coded = sum(len(encoded(train)) for train in trains)
    integers = sum(core.size for train in trains for core in train.cores)
    return {"coder_over_lzma": coded / lzma_bytes(trains), "integers": integers, "coded_bytes": coded}


def lzma_bytes(trains: Sequence[IntegerTrain]) -> int:
    """What lzma makes of all integers."""
    flat = np.concatenate([core.ravel() for train in trains for core in train.cores])
    width = next(width for width in ("i1", "<i2", "<i4", "<i8") if np.array_equal(flat.astype(width), flat))
    return len(lzma.compress(flat.astype(width).tobytes(), lzma.FORMAT_RAW, filters=LZMA))


def middle_block(values: Array) -> Array:
    """A block of at most 64^3 from the middle."""
    middle = []
    for length in values.shape:
        start = max(0, (length - BLOCK) // 2)
        middle.append(slice(start, start + BLOCK))
    return values[tuple(middle)]


def quantised_over_float32(block: Array) -> float:
    """The fewest bytes that lose at most 0.1 dB against float32 cores of the same ranks, over those."""
    split = Digits.of(block.shape).split(block.astype(np.float64))
    peak = float(np.ptp(split))
    mean = float(split.mean())
    train = tt_svd(torch.from_numpy(split - mean), max_rank=RANK)
    floats = 4 * sum(core.numel() for core in train.cores)
    least = psnr_of(float(np.square(train.full().numpy() + mean - split).mean()), peak) - LOST_DB
    fine, coarse, coded = np.log(1e-5 * peak), np.log(peak), 0
    for _ in range(12):
        step = (fine + coarse) / 2
        found = factorised(split, float(np.exp(step)), max_rank=RANK)
        if psnr_of(float(np.square(found.values() - split).mean()), peak) >= least:
            fine, coded = step, len(encoded(found))
        else:
            coarse = step
    return coded / floats if coded else inf


def over_time(values: Array, curves: dict[str, Curve]) -> Row:
    """The core of the time axis before a compressor, against that compressor frame by frame, at one PSNR."""
    found = {
        name: with_core(Temporal(spatial), spatial, values, curves[name])
        for name, spatial in (("wavelet", Wavelet()), ("putt", Putt()))
    }
    told = {name: row for name, row in found.items() if row}
    return (
        {"temporal_over_frames": told["wavelet"]["over_frames"], "over_time": told}
        if "wavelet" in told
        else {}
    )


def with_core(core: Temporal, spatial: Compressor, values: Array, points: Curve) -> Row:
    """Of one compressor, at the PSNR that it has frame by frame at TEMPORAL_AT."""
    psnr = psnr_at(points, TEMPORAL_AT)
    if psnr is None:
        return {}
    files = [near(one, values, points, psnr) for one in (core, spatial)]
    if files[0] is None or files[1] is None:
        return {}
    return {
        "over_frames": len(files[0].data) / len(files[1].data),
        "psnr": psnr,
        "ratios": [file.report.ratio for file in files if file is not None],
    }


def show(result: dict[str, Any]) -> None:
    """A table for each scan."""
    for name, scan in result["scans"].items():
        shape = " x ".join(map(str, scan["shape"]))
        print(f"\n{name}: {scan['modality']}, {shape}, {scan['dtype']}; PSNR, dB, at ratios of")
        print(f"  {'':<18}" + "".join(f"{ratio:>9}" for ratio in RATIOS) + f"{'enc s':>9}{'dec s':>9}")
        for who, row in scan["compressors"].items():
            psnrs = [row["psnr_at"][str(ratio)] for ratio in RATIOS]
            cells = ["" if psnr is None else f"{psnr:.2f}" for psnr in psnrs]
            if who in scan["lossless"] and not any(cells):
                cells[0] = f"{scan['lossless'][who]:.2f}:1"
            times = f"{row['encode_s']:>9.2f}{row['decode_s']:>9.2f}"
            print(f"  {who:<18}" + "".join(f"{cell:>9}" for cell in cells) + times)
        if auto := scan.get("auto"):
            print(
                f"  auto at {auto['psnr']:.2f} dB took {auto['chose']} ({auto['ratio']:.2f}:1, "
                f"{auto['cpu_s']:.0f} s); best alone was {auto['best']}"
            )
        print("  " + ", ".join(f"{key} {number(scan[key])}" for key in KEYS if key in scan))
    show_targets(result["targets"])
