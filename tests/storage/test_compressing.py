"""Compressing a stored volume: who is chosen, and what an interrupted attempt leaves to the next one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storage.checkpoints import Checkpoints
from storage.compressors.goals import Goal
from storage.compressors.sampled import Estimate
from storage.derived import Drafts
from storage.derived_choice import UNCERTAIN, chosen
from storage.derived_compressed import Compressed, compressed
from storage.errors import JobCancelled, UnsuitableCompressor
from storage.ingest import ingest
from storage.jobs import Progress
from storage.records import Derivation
from storage.volume import Volume
from tests.storage.scans import ArrayScan


@pytest.fixture
def source(tmp_path: Path) -> Volume:
    """12 tiles in two shards at level 0, rougher to one side."""
    shape = (66, 66, 130)
    rough = np.random.default_rng(0).normal(0, 20, shape) * np.linspace(0, 2, 130)
    voxels = (400 * np.sin(np.arange(130) / 15) + rough).astype(np.int16)
    facts = ingest(ArrayScan(voxels), tmp_path / "source")
    return Volume.open(tmp_path / "source", facts.digest)


def attempt(source: Volume, folder: Path, number: int, report: Any) -> Compressed:
    return compressed(
        source,
        Goal("psnr", 34),
        compressor="zfp",
        seed=0,
        drafts=Drafts(folder / "drafts", "job_1", number),
        derivation=Derivation("vol_1", source.stored.digest, "test", {}),
        checkpoints=Checkpoints(folder / "checkpoints", number),
        report=report,
    )


def test_the_next_attempt_goes_on_in_the_middle_of_a_later_pass(
    source: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.derived_compressed.ENOUGH", {"psnr": 0.0})
    monkeypatch.setattr("storage.derived_compressed.MOST_PASSES", 2)
    monkeypatch.setattr("storage.derived_samples.FEWEST_TILES", 4)
    monkeypatch.setattr("storage.derived_samples.TRIAL_TILES", 2)

    def ending(progress: Progress) -> None:
        if progress.phase == "coding 2" and progress.done > 8:
            raise JobCancelled("job_1")

    with pytest.raises(JobCancelled):
        attempt(source, tmp_path, 1, ending)
    phases: list[str] = []
    after = attempt(source, tmp_path, 2, lambda progress: phases.append(progress.phase))
    assert after.written.kept == 6
    assert {"fitting", "coding 1"}.isdisjoint(phases[: phases.index("coding 2")])
    whole = attempt(source, tmp_path / "other", 1, lambda progress: None)
    assert [one.number for one in whole.passes] == [one.number for one in after.passes]
    assert len(whole.passes) == 2


class Told:
    """Samples that say what they are told to, by compressor: the trial's size, and the full one's."""

    trial = None

    def __init__(self, sizes: dict[str, tuple[float, float]]) -> None:
        self.sizes = sizes
        self.asked: list[str] = []

    def aim(self, goal: Goal) -> Goal:
        return goal

    def estimate(self, sample: object, scheme: Any, goal: Goal) -> Estimate:
        return self._estimate(self.sizes[scheme.compressor][0])

    def promised(self, scheme: Any, goal: Goal) -> Estimate:
        self.asked.append(scheme.compressor)
        return self._estimate(self.sizes[scheme.compressor][1])

    def _estimate(self, size: float) -> Estimate:
        return Estimate(1.0, size, 1000 / size, 50.0, 1.0)


FAR = dict.fromkeys(
    ["wavelet", "tucker", "jpeg2000", "jpegxl", "blosc", "zstd", "jpeg2000_lossless", "jpegxl_lossless"],
    (900.0, 1.0),
)


def test_of_the_hopeful_the_one_is_taken_that_does_best_on_the_full_sample(source: Volume) -> None:
    told = Told({"putt": (100, 120), "zfp": (110, 90), "tt_svd": (100 * UNCERTAIN + 1, 50), **FAR})
    assert chosen(source.stored, Goal("psnr", 40), "auto", told) == "zfp"  # type: ignore[arg-type]
    assert told.asked == ["putt", "zfp"]
    alone = Told({"putt": (100, 120), "zfp": (120, 90), "tt_svd": (130, 50), **FAR})
    assert chosen(source.stored, Goal("psnr", 40), "auto", alone) == "putt"  # type: ignore[arg-type]
    assert alone.asked == []


def test_a_choice_among_none_is_refused(source: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.derived_choice.COMPRESSORS", {})
    with pytest.raises(UnsuitableCompressor, match="no compressor that is installed takes these values"):
        chosen(source.stored, Goal("psnr", 40), "auto", Told({}))  # type: ignore[arg-type]
