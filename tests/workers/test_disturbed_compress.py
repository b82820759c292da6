"""Jobs that make a volume, disturbed: cancelled anywhere, overtaken by another attempt, on a full disk.

Whatever happens, one whole volume is published or none, and no other file is left below the data root.
"""

from __future__ import annotations

import builtins
import errno
import gzip
import io
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray
from support.cohorts import School

from storage.catalogue import Catalogue
from storage.derived_compressed import ENOUGH
from storage.errors import MissingVolume
from storage.ids import derived_id
from storage.jobs import Job, JobState, Progress
from storage.volume import Volume
from workers.jobs import KINDS
from workers.lease import Lease
from workers.runner import Runner
from workers.settings import WorkerSettings

Report = Callable[[Lease, Progress], None]
FULL = "/dev/full"
SHAPE = (260, 6, 6)
"""(z, y, x): of five shards and four levels, in few voxels."""


@dataclass(frozen=True)
class Case:
    """A job: its kind, what is asked of it, and of which volume of the site."""

    kind: str
    parameters: dict[str, Any]
    of: str = "scan"
    phases: tuple[str, ...] = ("coding 1", "manifest 1", "measuring")


PUTT = Case("compress", {"psnr": 45}, phases=("sampling", "fitting", "coding 1", "manifest 1", "measuring"))
TWICE = replace(PUTT, parameters={"ratio": 8}, of="long", phases=(*PUTT.phases, "coding 2", "manifest 2"))
QUICK = Case("compress", {"bound": 0, "compressor": "zstd"})
DECOMPRESS = Case("decompress", {}, "small", ("coding", "manifest"))
DENOISE = Case("denoise", {"tile": 8, "overlap": 0}, phases=("estimating the noise", "denoising", "manifest"))
COMPLETE = Case("complete", {"tile": 16}, "torn", ("looking for gaps", "completing", "manifest"))
NIFTI = Case("export", {"format": "nifti"}, phases=("writing",))
OME_ZARR = Case("export", {"format": "ome-zarr"}, "small", ("writing",))
ALL = (PUTT, DECOMPRESS, DENOISE, COMPLETE, NIFTI, OME_ZARR)
MAKERS = (QUICK, DECOMPRESS, DENOISE, COMPLETE)


def called(case: Case) -> str:
    return "-".join([case.kind, *map(str, case.parameters.values())])


@dataclass
class Site:
    """A data root with volumes by their names, and what cases come to when nobody disturbs them."""

    school: School
    volumes: dict[str, str]
    references: dict[str, str] = field(default_factory=dict)

    @property
    def root(self) -> Path:
        return self.school.root

    @property
    def catalogue(self) -> Catalogue:
        return self.school.catalogue

    def submit(self, case: Case) -> Job:
        return self.catalogue.submit(case.kind, case.parameters, volume_id=self.volumes[case.of])

    def run(self, job: Job) -> Job:
        ended = self.school.runner.run(job.id)
        assert ended is not None
        return ended

    def reference(self, case: Case) -> str:
        """The digest of the volume that an undisturbed job makes."""
        if (name := called(case)) not in self.references:
            self.references[name] = self.digest(self.run(self.submit(case)))
        return self.references[name]

    def digest(self, job: Job) -> str:
        """Of the one volume that a job has made, which is whole."""
        assert job.state is JobState.SUCCEEDED, job.error
        record = self.catalogue.volume(derived_id(job.id))
        assert record.stored is not None
        assert record.store == f"volumes/{record.id}/{job.attempt}.zarr"
        Volume.open(self.root / record.store, record.stored.digest).verify()
        return record.stored.digest

    def paths(self) -> set[Path]:
        """Of all files and folders that belong to something; not the catalogue's, nor the jobs' logs."""
        below = {path.relative_to(self.root) for path in self.root.glob("*/**/*")}
        return {path for path in below if path.parts[0] != "logs"}

    def check_nothing(self, job: Job, before: set[Path]) -> None:
        """The job has left nothing."""
        assert (job.result, job.artifacts) == (None, ())
        with pytest.raises(MissingVolume):
            self.catalogue.volume(derived_id(job.id))
        assert self.paths() == before

    def check_published(self, job: Job, before: set[Path]) -> None:
        """The volume, and what else the job's last attempt has published; nothing more."""
        volume, artifacts = Path("volumes", derived_id(job.id)), Path("artifacts", job.id)
        whole = (volume / f"{job.attempt}.zarr", artifacts / str(job.attempt))
        new = self.paths() - before - {volume, artifacts}
        assert before <= self.paths()
        assert all(any(path.is_relative_to(place) for place in whole) for path in new)
        assert {path.name for path in new if path.is_relative_to(whole[1])} >= {
            artifact.name for artifact in job.artifacts
        }


