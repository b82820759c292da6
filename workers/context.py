"""What a job may use: its volume, all that is stored, its artifacts and checkpoints, a way to report, and the
worker's settings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from storage.artifacts import ArtifactStore, ArtifactWriter
from storage.checkpoints import Checkpoints, checkpoint_folder
from storage.errors import CorruptVolume, OverBudget, VolumeNotReady
from storage.jobs import Job, Progress
from storage.records import StoredVolume, VolumeRecord, VolumeState
from storage.volume import Volume
from workers.settings import WorkerSettings


@dataclass(frozen=True)
class JobContext:
    """One attempt of one job. `record` is its volume's row, None for a job without a volume.

    `device` is a torch device's name. `report` is the point where a job can be cancelled: call it often.
    `find_volume` and `find_job` give the row with an id in the job's project, and raise MissingVolume and
    MissingJob.
    `call_helpers` asks other workers to come, so many at most and perhaps none, of a kind with `help`.
    """

    job: Job
    record: VolumeRecord | None
    settings: WorkerSettings
    device: str
    memory_budget: int
    report: Callable[[Progress], None]
    find_volume: Callable[[str], VolumeRecord]
    find_job: Callable[[str], Job]
    call_helpers: Callable[[int], None] = lambda count: None

    @property
    def data_root(self) -> Path:
        """The folder of all that persists."""
        return self.settings.data_root

    @property
    def volume_record(self) -> VolumeRecord:
        """The volume's row. Raises ValueError for a job without a volume."""
        if self.record is None:
            raise ValueError(f"job {self.job.id} has no volume")
        return self.record

    @property
    def artifacts(self) -> ArtifactWriter:
        """Writes this attempt's artifacts; they are published when the job succeeds."""
        return self._artifacts.writer(self.job.id, self.job.attempt)

    @property
    def checkpoints(self) -> Checkpoints:
        """Where this job keeps how far it has come; earlier attempts' are found there."""
        return Checkpoints(checkpoint_folder(self.data_root, self.job.id), self.job.attempt)

    @property
    def stored(self) -> StoredVolume:
        """The facts of the job's volume. Raises VolumeNotReady."""
        return facts_of(self.volume_record)

    def volume(self) -> Volume:
        """The job's volume; see `open`."""
        return self.open(self.volume_record)

    def open(self, record: VolumeRecord) -> Volume:
        """A volume, its manifest and metadata checked against the catalogue's digest.

        Raises VolumeNotReady, or CorruptVolume.
        """
        digest, store = facts_of(record).digest, record.store
        assert store is not None, "a ready volume has a store"
        try:
            return Volume.open(self.data_root / store, digest)
        except CorruptVolume as error:
            error.volume_id = record.id
            raise

    def artifact(self, job: Job, name: str) -> bytes:
        """A published artifact of another job, whole. Raises MissingArtifact or CorruptArtifact."""
        return self._artifacts.read(job, name)

    def require_memory(self, needed: int, cure: str = "") -> None:
        """Raise OverBudget when the job would need more bytes than this worker may use.

        `cure` says what would take less.
        """
        if needed > self.memory_budget:
            raise OverBudget(needed, self.memory_budget, cure)

    @property
    def _artifacts(self) -> ArtifactStore:
        return ArtifactStore(self.data_root / "artifacts")


def facts_of(record: VolumeRecord) -> StoredVolume:
    """The facts of a volume. Raises VolumeNotReady."""
    if record.state is not VolumeState.READY or record.stored is None:
        raise VolumeNotReady(record.id, record.state)
    return record.stored
