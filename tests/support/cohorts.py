"""A cohort of tiny scans that are ingested once, and a worker that learns from them."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from storage.artifacts import ArtifactStore
from storage.catalogue import Catalogue
from storage.jobs import Job
from support.scans import upload
from workers.jobs import KINDS
from workers.runner import Runner
from workers.settings import WorkerSettings

SHAPE = (20, 24, 16)
"""(x, y, z)."""
QUICK = {"regressor": "voxel_ridge", "settings": {"grid": 3}, "folds": 3}


def organ(target: float, seed: int, shape: tuple[int, int, int] = SHAPE) -> bytes:
    """A body with an organ that is the brighter the larger the target is, and noise; 2 x 2 x 3 mm."""
    x, y, z = np.ogrid[tuple(slice(-1, 1, size * 1j) for size in shape)]
    body = 100.0 * (x**2 + y**2 + z**2 < 0.9)
    body[(x > 0) & (abs(y) < 0.5) & (abs(z) < 0.5)] += 60 * target
    body += np.random.default_rng(seed).normal(0, 3, shape)
    image = nibabel.Nifti1Image(body.astype(np.float32), np.diag([2, 2, 3, 1]))
    return gzip.compress(image.to_bytes(), compresslevel=1, mtime=0)


@dataclass
class School:
    """A data root with a cohort, and a runner of all kinds."""

    root: Path
    catalogue: Catalogue
    runner: Runner
    rows: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(cls, root: Path, patients: int, *, memory_budget_bytes: int = 2 << 30) -> School:
        """A school whose patients have one scan each, known by their number, age and sex."""
        settings = WorkerSettings(
            data_root=root,
            device="cpu",
            retry_pause_s=0,
            memory_budget_bytes=memory_budget_bytes,
            cache_bytes=16 << 20,
        )
        catalogue = Catalogue.open(settings.catalogue_url)
        catalogue.announce("worker-1", [kind.announcement() for kind in KINDS], "cpu")
        school = cls(root, catalogue, Runner(catalogue, KINDS, settings, worker="worker-1", device="cpu"))
        generator = np.random.default_rng(7)
        for number, target in enumerate(generator.permutation(np.linspace(0, 1, patients)).tolist()):
            row = {
                "volume_id": school.ingested(organ(target, number)),
                "patient": f"patient-{number}",
                "target": round(target, 3),
                "covariates": {"age": float(generator.integers(30, 80)), "sex": float(number % 2)},
            }
            school.rows.append(row)
        return school

    def ingested(self, content: bytes) -> str:
        """The id of a volume that has been read."""
        record, job = upload(self.catalogue, self.root, content)
        self.runner.run(job.id)
        return record.id

    def run(self, kind: str, parameters: dict[str, Any], volume_id: str | None = None) -> Job:
        """A job, to its end."""
        ended = self.runner.run(self.catalogue.submit(kind, parameters, volume_id=volume_id).id)
        assert ended is not None
        return ended

    def train(self, rows: Sequence[dict[str, Any]] | None = None, **parameters: Any) -> Job:
        """A training, quick if nothing else is asked."""
        return self.run("train", {**QUICK, **parameters, "rows": list(self.rows if rows is None else rows)})

    def artifact(self, job: Job, name: str) -> Path:
        """Where an artifact of a job lies."""
        return ArtifactStore(self.root / "artifacts").path(job.id, job.attempt, name)


def without(row: dict[str, Any], *names: str) -> dict[str, Any]:
    """A row that lacks something."""
    return {name: value for name, value in row.items() if name not in names}


def bare(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without covariates."""
    return [without(row, "covariates") for row in rows]
