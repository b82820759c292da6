"""What the routes are handed. Who may do what will be decided here, too, once there are users."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from fastapi import Path as FromPath

from service.queue import JobQueue
from service.settings import ServiceSettings
from service.shelf import Shelf
from storage.artifacts import ArtifactStore
from storage.catalogue import Catalogue
from storage.errors import MissingJob, MissingVolume, VolumeNotReady
from storage.jobs import Job
from storage.records import VolumeRecord, VolumeState

_ID = re.compile(r"[a-z]{1,8}_[0-9a-f-]{1,40}")


@dataclass(frozen=True)
class Services:
    """The parts that `create_app` was given, and the opened volumes."""

    settings: ServiceSettings
    catalogue: Catalogue
    queue: JobQueue
    artifacts: ArtifactStore
    shelf: Shelf

    def ring(self, job: Job) -> None:
        """Ring for a new job, and note it; when that fails, the sweep will ring."""
        if self.queue.ring(job):
            self.catalogue.rang([job.id])


def services(request: Request) -> Services:
    """The application's parts."""
    parts: Services = request.app.state.services
    return parts


Parts = Annotated[Services, Depends(services)]


def found_volume(volume_id: Annotated[str, FromPath()], parts: Parts) -> VolumeRecord:
    """The volume that the address names. Raises MissingVolume."""
    if not _ID.fullmatch(volume_id):
        raise MissingVolume(volume_id)
    return parts.catalogue.volume(volume_id)


FoundVolume = Annotated[VolumeRecord, Depends(found_volume)]


def ready_volume(record: FoundVolume) -> VolumeRecord:
    """The volume that the address names, ready to be read. Raises MissingVolume or VolumeNotReady."""
    if record.state is not VolumeState.READY:
        raise VolumeNotReady(record.id, record.state)
    return record


ReadyVolume = Annotated[VolumeRecord, Depends(ready_volume)]


def found_job(job_id: Annotated[str, FromPath()], parts: Parts) -> Job:
    """The job that the address names. Raises MissingJob."""
    if not _ID.fullmatch(job_id):
        raise MissingJob(job_id)
    return parts.catalogue.job(job_id)


FoundJob = Annotated[Job, Depends(found_job)]
