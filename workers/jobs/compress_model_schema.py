"""What `compress-model` takes, and what it says."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from models.compression.budgets import BudgetConfig
from models.compression.planning import Config
from models.rsdtr.candidates import RingConfig
from models.rsdtr.cuts import SMALLEST_EPS
from models.sttp.apply import SpectralConfig
from workers.cohorts import MOST_ROWS, Row
from workers.jobs.base import Parameters, Result, Warned
from workers.jobs.evaluate import Bounded, Covered
from workers.jobs.train import Widening
from workers.models import MODEL_ID
from workers.schemas import of_types, pointer

RING, SVDP, STTP = "ring", "svdp", "sttp"
BUDGETS = ("pcr", "macs", "bytes")
TARGETS: dict[str, tuple[tuple[str, ...], ...]] = {
    RING: (("eps",), BUDGETS, ("max_drop",)),
    SVDP: (("rank",), ("share",)),
    STTP: (("rank",), ("share",)),
}
"""What each method can be told to come to: one of these, or some of one's parts."""
JUDGING_SHARE = 0.3
"""Of the patients, where some have to be kept for judging."""
FINER = 10.0
"""The learning rate of the training over that of a descent afterwards."""


class CompressModelParameters(Parameters):
    """Which model, to what, and by which scans."""

    model: str = Field(min_length=1, max_length=100, description=MODEL_ID)
    rows: list[Row] = Field(
        min_length=1,
        max_length=MOST_ROWS,
        description="scans with their true targets: they recalibrate the model, and judge it",
    )
    method: Literal["ring", "svdp", "sttp"] = Field(
        "ring",
        description="ring: tensor rings, or SVDs where these are smaller, to an eps, a max_drop, or within "
        "all of pcr, macs and bytes that are given; svdp, sttp: spectral weights to a rank or a share",
    )
    eps: float | None = Field(
        None,
        ge=SMALLEST_EPS,
        lt=1,
        json_schema_extra=of_types,
        description="relative error of each layer's kernel, at most (Frobenius norm)",
    )
    pcr: float | None = Field(
        None,
        ge=1,
        le=1e6,
        json_schema_extra=of_types,
        description="parameters of the network over those of the compressed one, at least",
    )
    macs: int | None = Field(
        None,
        ge=1,
        le=1 << 60,
        json_schema_extra=of_types,
        description="multiplications for one scan, at most, of linear layers and convolutions",
    )
    bytes: int | None = Field(
        None, ge=1, le=1 << 60, json_schema_extra=of_types, description="of the network's tensors, at most"
    )
    max_drop: float | None = Field(
        None,
        ge=0,
        le=1e12,
        json_schema_extra=of_types,
        description="by how much the task's first metric may become worse, in its unit: RMSE for a mean, "
        "pinball loss for quantiles, log loss for classes; on the rows that do not judge",
    )
    rank: int | None = Field(
        None,
        ge=1,
        le=1 << 20,
        json_schema_extra=of_types,
        description="of spectral weights, in all layers that change",
    )
    share: float | None = Field(
        None,
        gt=0,
        le=1,
        json_schema_extra=of_types,
        description="the rank over the smaller side of each layer's matrix",
    )
    execution: Literal["auto", "rebuild", "fewest"] = Field(
        "auto",
        description="of rings and SVDs: rebuild runs each layer with its dense kernel, made once; fewest "
        "with its factors, by the fewest multiplications; auto: fewest for macs, else rebuild",
    )
    measure: Literal["answers", "kernels"] = Field(
        "answers",
        description="what errors of rings and SVDs are measured by. answers: what they do to the answers to "
        "these scans, without targets; eps is of all layers, and sums of rank-one terms are tried too. "
        "kernels: each layer's by itself, which is done sooner and takes less memory",
    )
    judged_share: float | None = Field(
        None,
        gt=0,
        lt=1,
        json_schema_extra=of_types,
        description="of the patients: these judge, and have no part in making the model; null: "
        f"{JUDGING_SHARE:g} where targets are used (epochs, max_drop), else all judge and all recalibrate",
    )
    epochs: int = Field(0, ge=0, le=10_000, description="of training on the rows that do not judge")
    rate: float | None = Field(
        None,
        gt=0,
        le=1,
        json_schema_extra=of_types,
        description=f"learning rate of these epochs; null: the training's over {FINER:g}",
    )
    seed: int = Field(
        0, ge=0, lt=1 << 63, description="of the choice of patients, of epochs, and of the intervals' draws"
    )

    @property
    def labels(self) -> bool:
        """Whether targets have a part in making the model."""
        return self.epochs > 0 or self.max_drop is not None

    @property
    def judging_share(self) -> float | None:
        """Of the patients, those who judge and have no part in making the model; None: all do both."""
        return JUDGING_SHARE if self.judged_share is None and self.labels else self.judged_share

    @property
    def goal(self) -> dict[str, float]:
        """The targets that are given, by name."""
        every = dict.fromkeys(name for each in TARGETS.values() for names in each for name in names)
        return {name: value for name in every if (value := getattr(self, name)) is not None}

    def settings(self) -> dict[str, Any]:
        """All that was asked for but the model and the rows."""
        return self.model_dump(mode="json", exclude={"model", "rows"}, exclude_none=True)

    def problems(self) -> list[tuple[str, str]]:
        """What does not go together: JSON pointers, and what is wrong there."""
        own = TARGETS[self.method]
        told = f"{self.method} takes {', or '.join(' and '.join(names) for names in own)}"
        group = {name: names for names in own for name in names}
        wrong = [(pointer(name), f"not for this method: {told}") for name in self.goal if name not in group]
        fitting = [name for name in self.goal if name in group]
        if not fitting and not wrong:
            wrong.append((pointer(own[0][0]), f"missing: {told}"))
        wrong += [
            (pointer(name), f"beside {fitting[0]}: {told}")
            for name in fitting[1:]
            if group[name] != group[fitting[0]]
        ]
        if self.execution != "auto" and (self.method != RING or self.max_drop is not None):
            told = "for the method ring with eps, pcr, macs or bytes; leave it out"
            wrong.append((pointer("execution"), told))
        if self.measure == "kernels" and self.method != RING:
            wrong.append((pointer("measure"), "for the method ring; leave it out"))
        if self.rate is not None and not self.epochs:
            wrong.append((pointer("rate"), "of no epochs; give epochs too, or leave it out"))
        return wrong

    @property
    def config(self) -> Config | None:
        """As a plan takes it; None for a `max_drop`. Raises InvalidConfig."""
        if self.method != RING:
            return SpectralConfig(self.method, rank=self.rank, rho=self.share)
        if self.max_drop is not None:
            return None
        if self.eps is not None:
            return RingConfig(eps=self.eps, canonical=self.by_answers)
        return BudgetConfig(pcr=self.pcr, macs=self.macs, bytes=self.bytes, canonical=self.by_answers)

    @property
    def by_answers(self) -> bool:
        """Whether errors are measured by what they do to answers."""
        return self.method == RING and self.measure == "answers"