def scan(shape: tuple[int, int, int] = SHAPE, *, torn: bool = False) -> bytes:
    z, y, x = np.ogrid[tuple(slice(-1, 1, side * 1j) for side in shape)]
    voxels = 1000 * np.exp(-2 * (x**2 + y**2 + z**2)) + np.random.default_rng(0).normal(0, 8, shape)
    values: NDArray[Any] = voxels.astype(np.float32 if torn else np.int16)
    if torn:
        values[[9, 80, 81, 150], 2:4] = np.nan
    return gzip.compress(nibabel.Nifti1Image(values.T, np.eye(4)).to_bytes(), compresslevel=1)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    school = School.of(tmp_path_factory.mktemp("site"), 0)
    found = Site(school, {"scan": school.ingested(scan()), "torn": school.ingested(scan(torn=True))})
    found.volumes["small"] = derived_id(found.run(found.submit(QUICK)).id)
    found.run(found.submit(NIFTI))
    yield found
    school.catalogue.close()


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Callable[[Report], None]:
    """Has something done before each report of a job."""

    def watch(act: Report) -> None:
        told = Lease.report

        def report(lease: Lease, progress: Progress) -> None:
            act(lease, progress)
            told(lease, progress)

        monkeypatch.setattr(Lease, "report", report)

    return watch


# Cancelled


