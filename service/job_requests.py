"""What clients send to have jobs done, checked against what the kinds announce."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue

from service.errors import MOST_ERRORS, ApiError, plain
from service.identity import Principal
from service.parameters import checked
from service.schemas import UNSTORABLE, UNSTORABLE_WORDS, Label
from storage.catalogue import Catalogue
from storage.errors import (
    InvalidParameters,
    MissingVolume,
    NotRetryable,
    StorageError,
    UnknownKind,
    VolumeNotReady,
)
from storage.jobs import Job, JobKind, JobState, Submission
from storage.records import VolumeState

LARGEST_BATCH = 1000
_EXAMPLE: JsonValue = {"kind": "embed", "volume_id": "vol_0199...", "parameters": {"layout": "qtt"}}


def _all_storable(value: dict[str, Any]) -> dict[str, Any]:
    if plain(value) != value:
        raise ValueError("numbers must be finite")
    if _holds_unstorable(value):
        raise ValueError(UNSTORABLE_WORDS)
    return value


def _holds_unstorable(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_holds_unstorable(name) or _holds_unstorable(part) for name, part in value.items())
    if isinstance(value, list):
        return any(map(_holds_unstorable, value))
    return isinstance(value, str) and UNSTORABLE.search(value) is not None


class JobRequest(BaseModel):
    """A job to be done. `parameters` are checked against the schema that the kind announces."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [_EXAMPLE]})

    kind: Label
    volume_id: Label | None = None
    parameters: Annotated[dict[str, JsonValue], AfterValidator(_all_storable)] = {}
    labels: Annotated[dict[Label, Label], Field(max_length=32)] = {}


class BatchRequest(BaseModel):
    """Jobs to be done, all of them or none."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"jobs": [_EXAMPLE]}]})

    jobs: Annotated[list[JobRequest], Field(min_length=1, max_length=LARGEST_BATCH)]


class Desk:
    """Where the requests of a sender are checked; it asks the catalogue once, for all their volumes."""

    def __init__(self, catalogue: Catalogue, who: Principal, volume_ids: Iterable[str | None]) -> None:
        self._kinds = {kind.name: kind for kind in catalogue.kinds()}
        named = {volume_id for volume_id in volume_ids if volume_id is not None}
        self._volumes = catalogue.volume_states(named, project_id=who.project_id)

    def submission(self, wanted: JobRequest) -> Submission:
        """What is to be submitted, its parameters with their defaults.

        Raises UnknownKind, also for kinds that only the service submits, ApiError `invalid-request` where
        a volume lacks, MissingVolume, VolumeNotReady, or InvalidParameters.
        """
        kind = self._kind(wanted.kind)
        if kind.needs_volume or wanted.volume_id is not None:
            self._check_volume(wanted.volume_id)
        return Submission(
            kind.name, checked(wanted.parameters, kind.parameters_schema), wanted.volume_id, wanted.labels
        )

    def submissions(self, wanted: Sequence[JobRequest]) -> list[Submission]:
        """Those of a batch. Raises ApiError `invalid-batch`, which names every job that does not fit."""
        found, faults = [], []
        for number, each in enumerate(wanted):
            try:
                found.append(self.submission(each))
            except (StorageError, ApiError) as error:
                faults += [(f"/jobs/{number}{pointer}", wrong) for pointer, wrong in _faults(error)]
        if faults:
            raise _invalid_batch(faults)
        return found

    def repetition(self, job: Job) -> Submission:
        """A job once more. Raises NotRetryable, and what `submission` raises."""
        if not job.state.terminal:
            raise NotRetryable(job.id, job.state, "wait until it has ended, or cancel it")
        if job.state is JobState.SUCCEEDED:
            raise NotRetryable(job.id, job.state, "it has a result; submit a new job to have another one")
        kind = self._kinds.get(job.kind)
        if kind is not None and kind.internal:
            raise NotRetryable(job.id, job.state, "send the scan again")
        again = JobRequest(
            kind=job.kind, volume_id=job.volume_id, parameters=job.parameters, labels=job.labels
        )
        wanted = self.submission(again)
        return Submission(wanted.kind, wanted.parameters, wanted.volume_id, wanted.labels, retry_of=job.id)

    def _kind(self, name: str) -> JobKind:
        kind = self._kinds.get(name)
        if kind is None or kind.internal:
            raise UnknownKind(
                name, sorted(known.name for known in self._kinds.values() if not known.internal)
            )
        return kind

    def _check_volume(self, volume_id: str | None) -> None:
        if volume_id is None:
            detail = "volume_id: this kind of job needs the id of a volume"
            raise ApiError("invalid-request", detail, errors=[("/volume_id", "needed")])
        state = self._volumes.get(volume_id)
        if state is None:
            raise MissingVolume(volume_id)
        if state not in (VolumeState.READY, VolumeState.VALIDATING):
            raise VolumeNotReady(volume_id, state)


def in_batch(error: MissingVolume | VolumeNotReady, wanted: Iterable[JobRequest]) -> ApiError:
    """A volume's trouble that came up after the desk had looked, with the places of the jobs on it."""
    places = [number for number, each in enumerate(wanted) if each.volume_id == error.volume_id]
    return _invalid_batch([(f"/jobs/{number}/volume_id", str(error)) for number in places])


def _invalid_batch(faults: Sequence[tuple[str, str]]) -> ApiError:
    told = "; ".join(f"{pointer}: {wrong}" for pointer, wrong in faults[:MOST_ERRORS])
    return ApiError("invalid-batch", f"no job of the batch was submitted: {told}", errors=faults)


def _faults(error: StorageError | ApiError) -> Sequence[tuple[str, str]]:
    """What is wrong with a request, with pointers into it."""
    if isinstance(error, InvalidParameters):
        return [(f"/parameters{pointer}", wrong) for pointer, wrong in error.problems]
    if isinstance(error, ApiError):
        return error.errors
    return [("/kind" if isinstance(error, UnknownKind) else "/volume_id", str(error))]