class Sizes(Result):
    """A count of the network before and after."""

    before: int
    after: int


class Seconds(Result):
    """For one scan that is read; the process's own time, on a GPU the wall's."""

    p50_s: float
    p95_s: float


class Latencies(Result):
    """Measured in turns, in the same process."""

    before: Seconds
    after: Seconds


class MetricChange(Result):
    """A metric on the rows that judge, of both models, and how it changed: paired, by patient, at 95 %."""

    before: Bounded
    after: Bounded
    difference: Bounded = Field(description="after less before")


class Agreement(Result):
    """How far apart the answers are: Bland & Altman's limits, mean +- 1.96 deviations of the differences."""

    of: str = Field(description="the number of each answer that is compared")
    largest_change: float = Field(description="of any number of any answer")
    mean: float
    lower: float
    upper: float
    other_classes: int | None = Field(description="rows with another most probable class; null for numbers")


class Counted(Result):
    """How much of the table had a part."""

    rows: int
    scans: int
    patients: int


class Ancestor(Result):
    """A job whose model this one was made of."""

    job: str
    kind: str
    model_digest: str
    bytes: int


class CompressModelResult(Result):
    """The smaller model, what it saves, and what it changes."""

    notice: str
    model: str = Field(description="the id of the job whose model was compressed")
    parent_digest: str
    model_digest: str = Field(description="sha-256 of the artifact model.safetensors")
    lineage: list[Ancestor] = Field(description="back to the first training, which comes first")
    regressor: str
    task: str
    classes: list[str]
    target_name: str
    target_unit: str
    covariates: list[str]
    method: str
    goal: dict[str, float] = Field(description="what was asked for")
    pcr: float = Field(description="parameters before over after")
    fcr: float = Field(description="multiplications before over after, by the factors")
    fcr_executed: float = Field(description="the same of what is executed: kernels may be rebuilt")
    parameters: Sizes
    macs: Sizes
    bytes: Sizes = Field(description="of the models' files")
    latency: Latencies
    layers_changed: int
    layers_left: int
    largest_layer_error: float = Field(description="||W - W'|| / ||W|| of any kernel, as planned")
    metrics: dict[str, MetricChange] = Field(description="the task's first is what a max_drop is of")
    agreement: Agreement
    coverage: list[Covered] = Field(description="shares of truths in the widened intervals or sets")
    intervals: list[Widening]
    guarantee: str = Field(description="what the intervals promise")
    made_on: Counted = Field(description="what recalibrated the model, and trained it where asked")
    judged_on: Counted
    judged_rows: list[int] | None = Field(description="their numbers in the table, from 0; null: all")
    epochs: int
    warnings: list[Warned]
    seconds: float
    peak_memory_bytes: int
    table_digest: str
    packages: dict[str, str]
    seed: int
    device: str
