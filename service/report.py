"""What an analysis found, as a table for people and as one JSON object for programs."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from service.analysis import Found
from service.schemas import VolumeView
from service.terminal import pairs


def document(found: Found) -> dict[str, Any]:
    """Everything, as plain JSON."""
    return {
        "volume": found.volume.model_dump(mode="json"),
        "job": found.job.model_dump(mode="json"),
        "result": found.job.result,
    }


def table(found: Found) -> Table:
    """The numbers that matter, with their units."""
    return pairs(found.volume.name, rows(found))


def rows(found: Found) -> list[tuple[str, str]]:
    """Pairs of a name and a value in words."""
    result = found.job.result or {}
    shape = found.volume.array_shape or []
    return [
        ("shape", f"{_times(shape)} ({', '.join(found.volume.axes or [])})"),
        ("spacing", _spacing(found.volume)),
        ("samples", f"{result['samples']:,} entries looked at ({result['unique_samples']:,} unique)"),
        ("unique cubes", f"{result['unique_cubes']:,} of {result['cube_size']}³ voxels, each encoded once"),
        ("share of the volume read", f"{result['share_read']:.2%} of its voxels, held-out cubes included"),
        ("chunks read", _chunks(result)),
        *_choice(result),
        ("ranks", ", ".join(map(str, result["ranks"]))),
        ("certificate", _certificate(result["certificate"])),
        ("time to embed", f"{result['seconds']:.2f} s"),
        ("peak memory of the worker", f"{result['peak_memory_bytes'] / 2**20:,.0f} MiB"),
        ("job", found.job.id),
        *(("note", warning) for warning in found.volume.warnings),
    ]


def _times(numbers: list[int]) -> str:
    return " x ".join(map(str, numbers))


def _spacing(volume: VolumeView) -> str:
    if volume.spacing is None:
        return "not known: the scan does not say"
    return " x ".join(f"{step:g}" for step in volume.spacing) + " mm (z, y, x)"


def _chunks(result: dict[str, Any]) -> str:
    if result["chunks_read"] is None:
        return "not counted: another cluster read them"
    return (
        f"{result['chunks_read']:,} ({result['chunk_share_read']:.0%} of the finest level), "
        f"{result['bytes_read'] / 1e6:,.2f} MB compressed"
    )


def _choice(result: dict[str, Any]) -> list[tuple[str, str]]:
    """How fibres were chosen; nothing where a service of an earlier version does not say."""
    if "sampling" not in result:
        return []
    if result["converged"]:
        how = f"ranks found for a tolerance of {result['tolerance']:g}"
    else:
        how = f"{result['oversampling']:g} times the rank, {_counted(result['sweeps'], 'sweep')}"
    if result["converged"] is False:
        how += f"; no ranks found for a tolerance of {result['tolerance']:g}"
    most = max(result["set_sizes"], default=1)
    return [("fibres chosen", f"up to {most:,} per bond ({how}); sampling by {result['sampling']}")]


def _counted(number: int, word: str) -> str:
    return f"{number:,} {word}" if number == 1 else f"{number:,} {word}s"


def _certificate(certificate: dict[str, Any]) -> str:
    """The overall centred error, in words: what it is, its bound, and what it was measured on."""
    overall = certificate["overall"]
    tested = f"on {certificate['held_out']:,} held-out cubes"
    if overall["centred_error"] is None:
        return f"{overall['note']} ({tested})"
    bound = overall["upper_bound"]
    most = (
        f"no bound: {overall['note']}"
        if bound is None
        else f"at most {bound:.3g} at {certificate['confidence']:.0%} confidence"
    )
    scale = "0: exact, 1: no better than the mean value everywhere"
    return f"centred error {overall['centred_error']:.3g} ({scale}); {most} ({tested})"