def check_cancelling(site: Site, watched: Callable[[Report], None], case: Case) -> None:
    """In the midst of each phase that an undisturbed job tells of."""
    phases: list[str] = []
    stop_at: tuple[str, int] | None = None

    def act(lease: Lease, progress: Progress) -> None:
        phases.append(progress.phase)
        if stop_at == (progress.phase, phases.count(progress.phase)):
            site.catalogue.request_cancel(job.id)
            lease._beat()

    watched(act)
    job = site.submit(case)
    assert site.run(job).state is JobState.SUCCEEDED
    assert set(phases) >= set(case.phases)
    before = site.paths()
    for phase in dict.fromkeys(phases):
        stop_at = phase, -(-phases.count(phase) // 2)
        told, phases[:] = list(phases), []
        job = site.submit(case)
        ended = site.run(job)
        assert ended.state is JobState.CANCELLED, phase
        assert phases == told[: len(phases)]
        assert (phases[-1], phases.count(phase)) == stop_at
        site.check_nothing(ended, before)
        phases[:] = told


@pytest.fixture
def never_enough(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A volume of which a sample does not tell all, and whatever a first pass comes to, there is another."""
    if "long" not in site.volumes:
        site.volumes["long"] = site.school.ingested(scan((1600, 12, 12)))
    monkeypatch.setattr("storage.derived_compressed.ENOUGH", dict.fromkeys(ENOUGH, -1.0))


@pytest.mark.slow
@pytest.mark.usefixtures("never_enough")
def test_a_job_that_is_cancelled_in_any_pass_leaves_nothing(
    site: Site, watched: Callable[[Report], None]
) -> None:
    check_cancelling(site, watched, TWICE)


@pytest.mark.parametrize("case", ALL, ids=called)
def test_a_job_that_is_cancelled_in_any_phase_leaves_nothing(
    site: Site, watched: Callable[[Report], None], case: Case
) -> None:
    check_cancelling(site, watched, case)


@pytest.mark.parametrize("case", [QUICK, *ALL[1:]], ids=called)
def test_a_job_that_is_cancelled_when_all_is_written_publishes_nothing(
    site: Site, monkeypatch: pytest.MonkeyPatch, case: Case
) -> None:
    before, job, finish = site.paths(), site.submit(case), Catalogue.finish

    def late(catalogue: Catalogue, job_id: str, *arguments: Any, **named: Any) -> Job:
        assert site.paths() > before
        catalogue.request_cancel(job_id)
        return finish(catalogue, job_id, *arguments, **named)

    monkeypatch.setattr(Catalogue, "finish", late)
    ended = site.run(job)
    assert ended.state is JobState.CANCELLED
    site.check_nothing(ended, before)


# Overtaken


class Race:
    """An attempt that falls silent at a point of its work, and goes on when the next attempt is at one."""

    def __init__(self, site: Site, job: Job, silent_at: str, resumed_at: str) -> None:
        self.site, self.job = site, job
        self._silent_at, self._resumed_at = silent_at, resumed_at
        self._silent, self._resumed = threading.Event(), threading.Event()
        self.ends: dict[int, Job | None] = {}
        self._first = threading.Thread(target=self._run, args=(1, 0.1))

    def report(self, lease: Lease, progress: Progress) -> None:
        """Between two reports an attempt is where the last one was."""
        self.reached(lease._job.attempt, progress.phase)

    def reached(self, attempt: int, point: str) -> None:
        if attempt == 1 and point == self._silent_at and not self._silent.is_set():
            self._silent.set()
            assert self._resumed.wait(60)
        if attempt == 2 and point == self._resumed_at:
            self._let_go()

    def run(self) -> Job | None:
        """Both attempts, to their ends; the later one's."""
        self._first.start()
        assert self._silent.wait(60)
        while self.site.catalogue.job(self.job.id).state is JobState.RUNNING:
            self.site.catalogue.sweep()
        self._run(2, 30.0)
        self._let_go()
        return self.ends[2]

    def _let_go(self) -> None:
        self._resumed.set()
        self._first.join(60)
        assert not self._first.is_alive()

    def _run(self, attempt: int, lease_s: float) -> None:
        settings = WorkerSettings(
            data_root=self.site.root,
            device="cpu",
            lease_s=lease_s,
            memory_budget_bytes=2 << 30,
            retry_pause_s=0,
        )
        runner = Runner(self.site.catalogue, KINDS, settings, worker=f"worker-{attempt}", device="cpu")
        self.ends[attempt] = runner.run(self.job.id)


@pytest.fixture
def race(
    site: Site, watched: Callable[[Report], None], monkeypatch: pytest.MonkeyPatch
) -> Callable[[Case, str, str], Race]:
    """Starts one; the first attempt never renews its lease."""

    def start(case: Case, silent_at: str, resumed_at: str) -> Race:
        running = Race(site, site.submit(case), silent_at, resumed_at)
        beat, finish = Lease._beat, Catalogue.finish

        def beat_of_the_second(lease: Lease) -> None:
            if lease._job.attempt == 2:
                beat(lease)

        def finish_later(catalogue: Catalogue, job_id: str, attempt: int, *rest: Any, **named: Any) -> Job:
            running.reached(attempt, "publishing")
            return finish(catalogue, job_id, attempt, *rest, **named)

        watched(running.report)
        monkeypatch.setattr(Lease, "_beat", beat_of_the_second)
        monkeypatch.setattr(Catalogue, "finish", finish_later)
        return running

    return start


POINTS = [
    (case, silent_at, resumed_at)
    for case in MAKERS
    for silent_at in (*case.phases[-3:], "publishing")
    for resumed_at in (case.phases[0], "publishing", "the end")
]
BRIEF = [
    *(point for point in POINTS if point[0] is QUICK),
    (DECOMPRESS, "coding", "publishing"),
    (DENOISE, "denoising", "publishing"),
    (COMPLETE, "completing", "the end"),
]


@pytest.mark.parametrize(
    ("case", "silent_at", "resumed_at"),
    [
        pytest.param(*point, id=", ".join([called(point[0]), *point[1:]]), marks=marks)
        for point in POINTS
        for marks in [[] if point in BRIEF else [pytest.mark.slow]]
    ],
)
def test_an_attempt_that_was_overtaken_cannot_publish(
    site: Site,
    race: Callable[[Case, str, str], Race],
    caplog: pytest.LogCaptureFixture,
    case: Case,
    silent_at: str,
    resumed_at: str,
) -> None:
    reference, before = site.reference(case), site.paths()
    running = race(case, silent_at, resumed_at)
    ended = running.run()
    assert running.ends[1] is None
    assert ended is not None
    assert ended.attempt == 2
    assert site.digest(ended) == reference
    site.check_published(ended, before)
    assert not [entry for entry in caplog.records if "internal-error" in entry.getMessage()]


# A full disk


class Disk:
    """Writes below a folder; from the one that is `full_from` on the disk is full: names can be made, but
    nothing gets into the files.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.full_from, self.writes = root, 0, 0
        self.io_open, self.os_open, self.os_mkdir, self.os_fsync = io.open, os.open, os.mkdir, os.fsync

    def open(self, file: Any, mode: str = "r", *arguments: Any, **named: Any) -> Any:
        if not set("wax+") & set(mode) or not self._is_below(file) or not self._is_full():
            return self.io_open(file, mode, *arguments, **named)
        self.io_open(file, mode).close()
        return self.io_open(FULL, mode.replace("x", "w"), *arguments, **named)

    def descriptor(self, file: Any, flags: int, *arguments: Any, **named: Any) -> int:
        if not flags & (os.O_WRONLY | os.O_RDWR) or not self._is_below(file) or not self._is_full():
            return self.os_open(file, flags, *arguments, **named)
        return self.os_open(FULL, os.O_WRONLY)

    def mkdir(self, path: Any, *arguments: Any, **named: Any) -> None:
        if self._is_below(path) and self._is_full():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.os_mkdir(path, *arguments, **named)

    def fsync(self, descriptor: int) -> None:
        if os.fstat(descriptor).st_rdev != Path(FULL).stat().st_rdev:
            self.os_fsync(descriptor)

    def _is_below(self, path: Any) -> bool:
        return isinstance(path, str | os.PathLike) and Path(os.fspath(path)).is_relative_to(self.root)

    def _is_full(self) -> bool:
        self.writes += 1
        return 0 < self.full_from <= self.writes


@pytest.fixture
def disk(site: Site, monkeypatch: pytest.MonkeyPatch) -> Disk:
    made = Disk(site.root)
    monkeypatch.setattr(builtins, "open", made.open)
    monkeypatch.setattr(io, "open", made.open)
    monkeypatch.setattr(os, "open", made.descriptor)
    monkeypatch.setattr(os, "mkdir", made.mkdir)
    monkeypatch.setattr(os, "fsync", made.fsync)
    return made


@pytest.mark.parametrize(
    ("case", "every"),
    [
        (QUICK, 16),
        (DECOMPRESS, 40),
        pytest.param(QUICK, 3, marks=pytest.mark.slow),
        *(pytest.param(case, 7, marks=pytest.mark.slow) for case in MAKERS[1:]),
    ],
)
def test_a_disk_that_is_full_from_any_write_on_costs_an_attempt_and_nothing_else(
    site: Site, disk: Disk, case: Case, every: int
) -> None:
    """Checkpoints and drafts are kept for the next attempt, which comes to the same volume."""
    reference = site.reference(case)
    disk.writes = 0
    site.run(site.submit(case))
    for full_from in range(disk.writes, 0, -every):
        job, before = site.submit(case), site.paths()
        disk.full_from, disk.writes = full_from, 0
        retried = site.run(job)
        assert (retried.state, retried.attempt) == (JobState.QUEUED, 1), full_from
        kept = {path for path in site.paths() - before if (site.root / path).is_file()}
        assert all(path.is_relative_to(Path("checkpoints", job.id)) for path in kept)
        with pytest.raises(MissingVolume):
            site.catalogue.volume(derived_id(job.id))
        disk.full_from = 0
        ended = site.run(job)
        assert ended.attempt == 2
        assert site.digest(ended) == reference
        site.check_published(ended, before)


@pytest.mark.slow
@pytest.mark.usefixtures("never_enough")
def test_an_attempt_that_ends_in_the_first_of_two_passes_changes_nothing(
    site: Site, disk: Disk, watched: Callable[[Report], None]
) -> None:
    reference, job = site.reference(TWICE), site.submit(TWICE)

    def act(lease: Lease, progress: Progress) -> None:
        if progress.phase == "coding 1" and progress.done and lease._job.attempt == 1:
            disk.full_from = disk.writes + 1

    watched(act)
    assert site.run(job).state is JobState.QUEUED
    disk.full_from = 0
    assert site.digest(site.run(job)) == reference


def test_what_zarr_was_writing_when_it_was_killed_gets_into_no_volume(site: Site, disk: Disk) -> None:
    """It writes metadata as `zarr.<hex>.partial` first."""
    reference = site.digest(site.run(site.submit(QUICK)))
    disk.full_from, disk.writes = disk.writes - 12, 0
    before, job = site.paths(), site.submit(QUICK)
    assert site.run(job).state is JobState.QUEUED
    disk.full_from = 0
    (store,) = (site.root / "checkpoints" / job.id).glob("drafts/*/volume.zarr")
    (store / "0" / "zarr.0123456789abcdef.partial").write_text("{")
    ended = site.run(job)
    assert site.digest(ended) == reference
    site.check_published(ended, before)


@pytest.mark.parametrize("case", MAKERS, ids=called)
def test_a_disk_that_stays_full_fails_the_job_and_nothing_is_left(site: Site, disk: Disk, case: Case) -> None:
    before, job = site.paths(), site.submit(case)
    for attempt, full_from in enumerate((20, 10, 1), start=1):
        disk.full_from, disk.writes = full_from, 0
        ended = site.run(job)
        assert ended.attempt == attempt
    assert ended.state is JobState.FAILED
    assert ended.error is not None
    assert ended.error["code"] == "storage-full"
    assert str(site.root) not in str(ended.error)
    site.check_nothing(ended, before)
