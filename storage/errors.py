"""What can go wrong in the store. Errors carry facts and a stable `code`; they know no HTTP.

    StorageError
    ├── ScanError                    about bytes that somebody sent
    │   ├── EmptyUpload              nothing in it
    │   ├── UnsafeArchive            a member's name or a link leaves the archive
    │   ├── DigestMismatch           other bytes arrived than were announced
    │   ├── UnsupportedScan          sound, but not something that we read
    │   ├── InvalidScan              damaged, inconsistent or without meaning as a volume
    │   └── ScanTooLarge             over a limit, found before the work
    ├── NotFound
    │   ├── MissingVolume
    │   ├── MissingJob
    │   │   └── JobExpired           it was there, and has been removed
    │   ├── MissingArtifact
    │   ├── MissingKey               no such object in a volume's store
    │   ├── MissingProject
    │   ├── MissingAccessKey
    │   ├── MissingWebhook
    │   └── MissingUpload            ¹
    ├── Conflict
    │   ├── VolumeNotReady
    │   ├── JobNotFinished
    │   ├── JobFailed
    │   ├── NotRetryable             a job that is open, has succeeded, or cannot be repeated
    │   └── KeyReused                an Idempotency-Key that came with another body before
    ├── UnknownScope                 no key can have a scope of this name
    ├── QuotaExceeded                a project has as many open jobs, or bytes, as it may have
    ├── FaultyInput
    │   ├── InvalidParameters        a job's parameters do not fit its kind's schema
    │   ├── InvalidCohort            a table of scans and targets that nothing can be learnt from
    │   └── CohortNotReady           scans of a table are still being read
    ├── UnusableModel                what was named as a model cannot be used as one
    ├── UnknownKind                  no worker has announced this kind of job
    ├── CorruptVolume                stored bytes no longer match their checksum or manifest
    ├── UnreadableVolume             sound bytes that need a newer Tomotrain, or a library that is not here
    ├── UnreachableQuality           no file of a volume is as small, or as good, as was wanted
    ├── UnsuitableCompressor         a compressor cannot take a volume's values, or is not installed
    ├── CorruptArtifact              what a job wrote no longer matches its sha-256
    ├── OverBudget                   a job would need more memory than its worker may use
    ├── UploadGone                   ¹ aborted, or expired
    ├── BadKey                       ¹ no object of a Zarr has such a key
    ├── SourceNotAllowed             ¹ nothing may be imported from there
    ├── StorageLow                   ¹ too little of the disk is free to take more in
    ├── StorageFull                  the disk refused a write
    ├── CatalogueUnavailable         the database is locked, down or out of reach
    ├── CatalogueTooNew              the database's schema is of a later release
    ├── LeaseLost                    another attempt owns the job now
    └── JobCancelled                 somebody asked for the job to stop

Those with ¹ stand in storage/upload_errors.py. The table that turns a code into an HTTP status stands in
`service/errors.py`, and only there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

MOST_PROBLEMS = 100
"""So many faults of one input are kept with their places."""
TOLD_PROBLEMS = 20
"""So many of them are told in words."""


class StorageError(Exception):
    """Base class. `str(error)` names the cause and, where there is one, the cure."""

    code: ClassVar[str] = "storage-error"
    retryable: ClassVar[bool] = False

    def facts(self) -> dict[str, Any]:
        """The error's numbers and names, for a machine: its public attributes."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}


class ScanError(StorageError):
    """Something about the bytes of a scan that somebody sent."""

    code = "scan-error"


class EmptyUpload(ScanError):
    """No bytes arrived."""

    code = "empty-upload"

    def __init__(self) -> None:
        super().__init__("the upload is empty; send the scan's bytes as the request body")


class UnsafeArchive(ScanError):
    """An archive member or a path inside a store points outside of it."""

    code = "unsafe-archive"

    def __init__(self, member: str, reason: str) -> None:
        super().__init__(f"unsafe path {member!r}: {reason}; nothing was extracted")
        self.member, self.reason = member, reason


class DigestMismatch(ScanError):
    """The bytes that arrived are not those whose digest was announced."""

    code = "digest-mismatch"

    def __init__(self, announced: str, received: str) -> None:
        super().__init__(f"announced sha-256 {announced}, received {received}; send the scan again")
        self.announced, self.received = announced, received


class UnsupportedScan(ScanError):
    """A sound file of a kind that this service does not read."""

    code = "unsupported-scan"


class InvalidScan(ScanError):
    """A damaged or inconsistent scan, or one that has no meaning as a volume."""

    code = "invalid-scan"


class ScanTooLarge(ScanError):
    """The scan declares or holds more than a limit allows. `what` names the limited thing."""

    code = "scan-too-large"

    def __init__(self, what: str, needed: int, allowed: int) -> None:
        super().__init__(f"{what}: {needed:,} bytes, over the limit of {allowed:,}")
        self.what, self.needed, self.allowed = what, needed, allowed


class NotFound(StorageError):
    """There is no such thing."""

    code = "not-found"


