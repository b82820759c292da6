"""What a denoising or a completion came to, as a table for people."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from service.restoring import Restored
from service.terminal import pairs

Rows = list[tuple[str, str]]


def denoising_table(done: Restored) -> Table:
    """How strong the noise is taken for, and what was done about it."""
    result: dict[str, Any] = done.job.result or {}
    noise, found = result["noise"], "estimated from the scan" if result["estimated"] else "as given"
    rows = [("noise", f"{result['sigma']:.4g} standard deviation, {found}")]
    if noise["median"] is not None:
        told = f"{noise['low']:.4g} to {noise['high']:.4g} in nine of ten tiles ({noise['tiles']} looked at)"
        rows.append(("tile by tile", told))
    rows += [
        ("taken away", f"{result['removed']:.4g}, root mean square"),
        ("changed", f"{100 * result['changed']:.3g} % of the voxels"),
    ]
    return pairs(done.volume.name, [*rows, *_where(done)])


def completion_table(done: Restored) -> Table:
    """How much was filled, and what errors to expect."""
    result: dict[str, Any] = done.job.result or {}
    rows = [("filled", f"{result['gaps']:,} voxels, {100 * result['share']:.3g} % of all")]
    for kind, told in (("scattered", "single hidden voxels"), ("blocks", "hidden blocks of 4 x 4 x 4")):
        rows.append((f"error, {kind}", _errors(result[kind], told)))
    return pairs(done.volume.name, [*rows, *_where(done)])


def _errors(held_out: dict[str, Any], told: str) -> str:
    if held_out["rmse"] is None:
        return f"not known: there were no {told}"
    quality = "" if held_out["psnr"] is None else f" ({held_out['psnr']:.1f} dB)"
    return f"{held_out['rmse']:.4g}{quality}, root mean square at {held_out['voxels']:,} voxels of {told}"


def _where(done: Restored) -> Rows:
    result: dict[str, Any] = done.job.result or {}
    return [
        ("time", f"{result['seconds']:.2f} s"),
        ("volume", done.volume.id),
        ("job", done.job.id),
        *(("note", warning) for warning in done.volume.warnings),
    ]
