"""`tomotrain evaluate`: what a model is worth on scans whose answers are known."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer
from rich.console import Console

from service.client import Client
from service.cohort_table import read_table
from service.commands.columns import CategoryOption, Cohort, CovariatesOption, TargetOption, columns
from service.commands.common import AsJson, Url, connected, errors
from service.learning import run_on_table
from service.learning_report import evaluation_tables
from service.watcher import Watcher


def evaluate(
    model: Annotated[str, typer.Argument(help="The id of the job that made it: job_...")],
    cohort: Cohort,
    target: TargetOption = "target",
    covariates: CovariatesOption = None,
    category: CategoryOption = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Ask a model about a CSV table of scans, and compare with what the table says."""
    meant = columns(target, covariates, category)
    with connected(url) as client:
        table = read_table(cohort, replace(meant, classes=tells_classes(client, model)))
        with Watcher(errors) as watcher:
            job = run_on_table(client, "evaluate", table, {"model": model}, watcher)
        if as_json:
            print(job.model_dump_json(exclude={"parameters"}))
        else:
            for part in evaluation_tables(job):
                Console().print(part)


def tells_classes(client: Client, model: str) -> bool:
    """Whether targets are names of classes: what made the model says so. Raises ServiceProblem for none."""
    job = client.job(model)
    return job.parameters.get("task", (job.result or {}).get("task")) == "classes"
