"""What a job may use: its volume, its artifacts, its upload, a way to report, and the worker's settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from storage.artifacts import ArtifactStore, ArtifactWriter
from storage.errors import OverBudget, VolumeNotReady
from storage.jobs import Job, Progress
from storage.records import StoredVolume, VolumeRecord, VolumeState
from storage.volume import Volume
from workers.settings import WorkerSettings


@dataclass(frozen=True)
class JobContext:
    """One attempt of one job. `record` is its volume's row, None for a job without a volume.

    `device` is a torch device's name. `report` is the point where a job can be cancelled: call it often.
    """

    job: Job
    record: VolumeRecord | None
    settings: WorkerSettings
    device: str
    memory_budget: int
    report: Callable[[Progress], None]

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
        return ArtifactStore(self.data_root / "artifacts").writer(self.job.id, self.job.attempt)

    @property
    def stored(self) -> StoredVolume:
        """The facts of the job's volume. Raises VolumeNotReady."""
        record = self.volume_record
        if record.state is not VolumeState.READY or record.stored is None:
            raise VolumeNotReady(record.id, record.state)
        return record.stored

    def volume(self) -> Volume:
        """The job's volume, its manifest and metadata checked against the catalogue's digest.

        Raises VolumeNotReady, or CorruptVolume.
        """
        digest, store = self.stored.digest, self.volume_record.store
        assert store is not None, "a ready volume has a store"
        return Volume.open(self.data_root / store, digest)

    def require_memory(self, needed: int) -> None:
        """Raise OverBudget when the job would need more bytes than this worker may use."""
        if needed > self.memory_budget:
            raise OverBudget(needed, self.memory_budget)
