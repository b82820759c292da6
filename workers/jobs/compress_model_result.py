"""What a compression of a model came to: its artifacts and its result."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from models.compression.reports import Latency, Report
from models.learning.conformal import Change
from models.learning.metrics import metrics_of
from models.learning.preparation import Caveat
from models.types import Int64
from storage.artifacts import JSON, ArtifactWriter
from storage.jobs import Artifact, Job
from workers.answers import CSV, pairs_csv
from workers.cohorts import Table
from workers.comparing import Compared, Pairs
from workers.compressing import Network, Parts, Smaller
from workers.jobs.base import Warned
from workers.jobs.compress_model_schema import (
    Agreement,
    Ancestor,
    CompressModelParameters,
    CompressModelResult,
    Counted,
    Latencies,
    MetricChange,
    Seconds,
    Sizes,
)
from workers.jobs.evaluate import Bounded, covered, outside, seen_before
from workers.jobs.train import Widening
from workers.lineage import Compression, Training
from workers.memory import peak_bytes
from workers.models import NOTICE, Found, TrainedModel, model_artifact
from workers.packages import versions
from workers.plots import agreement_png
from workers.preparing import Prepared

PLAN, REPORT, PREDICTIONS, PICTURE = "plan.json", "report.json", "predictions.csv", "agreement.png"


@dataclass(frozen=True, eq=False)
class Made:
    """All that a compression came to. `model` is as it is read again from its file."""

    parameters: CompressModelParameters
    found: Found
    table: Table
    parts: Parts
    smaller: Smaller
    model: Network
    pairs: Pairs
    measured: Report
    scans: Prepared

    @cached_property
    def trained(self) -> TrainedModel:
        """The model with what belongs to it."""
        parent, parameters = self.found.trained, self.parameters
        step = Compression(
            parent=self.found.sha256,
            settings=parameters.settings(),
            plan=self.smaller.plan_digest,
            made_on=Training.of(self.table, parameters.seed, self.parts.making.tolist()),
            labels=parameters.labels,
        )
        change = Change(
            self.pairs.largest_change,
            patients=len(set(self.pairs.patients)),
            apart=self.parts.apart and not self._seen,
        )
        return replace(
            parent,
            model=self.model,
            conformal=parent.conformal.widened(change),
            scores=(),
            lineage=(*parent.lineage, step),
        )

    @cached_property
    def metrics(self) -> dict[str, Compared]:
        """Of both models, the task's first one first."""
        return {metric.name: each for metric, each in self.pairs.metrics(self.parameters.seed)}

    def write(self, artifacts: ArtifactWriter) -> tuple[Artifact, ...]:
        """The model, its plan, its report, both models' answers, and their agreement as a picture."""
        rows, pairs, parent = self.parameters.rows, self.pairs, self.found.trained
        answers = pairs_csv(rows, pairs.rows.tolist(), pairs.task, pairs.before, pairs.after)
        name = parent.target_name + (f" ({parent.target_unit})" if parent.target_unit else "")
        what = name if pairs.task.kind != "classes" else f"{name}, {pairs.indicator}"
        picture = agreement_png(*pairs.indicators, pairs.agreement, what, NOTICE)
        return (
            self.trained.save(artifacts),
            artifacts.write_bytes(PLAN, self.smaller.plan.to_json().encode(), JSON),
            artifacts.write_json(REPORT, self._report()),
            artifacts.write_bytes(PREDICTIONS, answers, CSV),
            artifacts.write_bytes(PICTURE, picture, "image/png"),
        )

    def result(self, device: str, model: Artifact, seconds: float) -> CompressModelResult:
        """What is told of it."""
        parameters, measured, pairs, plan = self.parameters, self.measured, self.pairs, self.smaller.plan
        trained, agreement, parent = self.trained, self.pairs.agreement, model_artifact(self.found.jobs[-1])
        changed = len(plan.forms)
        return CompressModelResult(
            notice=NOTICE,
            model=parameters.model,
            parent_digest=self.found.sha256,
            model_digest=model.sha256,
            lineage=[_ancestor(job) for job in self.found.jobs],
            regressor=trained.recipe.name,
            task=trained.task.kind,
            classes=list(trained.task.classes),
            target_name=trained.target_name,
            target_unit=trained.target_unit,
            covariates=list(trained.names),
            method=parameters.method,
            goal=parameters.goal,
            pcr=measured.pcr,
            fcr=measured.fcr,
            fcr_executed=measured.fcr_executed,
            parameters=_sizes(measured.parameters),
            macs=_sizes(measured.macs),
            bytes=_sizes((parent.size, model.size)),
            latency=Latencies(**dict(zip(("before", "after"), map(_seconds, measured.latency), strict=True))),
            layers_changed=changed,
            layers_left=len(plan.layers) - changed,
            largest_layer_error=max((layer.error for layer in plan.layers), default=0.0),
            metrics={name: _change(each) for name, each in self.metrics.items()},
            agreement=Agreement(
                of=pairs.indicator,
                largest_change=pairs.largest_change,
                mean=agreement.mean,
                lower=agreement.lower,
                upper=agreement.upper,
                other_classes=pairs.other_classes,
            ),
            coverage=covered(trained.conformal, pairs.after, pairs.targets, pairs.patients, parameters.seed),
            intervals=[Widening(**level) for level in trained.conformal.to_json()["levels"]],
            guarantee=trained.conformal.guarantee,
            made_on=self._counted(self.parts.making),
            judged_on=self._counted(self.parts.judging),
            judged_rows=pairs.rows.tolist() if self.parts.apart else None,
            epochs=parameters.epochs,
            warnings=Warned.all([*self._seen, *self._warnings()]),
            seconds=seconds,
            peak_memory_bytes=peak_bytes(),
            table_digest=self.table.sha256,
            packages=versions(),
            seed=parameters.seed,
            device=device,
        )

    @cached_property
    def _seen(self) -> list[Caveat]:
        """Whom of those that judge the parent has learnt from."""
        scans = self.parts.judging.tolist()
        patients, digests = self.table.patients, self.table.digests
        return seen_before(
            self.found.trained, [patients[scan] for scan in scans], [digests[scan] for scan in scans]
        )

    def _warnings(self) -> list[Caveat]:
        """What a reader of the figures should know."""
        told = [*outside(self.found.trained, self.table), *self.scans.warnings()]
        if not self.parts.apart:
            text = "the scans that judge recalibrated the model too, without targets: judged_share parts them"
            told.append(Caveat("judged-recalibrated", text))
        if not self.smaller.plan.forms:
            text = "no layer changed: none would be smaller within the target"
            told.append(Caveat("nothing-smaller", text))
        return told + self._losses()

    def _losses(self) -> list[Caveat]:
        """That the first metric is worse, as far as its interval tells, or worse than was allowed."""
        metric, (name, each) = metrics_of(self.pairs.task)[0], next(iter(self.metrics.items()))
        less, sign, allowed = each.difference, -1 if metric.higher_is_better else 1, self.parameters.max_drop
        told, worse = [], sign * (less.value or 0.0)
        text = f"{name} is worse by {worse:.3g} on the rows that judge"
        if less.low is not None and less.high is not None and min(sign * less.low, sign * less.high) > 0:
            told.append(Caveat("metric-worse", f"{text} (95 %: {less.low:.3g} to {less.high:.3g})"))
        if allowed is not None and worse > allowed:
            told.append(Caveat("drop-exceeded", f"{text}: more than {allowed:.3g}, which held on the others"))
        return told

    def _counted(self, scans: Int64) -> Counted:
        patients = {self.table.patients[scan] for scan in scans.tolist()}
        rows = int(np.isin(self.table.scan_of, scans).sum())
        return Counted(rows=rows, scans=len(scans), patients=len(patients))

    def _report(self) -> dict[str, Any]:
        """Every layer, every metric, and where the model came from."""
        return {
            "notice": NOTICE,
            "settings": self.parameters.settings(),
            "measured": asdict(self.measured),
            "layers": [
                {"name": each.name, "kind": each.kind, "error": each.error, "left_because": each.reason}
                for each in self.smaller.plan.layers
            ],
            "metrics": {
                name: {which: interval.to_json() for which, interval in vars(each).items()}
                for name, each in self.metrics.items()
            },
            "agreement": asdict(self.pairs.agreement),
            "intervals": self.trained.conformal.to_json(),
            "judged_rows": self.pairs.rows.tolist(),
            "lineage": [_ancestor(job).model_dump() for job in self.found.jobs],
        }


def _ancestor(job: Job) -> Ancestor:
    file = model_artifact(job)
    return Ancestor(job=job.id, kind=job.kind, model_digest=file.sha256, bytes=file.size)


def _sizes(pair: tuple[int, int]) -> Sizes:
    return Sizes(before=pair[0], after=pair[1])


def _seconds(latency: Latency) -> Seconds:
    return Seconds(p50_s=latency.median, p95_s=latency.p95)


def _change(each: Compared) -> MetricChange:
    return MetricChange(
        before=Bounded.of(each.before), after=Bounded.of(each.after), difference=Bounded.of(each.difference)
    )