class MissingVolume(NotFound):
    """No volume has this id."""

    code = "volume-not-found"

    def __init__(self, volume_id: str) -> None:
        super().__init__(f"there is no volume {volume_id!r}")
        self.volume_id = volume_id


class MissingJob(NotFound):
    """No job has this id."""

    code = "job-not-found"

    def __init__(self, job_id: str) -> None:
        super().__init__(f"there is no job {job_id!r}")
        self.job_id = job_id


class JobExpired(MissingJob):
    """The job has ended and has been removed: somebody asked for that, or its time was over."""

    code = "job-expired"

    def __init__(self, job_id: str) -> None:
        told = f"job {job_id!r} and what it wrote have been removed; submit it again if it is needed"
        StorageError.__init__(self, told)
        self.job_id = job_id


class MissingArtifact(NotFound):
    """The job wrote no artifact of this name."""

    code = "artifact-not-found"

    def __init__(self, job_id: str, name: str) -> None:
        super().__init__(f"job {job_id!r} has no artifact {name!r}")
        self.job_id, self.name = job_id, name


class MissingKey(NotFound):
    """A volume's store holds no such object."""

    code = "key-not-found"

    def __init__(self, key: str) -> None:
        super().__init__(f"the store holds no object {key!r}")
        self.key = key


class MissingProject(NotFound):
    """No project has this id."""

    code = "project-not-found"

    def __init__(self, project_id: str) -> None:
        super().__init__(
            f"there is no project {project_id!r}; make it by `tomotrain keys project {project_id}`"
        )
        self.project_id = project_id


class MissingAccessKey(NotFound):
    """No API key has this id."""

    code = "access-key-not-found"

    def __init__(self, key_id: str) -> None:
        super().__init__(f"there is no API key {key_id!r}; `tomotrain keys list` shows those that there are")
        self.key_id = key_id


class MissingWebhook(NotFound):
    """No webhook of the project has this id."""

    code = "webhook-not-found"

    def __init__(self, webhook_id: str) -> None:
        super().__init__(f"there is no webhook {webhook_id!r}")
        self.webhook_id = webhook_id


class Conflict(StorageError):
    """The thing exists, but is not in the state that the request needs."""

    code = "conflict"


class VolumeNotReady(Conflict):
    """The volume is still being read, or was refused or quarantined."""

    code = "volume-not-ready"

    def __init__(self, volume_id: str, state: str) -> None:
        super().__init__(f"volume {volume_id!r} is {state}, not ready")
        self.volume_id, self.state = volume_id, state


class JobNotFinished(Conflict):
    """A result was asked for before there is one."""

    code = "job-not-finished"
    retryable = True

    def __init__(self, job_id: str, state: str) -> None:
        super().__init__(f"job {job_id!r} is {state}; ask again when it has finished")
        self.job_id, self.state = job_id, state


class JobFailed(Conflict):
    """A result was asked for, but the job failed or was cancelled. `cause` is the job's own error."""

    code = "job-failed"

    def __init__(self, job_id: str, state: str, cause: dict[str, Any] | None) -> None:
        why = cause["detail"] if cause else "no result was made"
        super().__init__(f"job {job_id!r} {state}: {why}")
        self.job_id, self.state, self.cause = job_id, state, cause


class NotRetryable(Conflict):
    """A job that cannot be repeated."""

    code = "not-retryable"

    def __init__(self, job_id: str, state: str, cure: str) -> None:
        super().__init__(f"job {job_id!r} is {state} and cannot be repeated: {cure}")
        self.job_id, self.state = job_id, state


class KeyReused(Conflict):
    """An Idempotency-Key that came with another request before."""

    code = "idempotency-key-reused"

    def __init__(self, key: str) -> None:
        super().__init__(
            f"the Idempotency-Key {key!r} came with another request before: use a fresh one for each "
            "request, and the same one only to send the same request again"
        )
        self.key = key


class UnknownScope(StorageError):
    """No key can have a scope of this name."""

    code = "unknown-scope"

    def __init__(self, name: str, known: Sequence[str]) -> None:
        super().__init__(f"there is no scope {name!r}; there are {', '.join(known)}")
        self.name = name


class QuotaExceeded(StorageError):
    """A project has as much as it may have."""

    code = "quota-exceeded"
    retryable = True

    def __init__(self, what: str, present: int, wanted: int, allowed: int, cure: str) -> None:
        super().__init__(
            f"the project has {present} {what} and may have {allowed}, not {wanted} more: {cure}"
        )
        self.what, self.present, self.wanted, self.allowed = what, present, wanted, allowed


class FaultyInput(StorageError):
    """Something in a job's parameters is wrong. `problems` is a list of (JSON pointer, what is wrong).

    The first `MOST_PROBLEMS` are kept, and the first `TOLD_PROBLEMS` are told in words; `more` counts others
    that were found and are not among `problems`.
    """

    preface: ClassVar[str] = ""

    def __init__(self, problems: Sequence[tuple[str, str]], more: int = 0) -> None:
        told = [f"{pointer or '/'}: {detail}" for pointer, detail in problems[:TOLD_PROBLEMS]]
        if (untold := len(problems) - len(told) + more) > 0:
            told.append(f"and {untold:,} more")
        super().__init__(self.preface + "; ".join(told))
        self.problems = list(problems[:MOST_PROBLEMS])


