"""`tomotrain predict`: what a model says of a scan, and how far to trust it."""

from __future__ import annotations

import math
from typing import Annotated

import typer
from rich.console import Console

from service import learning
from service.commands.columns import CategoryOption, categories
from service.commands.common import AsJson, BadOption, Scan, Url, connected, errors
from service.learning_report import prediction_table
from service.schemas import JobView
from service.sending import refuse_unknown
from service.watcher import Watcher


def predict(
    model: Annotated[str, typer.Argument(help="The id of the job that made it: job_...")],
    scan: Scan,
    covariate: Annotated[
        list[str] | None, typer.Option(help="What the model wants beside the scan, NAME=NUMBER; repeatable.")
    ] = None,
    category: CategoryOption = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Send a scan, unless the service has it, and print the answer with its interval and warnings."""
    given = numbers(covariate, categories(category))
    refuse_unknown(scan)
    with connected(url) as client:
        with Watcher(errors) as watcher:
            job = learning.predict(client, model, scan, given, watcher)
        show(job, as_json)


def show(job: JobView, as_json: bool) -> None:
    """Print an answer."""
    if as_json:
        print(job.model_dump_json())
    else:
        Console().print(prediction_table(job))


def numbers(given: list[str] | None, words: dict[str, tuple[str, str]]) -> dict[str, float]:
    """NAME=NUMBER, or NAME=WORD for a category. Raises BadOption."""
    found = {}
    for text in given or []:
        name, _, value = (part.strip() for part in text.partition("="))
        if value in words.get(name, ()):
            found[name] = float(words[name].index(value))
        else:
            found[name] = _number(text, value)
    return found


def _number(text: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise BadOption(f"--covariate {text}: write NAME=NUMBER; for a word add --category NAME=FIRST,SECOND")
    return number
