"""Jobs, as the web sees them: submitted, read, listed, and asked to stop."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Unpack

from sqlalchemy import Connection, func, select

from storage.catalogue.filters import conditions
from storage.catalogue.part import Part
from storage.catalogue.requests import is_first, made_before
from storage.catalogue.rows import awaited_ingests, insert_jobs, job_row, job_rows, known_kinds
from storage.errors import QuotaExceeded, UnknownKind
from storage.ids import new_id
from storage.jobs import TERMINAL, Job, JobFilter, JobState, RequestKey, Sender, Submission, Submitted
from storage.records import VolumeState
from storage.tables import job_of, jobs, projects, volumes
from storage.transitions import cancel_jobs, change_jobs


class Submissions(Part):
    """What the web does with jobs."""

    def submit(
        self,
        kind: str,
        parameters: Mapping[str, Any],
        *,
        volume_id: str | None = None,
        labels: Mapping[str, str] | None = None,
        sender: Sender = Sender(),  # noqa: B008 - frozen
    ) -> Job:
        """One new job; see `submit_all`."""
        wanted = Submission(kind, dict(parameters), volume_id, dict(labels or {}))
        return self.submit_all([wanted], sender).jobs[0]

    def submit_all(
        self, wanted: Sequence[Submission], sender: Sender, request: RequestKey | None = None
    ) -> Submitted:
        """New jobs, all or none of them: each `queued`, or `waiting` while its volume is validating.

        The caller rings for the queued ones, then calls `rang`. With the key of a request that was done
        before: that one's jobs, as they are now. Raises UnknownKind, MissingVolume, VolumeNotReady for a
        rejected or quarantined volume, QuotaExceeded, KeyReused, or JobExpired for the jobs of a request
        that have been removed.
        """
        ids = [new_id("job") for _ in wanted]
        with self._database.writing() as connection:
            if request and not is_first(self._database, connection, sender.project_id, request, ids):
                return Submitted(_earlier(connection, sender.project_id, request) or (), again=True)
            _lock_project(connection, sender.project_id)
            _refuse_many(connection, sender.project_id, len(wanted))
            made = _insert(connection, ids, wanted, sender)
        return Submitted(made)

    def submitted(self, project_id: str, request: RequestKey) -> Submitted | None:
        """The jobs of a request that was done before, as they are now; None for a new one.

        Raises KeyReused or JobExpired.
        """
        with self._database.reading() as connection:
            found = _earlier(connection, project_id, request)
        return None if found is None else Submitted(found, again=True)

    def job(self, job_id: str, *, project_id: str | None = None) -> Job:
        """One job. Raises JobExpired for one that was removed, and MissingJob, also for one of another
        project than the one named.
        """
        with self._database.reading() as connection:
            return job_row(connection, job_id, project_id)

    def jobs(self, *, limit: int = 50, before: str | None = None, **wanted: Unpack[JobFilter]) -> list[Job]:
        """The newest jobs that fit, or those before the job `before`. Without a project: those of all."""
        fitting = conditions(wanted, self._database.dialect)
        if before is not None:
            fitting.append(jobs.c.id < before)
        statement = select(jobs).where(*fitting).order_by(jobs.c.id.desc()).limit(limit)
        with self._database.reading() as connection:
            return [job_of(row) for row in connection.execute(statement)]

    def volume_states(self, volume_ids: Collection[str], *, project_id: str) -> dict[str, VolumeState]:
        """The states of these volumes of a project; those that are not there are left out."""
        statement = select(volumes.c.id, volumes.c.state).where(
            volumes.c.id.in_(volume_ids),
            volumes.c.project_id == project_id,
            volumes.c.state != VolumeState.DELETED,
        )
        if not volume_ids:
            return {}
        with self._database.reading() as connection:
            return {row.id: VolumeState(row.state) for row in connection.execute(statement)}

    def request_cancel(self, job_id: str) -> Job:
        """Cancel a job that has not begun at once; ask a running one to stop; leave an ended one as it is.

        Raises MissingJob.
        """
        with self._database.writing() as connection:
            changed = cancel_jobs(connection, jobs.c.id == job_id)
            return changed[0] if changed else job_row(connection, job_id)


def _earlier(connection: Connection, project_id: str, request: RequestKey) -> tuple[Job, ...] | None:
    """The jobs that this request made when it came first. Raises KeyReused or JobExpired."""
    ids = made_before(connection, project_id, request)
    return None if ids is None else job_rows(connection, ids)


def _lock_project(connection: Connection, project_id: str) -> None:
    """Let one request of a project at a time see its quota."""
    connection.execute(select(projects.c.id).where(projects.c.id == project_id).with_for_update())


def _refuse_many(connection: Connection, project_id: str, wanted: int) -> None:
    """Raise QuotaExceeded where a project would have more open jobs than it may."""
    allowed = connection.execute(
        select(projects.c.max_open_jobs).where(projects.c.id == project_id)
    ).scalar_one_or_none()
    if allowed is None:
        return
    is_open = (jobs.c.project_id == project_id, jobs.c.state.not_in(TERMINAL))
    present = connection.execute(select(func.count()).where(*is_open)).scalar_one()
    if present + wanted > allowed:
        raise QuotaExceeded("open jobs", present, wanted, allowed, "wait until some have ended")


def _insert(
    connection: Connection, ids: Sequence[str], wanted: Sequence[Submission], sender: Sender
) -> tuple[Job, ...]:
    known = {kind.name: kind for kind in known_kinds(connection)}
    for unknown in (each.kind for each in wanted if each.kind not in known):
        raise UnknownKind(unknown, sorted(known))
    volume_ids = {each.volume_id for each in wanted if each.volume_id is not None}
    ingests = awaited_ingests(connection, volume_ids, sender.project_id)
    rows = []
    for job_id, each in zip(ids, wanted, strict=True):
        kind, ingest = known[each.kind], ingests[each.volume_id] if each.volume_id else None
        row = {
            "id": job_id,
            "kind": kind.name,
            "kind_version": kind.version,
            "state": JobState.QUEUED if ingest is None else JobState.WAITING,
            "parameters": each.parameters,
            "volume_id": each.volume_id,
            "queue": kind.queue,
            "depends_on": ingest,
            "labels": each.labels,
            "retry_of": each.retry_of,
            "project_id": sender.project_id,
            "submitted_by": sender.name,
            "trace": sender.trace,
        }
        rows.append(row)
        if each.retry_of is not None:
            change_jobs(connection, jobs.c.id == each.retry_of, retried_by=job_id)
    return insert_jobs(connection, rows)
