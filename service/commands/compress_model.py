"""`tomotrain compress-model`: a trained network becomes a smaller one that answers nearly alike."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

import typer
from rich.console import Console

from service.cohort_table import read_table
from service.commands.columns import CategoryOption, Cohort, CovariatesOption, TargetOption, columns
from service.commands.common import AsJson, BadOption, Url, connected, errors
from service.commands.evaluate import tells_classes
from service.learning import run_on_table
from service.learning_report import compressed_model_tables
from service.schemas import JobView
from service.watcher import Watcher

TOGETHER = {"pcr", "macs", "bytes"}
"""Targets that may be given together."""


def compress_model(
    model: Annotated[str, typer.Argument(help="The id of the job that made it: job_...")],
    cohort: Cohort,
    method: Annotated[
        str, typer.Option(help="ring (tensor rings and SVDs), or spectral weights: svdp, sttp.")
    ] = "ring",
    eps: Annotated[float | None, typer.Option(help="Relative error of each kernel, at most.")] = None,
    pcr: Annotated[float | None, typer.Option(help="Parameters before over after, at least, as 3.")] = None,
    macs: Annotated[int | None, typer.Option(help="Multiplications for one scan, at most.")] = None,
    size: Annotated[
        int | None, typer.Option("--bytes", help="Bytes of the network's tensors, at most.")
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(help="By how much the first metric may become worse, in its unit: RMSE for a mean."),
    ] = None,
    rank: Annotated[int | None, typer.Option(help="Rank of spectral weights.")] = None,
    share: Annotated[
        float | None, typer.Option(help="Their rank as a share of the smaller side of each layer's matrix.")
    ] = None,
    execution: Annotated[
        str | None, typer.Option(help="How rings run: rebuild or fewest (multiplications).")
    ] = None,
    measure: Annotated[
        str | None,
        typer.Option(help="What rings' errors are measured by: kernels, or answers to the table's scans."),
    ] = None,
    judged_share: Annotated[
        float | None, typer.Option(help="Of the patients, who judge and have no part in making the model.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Of training afterwards; 0 if not given.")] = None,
    rate: Annotated[float | None, typer.Option(help="Learning rate of these epochs.")] = None,
    seed: Annotated[int, typer.Option(help="Of every random choice.")] = 0,
    target: TargetOption = "target",
    covariates: CovariatesOption = None,
    category: CategoryOption = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Make a model smaller, to a target; the scans of a CSV table recalibrate it and judge it."""
    goal = goal_of(
        {
            "eps": eps,
            "pcr": pcr,
            "macs": macs,
            "bytes": size,
            "max_drop": max_drop,
            "rank": rank,
            "share": share,
        }
    )
    others = {
        "execution": execution,
        "measure": measure,
        "judged_share": judged_share,
        "epochs": epochs,
        "rate": rate,
    }
    asked = {
        "model": model,
        "method": method,
        "seed": seed,
        **goal,
        **{name: value for name, value in others.items() if value is not None},
    }
    meant = columns(target, covariates, category)
    with connected(url) as client:
        table = read_table(cohort, replace(meant, classes=tells_classes(client, model)))
        with Watcher(errors) as watcher:
            job = run_on_table(client, "compress-model", table, asked, watcher)
        show(job, as_json)


def goal_of(targets: dict[str, float | None]) -> dict[str, Any]:
    """The targets that are given. Raises BadOption for none, and for those that do not go together."""
    given = {name: value for name, value in targets.items() if value is not None}
    if not given or (len(given) > 1 and not given.keys() <= TOGETHER):
        told = " and ".join(map(_option, given)) or "no target"
        alone = ", ".join(_option(name) for name in targets if name not in TOGETHER)
        some = ", ".join(_option(name) for name in targets if name in TOGETHER)
        raise BadOption(f"{told}: give one of {alone}, or some of {some}")
    return given


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def show(job: JobView, as_json: bool) -> None:
    """Print what a compression came to."""
    if as_json:
        print(job.model_dump_json(exclude={"parameters"}))
    else:
        for part in compressed_model_tables(job):
            Console().print(part)
