"""`tomotrain train`: a cohort becomes a model, with what it is worth."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.console import Console

from service.cohort_table import read_table
from service.commands.columns import CategoryOption, Cohort, CovariatesOption, TargetOption, columns, named
from service.commands.common import AsJson, BadOption, Url, connected, errors
from service.learning import run_on_table
from service.learning_report import training_tables
from service.schemas import JobView
from service.watcher import Watcher


def train(
    cohort: Cohort,
    regressor: Annotated[
        str,
        typer.Option(help="A recipe (tomotrain recipes lists them), or auto: the simplest good one."),
    ] = "auto",
    candidates: Annotated[
        str | None, typer.Option(help="What auto chooses among, NAME,NAME; by default the service's choice.")
    ] = None,
    task: Annotated[str, typer.Option(help="What is asked: mean, quantiles or classes.")] = "mean",
    target: TargetOption = "target",
    unit: Annotated[str, typer.Option(help="Unit of the target, for those who read the answers.")] = "",
    covariates: CovariatesOption = None,
    category: CategoryOption = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            help="A setting of the recipe, NAME=VALUE (tomotrain recipes lists them); with auto NAME is a "
            "recipe's and VALUE a JSON table, as voxel_ridge='{\"grid\": 8}'; repeatable."
        ),
    ] = None,
    preparation: Annotated[
        list[str] | None,
        typer.Option(
            help="How scans are prepared, NAME=VALUE, as grid=resample (tomotrain recipes lists them); "
            "repeatable."
        ),
    ] = None,
    folds: Annotated[int, typer.Option(help="Parts, split by patient; the table's column fold wins.")] = 5,
    seed: Annotated[int, typer.Option(help="Of every random choice.")] = 0,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Learn from a CSV table with columns scan, patient and target; other columns are covariates."""
    parameters = {
        "task": task,
        "regressor": regressor,
        "settings": settings(setting),
        "preparation": settings(preparation),
        "folds": folds,
        "seed": seed,
        "target_name": target,
        "target_unit": unit,
        **({} if candidates is None else {"candidates": named(candidates)}),
    }
    table = read_table(cohort, columns(target, covariates, category, classes=task == "classes"))
    with connected(url) as client:
        with Watcher(errors) as watcher:
            job = run_on_table(client, "train", table, parameters, watcher)
        show(job, as_json)


def show(job: JobView, as_json: bool) -> None:
    """Print what a training came to."""
    if as_json:
        print(job.model_dump_json(exclude={"parameters"}))
    else:
        for part in training_tables(job):
            Console().print(part)


def settings(given: list[str] | None) -> dict[str, Any]:
    """NAME=VALUE, the value as JSON where it is some, else as a word. Raises BadOption."""
    pairs = [text.partition("=") for text in given or []]
    for name, equals, value in pairs:
        if not (name and equals and value):
            raise BadOption(f"{name}{equals}{value}: a setting is written NAME=VALUE")
    return {name: _value(value) for name, _, value in pairs}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
