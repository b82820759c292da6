"""Jobs, as the web sees them: submitted, read, listed, and asked to stop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, case, func, insert, select

from storage.catalogue.part import Part
from storage.catalogue.rows import awaited_ingest, insert_job, job_row, known_kind
from storage.clock import now
from storage.errors import KeyReused, QuotaExceeded
from storage.ids import new_id
from storage.jobs import TERMINAL, Job, JobState, RequestKey, Sender, Submission, Submitted
from storage.tables import job_of, jobs, projects, requests
from storage.transitions import change_jobs, release_dependents


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
        rejected or quarantined volume, QuotaExceeded, or KeyReused.
        """
        with self._database.writing() as connection:
            _lock_project(connection, sender.project_id)
            if request is not None:
                earlier = _earlier(connection, sender.project_id, request)
                if earlier is not None:
                    return Submitted(tuple(job_row(connection, job_id) for job_id in earlier), again=True)
            _refuse_many(connection, sender.project_id, len(wanted))
            made = tuple(_insert(connection, each, sender) for each in wanted)
            if request is not None:
                _remember(connection, sender.project_id, request, [job.id for job in made])
        return Submitted(made)

    def job(self, job_id: str, *, project_id: str | None = None) -> Job:
        """One job. Raises MissingJob, also for one of another project than the one named."""
        with self._database.reading() as connection:
            return job_row(connection, job_id, project_id)

    def jobs(
        self,
        *,
        project_id: str | None = None,
        state: JobState | None = None,
        kind: str | None = None,
        volume_id: str | None = None,
        limit: int = 50,
        before: str | None = None,
    ) -> list[Job]:
        """The newest jobs that fit, or those before the job `before`. Without a project: those of all."""
        wanted = {
            jobs.c.project_id: project_id,
            jobs.c.state: state,
            jobs.c.kind: kind,
            jobs.c.volume_id: volume_id,
        }
        conditions = [column == value for column, value in wanted.items() if value is not None]
        if before is not None:
            conditions.append(jobs.c.id < before)
        statement = select(jobs).where(*conditions).order_by(jobs.c.id.desc()).limit(limit)
        with self._database.reading() as connection:
            return [job_of(row) for row in connection.execute(statement)]

    def request_cancel(self, job_id: str) -> Job:
        """Cancel a job that has not begun at once; ask a running one to stop; leave an ended one as it is.

        Raises MissingJob.
        """
        running = jobs.c.state == JobState.RUNNING
        with self._database.writing() as connection:
            changed = change_jobs(
                connection,
                jobs.c.id == job_id,
                jobs.c.state.in_([JobState.WAITING, JobState.QUEUED, JobState.RUNNING]),
                state=case((running, JobState.CANCELLING), else_=JobState.CANCELLED),
                ended_at=case((running, None), else_=now()),
            )
            for job in changed:
                if job.state is JobState.CANCELLED:
                    release_dependents(connection, job)
            return changed[0] if changed else job_row(connection, job_id)


def _lock_project(connection: Connection, project_id: str) -> None:
    """Let one request of a project at a time see its quota, and its earlier requests."""
    connection.execute(select(projects.c.id).where(projects.c.id == project_id).with_for_update())


def _earlier(connection: Connection, project_id: str, request: RequestKey) -> list[str] | None:
    """The ids of the jobs that this request made when it came first. Raises KeyReused."""
    here = (requests.c.project_id == project_id, requests.c.key == request.key)
    row = connection.execute(select(requests).where(*here)).first()
    if row is None:
        return None
    if row.digest != request.digest:
        raise KeyReused(request.key)
    return list(row.ids)


def _remember(connection: Connection, project_id: str, request: RequestKey, ids: list[str]) -> None:
    connection.execute(
        insert(requests).values(
            project_id=project_id, key=request.key, digest=request.digest, ids=ids, created_at=now()
        )
    )


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


def _insert(connection: Connection, wanted: Submission, sender: Sender) -> Job:
    known = known_kind(connection, wanted.kind)
    ingest = None
    if wanted.volume_id is not None:
        ingest = awaited_ingest(connection, wanted.volume_id, sender.project_id)
    return insert_job(
        connection,
        id=new_id("job"),
        kind=known.name,
        kind_version=known.version,
        state=JobState.QUEUED if ingest is None else JobState.WAITING,
        parameters=wanted.parameters,
        volume_id=wanted.volume_id,
        queue=known.queue,
        depends_on=ingest,
        labels=wanted.labels,
        retry_of=wanted.retry_of,
        project_id=sender.project_id,
        submitted_by=sender.name,
        trace=sender.trace,
    )
