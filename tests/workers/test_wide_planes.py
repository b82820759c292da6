"""Planes far wider than a volume is deep: compressed in the memory that was asked for, read box by box."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import nibabel
import numpy as np
import pytest
from support.cohorts import School

from storage.derived_report import LevelReader
from storage.ids import derived_id
from storage.jobs import JobState
from storage.volume import Volume
from workers.jobs.compress import compressing_bytes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
    import sys
    from pathlib import Path

    from storage.catalogue import Catalogue
    from workers.jobs import KINDS
    from workers.runner import Runner
    from workers.settings import WorkerSettings

    settings = WorkerSettings(data_root=Path(sys.argv[1]), device="cpu", memory_budget_bytes=2 << 30)
    with Catalogue.open(settings.catalogue_url) as catalogue:
        Runner(catalogue, KINDS, settings, worker="worker-1", device="cpu").run(sys.argv[2])
"""
"""A process of its own: its memory is the job's."""


def plane(rows: int, columns: int, seed: int) -> np.ndarray:
    """A smooth body, ripples and some noise; (y, x)."""
    y, x = np.ogrid[-1 : 1 : rows * 1j, -1 : 1 : columns * 1j]
    noise = np.random.default_rng(seed).normal(0, 20, (rows, columns))
    made = 20_000 * np.exp(-2 * (x**2 + y**2)) + 400 * np.sin(90 * x + seed) * np.cos(70 * y) + 1000 + noise
    return np.rint(made).astype(np.uint16)


@pytest.mark.parametrize("shape", [(3, 3000, 3000), (1, 6000, 6000)])
def test_a_wide_plane_at_twenty_to_one(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    school = School.of(tmp_path, 0)
    voxels = np.stack([plane(*shape[1:], seed) for seed in range(shape[0])])
    source = school.ingested(nibabel.Nifti1Image(voxels.T, np.eye(4)).to_bytes())
    job = school.catalogue.submit("compress", {"ratio": 20}, volume_id=source)
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(tmp_path), job.id]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, timeout=800)
    ended = school.catalogue.job(job.id)
    assert ended.state is JobState.SUCCEEDED, ended.error
    assert ended.result is not None
    assert 20 <= ended.result["ratio"] <= 22
    record, original = (school.catalogue.volume(name) for name in (derived_id(job.id), source))
    assert record.stored is not None
    assert original.stored is not None
    assert ended.result["peak_memory_bytes"] <= compressing_bytes(original.stored, 1)

    made = Volume.open(tmp_path / str(record.store), record.stored.digest)
    made.verify()
    reader, generator = LevelReader(made), np.random.default_rng(0)
    for _ in range(20):
        y, x = (int(at) for at in generator.integers(0, shape[1] - 200, 2))
        box = slice(0, shape[0]), slice(y, y + 200), slice(x, x + 200)
        errors = reader.box(0, None, box).astype(float) - voxels[box]
        assert np.abs(errors).max() <= ended.result["max_error"]
    np.testing.assert_array_equal(
        made.plane("z", 0)[-1],
        reader.box(0, None, (slice(0, 1), slice(shape[1] - 1, shape[1]), slice(0, shape[2])))[0, 0],
    )
    school.catalogue.close()
