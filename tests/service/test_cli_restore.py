"""`tomotrain denoise` and `tomotrain complete`: with a real worker."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
from house import House, open_house
from test_cli_compress import store_of, url_of, working
from test_cli_train import Run, assert_one_line, run, words_of

from workers.jobs.complete import Complete
from workers.jobs.denoise import Denoise
from workers.jobs.ingest import Ingest

__all__ = ["run"]

SHAPE_XYZ = (24, 20, 22)
KINDS = (Ingest(), Denoise(), Complete())


@pytest.fixture(scope="module")
def clinic(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A service with a worker that restores."""
    with open_house(tmp_path_factory.mktemp("clinic")) as house:
        house.catalogue.announce("worker", [kind.announcement() for kind in KINDS], "cpu")
        with working(house, KINDS):
            yield house


def saved(path: Path, voxels: np.ndarray) -> Path:
    path.write_bytes(nibabel.Nifti1Image(voxels, np.eye(4)).to_bytes())
    return path


def body() -> np.ndarray:
    x, y, z = np.ogrid[tuple(slice(-1, 1, n * 1j) for n in SHAPE_XYZ)]
    made = 1000 * np.exp(-(x**2 + y**2 + z**2)) + np.random.default_rng(0).normal(0, 10, SHAPE_XYZ)
    return made.astype(np.float32)


def test_denoise_prints_how_strong_the_noise_is(run: Run, clinic: House, tmp_path: Path) -> None:
    scan = saved(tmp_path / "head.nii", body())
    answer = run("denoise", scan, "--url", url_of(clinic))
    assert answer.returncode == 0, answer.stderr
    job = clinic.catalogue.jobs(kind="denoise", limit=1)[0]
    assert job.result is not None
    assert job.result["sigma"] == pytest.approx(10, rel=0.1)
    words = words_of(answer.stdout)
    for part in [
        "head.nii, denoised",
        f"noise {job.result['sigma']:.4g} standard deviation, estimated from the scan",
        f"taken away {job.result['removed']:.4g}, root mean square",
        f"volume {job.result['volume_id']}",
    ]:
        assert part in words
    given = run("denoise", scan, "--sigma", "1", "--tile", "8", "--url", url_of(clinic), "--json")
    told = json.loads(given.stdout)
    assert told["job"]["parameters"]["sigma"] == 1
    assert told["job"]["result"]["removed"] < job.result["removed"]
    assert_one_line(run("denoise", scan, "--sigma", "-1"), "--sigma -1: must be a number of at least 0")


def test_complete_sends_scan_and_mask_and_prints_the_errors_to_expect(
    run: Run, clinic: House, tmp_path: Path
) -> None:
    scan = saved(tmp_path / "body.nii", 5 * body())
    mask = saved(tmp_path / "mask.nii", (np.random.default_rng(1).random(SHAPE_XYZ) < 0.7).astype(np.uint8))
    answer = run("complete", scan, "--mask", mask, "--url", url_of(clinic))
    assert answer.returncode == 0, answer.stderr
    result = clinic.catalogue.jobs(kind="complete", limit=1)[0].result
    assert result is not None
    words = words_of(answer.stdout)
    for part in [
        "scan.nii, completed",
        f"filled {result['gaps']:,} voxels",
        f"error, scattered {result['scattered']['rmse']:.4g}",
        f"at {result['scattered']['voxels']} voxels of single hidden voxels",
    ]:
        assert part in words
    assert np.isfinite(np.asarray(store_of(clinic, result["volume_id"]).array(0)[...])).all()
    refused = run("complete", scan, "--url", url_of(clinic))
    assert_one_line(refused, "there are no gaps")
    assert_one_line(run("complete", scan, "--mask", tmp_path / "none.nii"), "no such file")
