"""What a job of the kind `predict` found, as facts that every clinical form says, whatever its syntax.

Of the patient, of who asked, and of what files were called, nothing is taken: neither of them is known here,
and names of uploads may be a patient's.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from service.clinical import uuids
from service.errors import plain
from storage.exports.dicom_identity import Identity
from storage.jobs import Job
from storage.records import StoredVolume

KIND = "predict"
SOFTWARE = "Tomotrain"
NO_INTERVAL = "unknown: the model learnt from too few patients for it"
_CODE = re.compile(r"[A-Z0-9_ ]{1,16}")
"""A code string (PS3.5 6.2)."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ufffe\uffff]+")


class NoPrediction(Exception):
    """The job found nothing that can be told in a clinical form; the text says why."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class Interval(_Part):
    """The truth lies between its ends with a probability of `level`; they are None where none is known."""

    level: float
    low: float | None
    high: float | None

    @property
    def share(self) -> str:
        """The level in words."""
        return f"{100 * self.level:g} %"


class Quantile(_Part):
    """What the truth is below with a probability of `level`."""

    level: float
    value: float


class Probability(_Part):
    """Of a class; `sets` are the levels whose prediction set it is in."""

    name: str
    value: float
    sets: tuple[float, ...]


class Warned(_Part):
    """Something to know before the answer is relied on."""

    code: str
    text: str


class Prediction(_Part):
    """A result of the kind `predict`, but for what it cost. Of `value` and `class_name` one is None."""

    notice: str
    target_name: str
    target_unit: str
    value: float | None
    class_name: str | None
    intervals: tuple[Interval, ...]
    quantiles: tuple[Quantile, ...]
    probabilities: tuple[Probability, ...]
    guarantee: str
    distance_percentile: float | None
    verdict: str
    certificate: dict[str, Any] | None
    warnings: tuple[Warned, ...]
    model: str
    model_digest: str
    regressor: str
    volume_digest: str
    covariates: dict[str, float]
    packages: dict[str, str]

    @property
    def sets(self) -> dict[float, list[str]]:
        """The classes of each prediction set, by its level."""
        levels = sorted({level for each in self.probabilities for level in each.sets})
        return {level: [e.name for e in self.probabilities if level in e.sets] for level in levels}

    @property
    def version(self) -> str:
        """Of the software that computed it."""
        return self.packages.get(SOFTWARE.lower(), "unknown")


@dataclass(frozen=True)
class Report:
    """A prediction with the job that made it, when that ended (UTC), and the scan that it is of. `stored` is
    None where the volume is not kept any more.
    """

    job_id: str
    volume_id: str
    issued: datetime
    prediction: Prediction
    stored: StoredVolume | None

    @property
    def identity(self) -> uuid.UUID:
        """The job's."""
        return uuids.own(self.job_id)

    @property
    def study(self) -> str:
        """The UID of the scan's study, as this service has it in DICOM."""
        if self.stored is None:
            return uuids.uid(uuids.part(uuids.own(self.volume_id), "study"))
        return Identity.of(self.stored).study

    @property
    def device(self) -> uuid.UUID:
        """Of the model, wherever it is."""
        return uuids.part(uuids.NAMESPACE, self.prediction.model_digest)

    @property
    def modality(self) -> str | None:
        """Of the scan, as DICOM has it."""
        found = None if self.stored is None else self.stored.metadata.get("Modality")
        return found if isinstance(found, str) and _CODE.fullmatch(found) else None

    @property
    def target(self) -> str:
        """What is predicted."""
        return printable(self.prediction.target_name)

    @property
    def unit(self) -> str:
        """Of what is predicted, as the cohort's owner wrote it; may be empty."""
        return _on_one_line(self.prediction.target_unit)

    @property
    def scan(self) -> str:
        """The scan in words."""
        modality = f"{self.modality} " if self.modality else ""
        return f"{modality}scan {self.volume_id}, digest {self.prediction.volume_digest}"

    @property
    def summary(self) -> str:
        """The answer in a sentence, with the notice that goes with every answer."""
        told = [f"{self.target}: {self._answer()}", *map(self._interval, self.prediction.intervals)]
        return f"{'; '.join(told)}. {printable(self.prediction.notice)}"

    def remarks(self) -> Iterator[str]:
        """What to know before the answer is relied on, and what it was made of."""
        told = self.prediction
        yield f"Like the training's scans: {printable(told.verdict)}"
        for warning in told.warnings:
            yield f"Warning ({printable(warning.code)}): {printable(warning.text)}"
        if told.intervals or told.sets:
            yield f"Intervals and sets: {printable(told.guarantee)}"
        if told.certificate is not None:
            yield f"Error of the approximation that was read: {_shortened(told.certificate)}"
        yield f"Asked of: {self.scan}"
        yield f"Answered by: model {told.model}, sha-256 {told.model_digest}, job {self.job_id}"
        yield "Computed by a program, and verified by nobody."

    def _answer(self) -> str:
        told = self.prediction
        if told.class_name is not None:
            return printable(told.class_name)
        return "no answer" if told.value is None else self._with_unit(f"{told.value:.4g}")

    def _interval(self, interval: Interval) -> str:
        ends = NO_INTERVAL
        if interval.low is not None and interval.high is not None:
            ends = self._with_unit(f"{interval.low:.4g} to {interval.high:.4g}")
        return f"{interval.share} interval {ends}"

    def _with_unit(self, number: str) -> str:
        return f"{number} {self.unit}".strip()


def report_of(job: Job, stored: StoredVolume | None) -> Report:
    """The facts of a job that has succeeded. Raises NoPrediction."""
    prediction = prediction_of(job)
    if job.volume_id is None or job.ended_at is None:
        raise NoPrediction("the job is about no scan")
    issued = datetime.fromtimestamp(job.ended_at, UTC)
    return Report(job.id, job.volume_id, issued, prediction, stored)


def prediction_of(job: Job) -> Prediction:
    """What the job found. Raises NoPrediction for another kind of job, and for what a release found that knew
    less.
    """
    if job.kind != KIND:
        raise NoPrediction(f"the job is of the kind {job.kind}, not {KIND}")
    try:
        return Prediction.model_validate_json(json.dumps(plain(job.result)))
    except ValidationError as error:
        wrong = error.errors()[0]
        place = ".".join(map(str, wrong["loc"]))
        raise NoPrediction(f"its result was written by another release: {place}: {wrong['msg']}") from None


def printable(text: str) -> str:
    """The text on one line, as XML and DICOM can hold it; never empty."""
    return _on_one_line(text) or "(nothing)"


def _on_one_line(text: str) -> str:
    return _CONTROL.sub(" ", text).strip()


def _shortened(certificate: dict[str, Any]) -> str:
    """What the certificate says of all features together, as JSON; the result has it for each."""
    return json.dumps({name: value for name, value in certificate.items() if not isinstance(value, list)})
