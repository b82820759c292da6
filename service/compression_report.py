"""What a compression came to, as a table for people."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from service.compression import Compressed
from service.terminal import pairs


def compression_table(done: Compressed) -> Table:
    """The numbers that matter, with their units and what they are measured against."""
    return pairs(done.volume.name, compression_rows(done.job.result or {}, done))


def compression_rows(result: dict[str, Any], done: Compressed) -> list[tuple[str, str]]:
    """Pairs of a name and a value in words."""
    return [
        ("wanted", result["target"]),
        ("source", f"{result['voxel_bytes']:,} bytes of voxels ({done.source.dtype})"),
        ("compressed", f"{result['coded_bytes']:,} bytes, all levels of the pyramid"),
        ("ratio", f"{result['ratio']:.4g}"),
        ("on disk", f"{result['stored_bytes']:,} bytes with metadata ({result['stored_ratio']:.4g}:1)"),
        ("PSNR", _psnr(result)),
        ("SSIM", f"{result['ssim']:.4f}, mean over slices"),
        ("largest error", f"{result['max_error']:g}, of any voxel"),
        ("compressor", _compressor(result)),
        ("time", f"{result['seconds']:.2f} s, measuring included"),
        ("volume", done.volume.id),
        ("job", done.job.id),
        *(("note", warning) for warning in done.volume.warnings),
    ]


def _psnr(result: dict[str, Any]) -> str:
    if result["psnr"] is None:
        return "no voxel has changed"
    return f"{result['psnr']:.2f} dB for a peak of {result['peak']:g}, the scan's maximum - minimum"


def _compressor(result: dict[str, Any]) -> str:
    setting = ", ".join(f"{name} = {number:.4g}" for name, number in result["setting"].items())
    passes = len(result["passes"])
    written = "written once" if passes == 1 else f"written {passes} times until it was met"
    return f"{result['compressor']}, {setting or 'without loss'}; {written}"
