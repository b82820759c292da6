"""`tomotrain audit`: prove that the audit log is whole, and take a copy of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict
from enum import StrEnum
from typing import Annotated

import typer

from service import audit_fhir
from service.commands.common import BadOption, DataRoot, errors
from service.commands.inside import opened
from service.terminal import words
from storage.audit import AuditLog, AuditRecord

audit = typer.Typer(no_args_is_help=True, help="The audit log.")

_KEPT = re.compile(r"([1-9][0-9]{0,17}):([0-9a-f]{64})")


class Form(StrEnum):
    """How a copy is written."""

    LINES = "lines"
    FHIR = "fhir"


Kept = Annotated[
    str | None,
    typer.Option("--kept", help="SEQUENCE:HASH that an earlier `verify` printed: finds what was cut off."),
]
As = Annotated[
    Form, typer.Option("--as", help="lines: a JSON object a line; fhir: an R4 Bundle of AuditEvents.")
]


@audit.command("verify")
def verify(kept: Kept = None, root: DataRoot = None) -> None:
    """Follow the chain of hashes from the first record to the last; exit status 1 where it breaks."""
    sequence, digest = _parsed(kept)
    with opened(root) as (_, catalogue):
        log = AuditLog(catalogue.database)
        broken = log.verify()
        last = log.records(limit=1)
        known = log.records(before=sequence + 1, limit=1) if sequence else []
    if broken is not None:
        _end(f"record {broken.sequence} {broken.reason}")
    if sequence and [(each.sequence, each.hash) for each in known] != [(sequence, digest)]:
        _end(
            f"record {sequence} is not the one that was kept: records were cut off, or the log was made anew"
        )
    print(f"{last[0].sequence}:{last[0].hash}" if last else "no records")


@audit.command("export")
def export(form: As = Form.LINES, root: DataRoot = None) -> None:
    """Write every record to standard output, oldest first."""
    with opened(root) as (_, catalogue):
        lines = {Form.LINES: _lines, Form.FHIR: _fhir}[form]
        for line in lines(AuditLog(catalogue.database).everything()):
            print(line)


def _lines(records: Iterator[AuditRecord]) -> Iterator[str]:
    for record in records:
        yield json.dumps(asdict(record))


def _fhir(records: Iterator[AuditRecord]) -> Iterator[str]:
    """A Bundle, an entry a line: a long log is never in memory whole."""
    yield '{"resourceType": "Bundle", "type": "collection", "entry": ['
    comma = " "
    for record in records:
        yield f"{comma}{json.dumps({'resource': audit_fhir.event(record)})}"
        comma = ","
    yield "]}"


def _parsed(kept: str | None) -> tuple[int, str]:
    if kept is None:
        return 0, ""
    match = _KEPT.fullmatch(kept)
    if match is None:
        raise BadOption(f"--kept {kept}: give it as SEQUENCE:HASH, as `tomotrain audit verify` prints it")
    return int(match[1]), match[2]


def _end(fault: str) -> None:
    errors.print(words(f"The audit log is broken: {fault}"))
    raise typer.Exit(1)
