"""`tomotrain doctor`: what is wrong with an installation, why, and what cures it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from functools import partial
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from service import machine, record_check
from service.commands.common import DEFAULT_HOST, DEFAULT_PORT, AsJson, DataRoot, data_root, errors
from service.examination import Look, Result, Verdict, examine, worst
from service.settings import ServiceSettings
from service.terminal import words
from storage.catalogue import Catalogue

STATUSES = {Verdict.OK: 0, Verdict.WARNING: 1, Verdict.FAULT: 2}
_STYLES = {Verdict.OK: "green", Verdict.WARNING: "yellow", Verdict.FAULT: "bold red"}

Port = Annotated[int, typer.Option(help="Port that the service listens on, or is to.", max=65535)]


def doctor(root: DataRoot = None, port: Port = DEFAULT_PORT, as_json: AsJson = False) -> None:
    """Look at everything that the service needs. Exit status 0: all is well, 1: warnings, 2: faults."""
    settings = ServiceSettings(data_root=data_root(root))
    with errors.status("Looking"):
        results = list(_results(settings, port))
    verdict = worst(results)
    if as_json:
        print(json.dumps({"verdict": verdict, "results": [asdict(result) for result in results]}))
    else:
        Console().print(_table(results))
    raise typer.Exit(STATUSES[verdict])


def _results(settings: ServiceSettings, port: int) -> Iterator[Result]:
    yield from examine(
        (
            ("python", machine.python),
            ("clock", machine.clock),
            ("data root", partial(machine.data_root, settings)),
            ("broker", partial(machine.broker, settings)),
            ("port", partial(machine.port, DEFAULT_HOST, port)),
            ("gpu", partial(machine.gpu, os.environ)),
        )
    )
    if settings.db_url is None and not (settings.data_root / "catalogue.db").is_file():
        return
    known = list(
        examine(
            (
                ("catalogue file", partial(record_check.integrity, settings)),
                ("catalogue", partial(record_check.schema, settings)),
            )
        )
    )
    yield from known
    if worst(known) is Verdict.OK:
        with closing(Catalogue.open(settings.catalogue_url)) as catalogue:
            yield from examine(_of_rows(catalogue, settings))


def _of_rows(catalogue: Catalogue, settings: ServiceSettings) -> tuple[tuple[str, Look], ...]:
    return (
        ("audit log", partial(record_check.audit_log, catalogue)),
        ("orphans", partial(record_check.orphans, catalogue, settings)),
        ("work", partial(record_check.work, catalogue, settings)),
    )


def _table(results: list[Result]) -> Table:
    """A line for each thing; the cure beside what is wrong."""
    shown = Table(show_header=False, expand=False)
    for _ in range(3):
        shown.add_column(overflow="fold")
    for result in results:
        told = words(result.found if not result.cure else f"{result.found}. Cure: {result.cure}")
        shown.add_row(words(result.verdict, _STYLES[result.verdict]), words(result.name, "bold"), told)
    return shown
