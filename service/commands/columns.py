"""Options that say what the columns of a cohort's table mean."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.cohort_table import Columns
from service.commands.common import BadOption

Cohort = Annotated[
    Path, typer.Argument(help="A CSV table; paths in its column scan are relative to its folder.")
]
TargetOption = Annotated[str, typer.Option(help="Column that holds the target.")]
CovariatesOption = Annotated[
    str | None,
    typer.Option(help="Columns to use beside the scan, NAME,NAME; by default all that are left."),
]
CategoryOption = Annotated[
    list[str] | None,
    typer.Option(help="A column of two words, as sex=M,F: the first becomes 0, the second 1; repeatable."),
]


def columns(
    target: str, covariates: str | None, category: list[str] | None, *, classes: bool = False
) -> Columns:
    """What the columns mean. Raises BadOption."""
    chosen = None if covariates is None else tuple(named(covariates))
    return Columns(target, chosen, categories(category), classes)


def named(text: str) -> list[str]:
    """Names parted by commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def categories(given: list[str] | None) -> dict[str, tuple[str, str]]:
    """The two words of each column. Raises BadOption."""
    found = {}
    for text in given or []:
        name, _, words = text.partition("=")
        parts = [word.strip() for word in words.split(",")]
        if not name or len(parts) != 2 or not all(parts) or parts[0] == parts[1]:
            raise BadOption(
                f"--category {text}: write NAME=FIRST,SECOND; for more than two words make a column of 0 and "
                "1 for each but one"
            )
        found[name] = (parts[0], parts[1])
    return found