class InvalidParameters(FaultyInput):
    """A job's parameters do not fit."""

    code = "invalid-parameters"


class InvalidCohort(FaultyInput):
    """A table that cannot be learnt from, or be judged on."""

    code = "invalid-cohort"


class CohortNotReady(FaultyInput):
    """Scans that rows name are still being read."""

    code = "cohort-not-ready"
    retryable = True
    preface = "scans are still being read, try again when they are ready: "


class UnusableModel(StorageError):
    """The job that was named has no model, or one that this version cannot use."""

    code = "unusable-model"

    def __init__(self, job_id: str, reason: str) -> None:
        super().__init__(f"model {job_id!r}: {reason}")
        self.job_id, self.reason = job_id, reason


class UnknownKind(StorageError):
    """No worker has announced this kind of job."""

    code = "unknown-kind"

    def __init__(self, kind: str, known: list[str]) -> None:
        offered = ", ".join(known) if known else "none yet; is a worker running?"
        super().__init__(f"no worker has announced the kind {kind!r}; announced: {offered}")
        self.kind, self.known = kind, known


class CorruptVolume(StorageError):
    """Stored bytes do not match their checksum, or an object of the manifest is missing.

    `volume_id` says whose they are, where a job reads more than its own volume.
    """

    code = "corrupt-volume"
    volume_id: str | None = None

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"stored object {key!r}: {reason}")
        self.key, self.reason = key, reason


class UnreadableVolume(StorageError):
    """Stored bytes are sound, but cannot be decoded here: a newer Tomotrain is needed, or a library."""

    code = "unreadable-volume"

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"stored object {key!r} cannot be decoded here: {reason}")
        self.key, self.reason = key, reason


class UnreachableQuality(StorageError):
    """No compressed volume does what was wanted. `best` has the numbers of what comes nearest."""

    code = "unreachable-target"

    def __init__(self, compressor: str, wanted: str, best: dict[str, float], cure: str) -> None:
        had = ", ".join(f"{name} = {number:.6g}" for name, number in best.items())
        nearest = f"; the nearest has {had}" if had else ""
        super().__init__(f"{compressor} cannot reach {wanted} on this scan{nearest}: {cure}")
        self.compressor, self.wanted, self.best = compressor, wanted, best


class UnsuitableCompressor(StorageError):
    """The compressor cannot take a volume's values, or its library is not installed."""

    code = "unsuitable-compressor"

    def __init__(self, compressor: str, reason: str) -> None:
        super().__init__(f"compressor {compressor!r}: {reason}")
        self.compressor, self.reason = compressor, reason


class CorruptArtifact(StorageError):
    """A file that a job wrote does not hold the bytes that it published."""

    code = "corrupt-artifact"

    def __init__(self, job_id: str, name: str, published: str, found: str) -> None:
        super().__init__(
            f"artifact {name!r} of job {job_id!r} has the sha-256 {found}, not {published}: it was changed "
            "or damaged on disk; run the job again, or restore the file"
        )
        self.job_id, self.name, self.published, self.found = job_id, name, published, found


class OverBudget(StorageError):
    """A job would need more memory than its worker may use; found before it takes any."""

    code = "over-budget"

    def __init__(self, needed: int, allowed: int, cure: str = "") -> None:
        told = f"the job needs about {needed:,} bytes of memory; this worker may use {allowed:,}"
        ways = f"{cure}, or " if cure else ""
        super().__init__(f"{told}: {ways}give it more (TOMOTRAIN_MEMORY_BUDGET_BYTES)")
        self.needed, self.allowed = needed, allowed


class StorageFull(StorageError):
    """The disk refused a write."""

    code = "storage-full"
    retryable = True


class CatalogueUnavailable(StorageError):
    """The catalogue's database is locked, down or out of reach for now."""

    code = "catalogue-unavailable"
    retryable = True

    def __init__(self) -> None:
        super().__init__("the catalogue's database does not answer; try again in a few seconds")


class CatalogueTooNew(StorageError):
    """The database's schema is of a later release than this one."""

    code = "catalogue-too-new"

    def __init__(self, found: str, known: str) -> None:
        super().__init__(
            f"the catalogue's schema is at step {found}, this release knows {known} at most: run a release "
            "as new as the one that wrote it, or restore a backup from before"
        )
        self.found, self.known = found, known


class LeaseLost(StorageError):
    """Another attempt owns the job now: this one must stop and write nothing more."""

    code = "lease-lost"
    retryable = True

    def __init__(self, job_id: str, attempt: int) -> None:
        super().__init__(f"attempt {attempt} of job {job_id!r} lost its lease")
        self.job_id, self.attempt = job_id, attempt


class JobCancelled(StorageError):
    """Somebody asked for the job to stop."""

    code = "cancelled"

    def __init__(self, job_id: str) -> None:
        super().__init__(f"job {job_id!r} was cancelled")
        self.job_id = job_id
