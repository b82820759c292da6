"""`tomotrain export`: a volume, plain or compressed, as one file that other programs read."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from service.commands.common import AsJson, BadOption, Scan, Url, connected, errors, refuse_taken
from service.compression import export as export_scan
from service.schemas import JobView
from service.sending import refuse_unknown
from service.terminal import pairs
from service.watcher import Watcher


class Form(StrEnum):
    """What a volume can be written as."""

    NIFTI = "nifti"
    OME_ZARR = "ome-zarr"
    DICOM = "dicom"


ENDINGS = {Form.NIFTI: (".nii.gz",), Form.OME_ZARR: (".zip", ".ozx"), Form.DICOM: (".zip",)}


def export(
    scan: Scan,
    output: Annotated[
        Path,
        typer.Option(help="File to write: .nii.gz for nifti, .zip or .ozx for ome-zarr, .zip for dicom."),
    ],
    form: Annotated[
        Form,
        typer.Option(
            "--format",
            help="nifti; ome-zarr: a zip of an OME-Zarr 0.5 store; dicom: a zip of single-frame instances.",
        ),
    ] = Form.NIFTI,
    keep_codecs: Annotated[
        bool,
        typer.Option("--keep-codecs", help="With ome-zarr: leave compressed chunks as they are, and small."),
    ] = False,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Write a volume of the service, or a scan that is sent first, as one file."""
    refuse_wrong_name(output, form)
    if keep_codecs and form is not Form.OME_ZARR:
        raise BadOption("--keep-codecs: only Zarr has chunks that could keep them; add --format ome-zarr")
    refuse_unknown(scan)
    refuse_taken(output)
    with connected(url) as client:
        with Watcher(errors) as watcher:
            job = export_scan(client, scan, {"format": form, "keep_codecs": keep_codecs}, output, watcher)
        show(job, output, as_json)


def refuse_wrong_name(output: Path, form: Form) -> None:
    """Raise BadOption for a name by which no program would know what is in the file."""
    if not output.name.lower().endswith(ENDINGS[form]):
        raise BadOption(f"--output {output}: as {form} its name must end in {' or '.join(ENDINGS[form])}")


def show(job: JobView, output: Path, as_json: bool) -> None:
    """Print what was written."""
    if as_json:
        print(job.model_dump_json())
        return
    result = job.result or {}
    rows = [
        ("format", f"{result['format']} {result['version']}"),
        ("voxels", f"{' x '.join(map(str, result['array_shape']))}, {result['dtype']}"),
        ("bytes", f"{result['stored_bytes']:,}"),
        ("sha-256", result["sha256"]),
        ("time to write", f"{result['seconds']:.2f} s"),
        *(("note", note) for note in result["notes"]),
    ]
    Console().print(pairs(str(output), rows))
