"""Scans with a wrong unit, or with voxels that were never measured: refused, or told."""

from __future__ import annotations

import gzip
import tracemalloc
from typing import Any

import nibabel
import numpy as np
import pytest
from support.cohorts import School, bare, organ

from models.learning.preparation import Caveat
from models.learning.preparation.grid import MOST_READ
from storage.jobs import Job
from workers.jobs.predict import verdict

RESAMPLED = {"grid": "resample", "spacing": [3, 2, 2]}
NOT_JUDGED = "not judged: see the warnings"


def body() -> Any:
    """A scan that is like those of the school."""
    return np.asarray(nibabel.Nifti1Image.from_bytes(gzip.decompress(organ(0.6, 99))).dataobj)


def taken_in(school: School, voxels: Any, spacing: tuple[float, float, float] = (2, 2, 3)) -> str:
    image = nibabel.Nifti1Image(voxels, np.diag([*spacing, 1]))
    return school.ingested(gzip.compress(image.to_bytes(), compresslevel=1))


def warnings(job: Job) -> dict[str, str]:
    assert job.result is not None, job.error
    return {warning["code"]: warning["text"] for warning in job.result["warnings"]}


@pytest.fixture(scope="module")
def model(school: School) -> Job:
    return school.train(bare(school.rows))


def predicted(school: School, model: Job, volume_id: str) -> Job:
    return school.run("predict", {"model": model.id}, volume_id)


def test_voxels_that_were_never_measured_are_told_by_every_kind(school: School, model: Job) -> None:
    voxels = body().copy()
    voxels[3:5, 4:9, 2:7] = np.nan
    volume_id = taken_in(school, voxels)
    told = "50 voxels (0.65 %) were NaN or infinite"
    assert warnings(predicted(school, model, volume_id))["voxels-replaced"].startswith(told)
    rows = bare(school.rows)
    odd = {**rows[0], "volume_id": volume_id, "patient": "another"}
    for job in (
        school.run("evaluate", {"model": model.id, "rows": [odd, rows[1]]}),
        school.train([odd, *rows[1:]]),
    ):
        text = warnings(job)["voxels-replaced"]
        assert text.startswith("1 of ")
        assert told in text
    assert "voxels-replaced" not in warnings(model)


def test_there_is_no_yes_beside_a_spacing_that_was_not_learnt_from(school: School, model: Job) -> None:
    usual = predicted(school, model, taken_in(school, body()))
    assert usual.result is not None
    assert usual.result["verdict"].startswith("yes: ")
    far = predicted(school, model, taken_in(school, body(), (0.002, 0.002, 0.003)))
    assert far.result is not None
    assert "spacing-far" in warnings(far)
    assert far.result["verdict"] == NOT_JUDGED


@pytest.mark.parametrize("code", ["spacing-far", "covariate-outside", "modality-other"])
def test_a_warning_takes_back_a_yes_but_no_no(code: str) -> None:
    caveats = (Caveat("voxels-replaced", ""), Caveat(code, ""))
    assert verdict(40.0, caveats[:1]).startswith("yes: ")
    assert verdict(40.0, caveats) == NOT_JUDGED
    assert verdict(97.0, caveats).startswith("hardly")
    assert verdict(100.0, caveats).startswith("no: ")
    assert verdict(None, caveats).startswith("not known")


@pytest.mark.parametrize("unit", [1e-3, 0.05, 1e3])
def test_a_scan_in_another_unit_is_refused_by_every_kind(school: School, unit: float) -> None:
    rows = bare(school.rows)
    model = school.train(rows, preparation=RESAMPLED)
    odd = taken_in(school, body(), (2 * unit, 2 * unit, 3 * unit))
    others = [{**rows[0], "volume_id": odd, "patient": "another"}, *rows[1:]]
    name = school.catalogue.volume(odd).name
    for job, named in (
        (predicted(school, model, odd), "the scan"),
        (school.run("evaluate", {"model": model.id, "rows": others}), name),
        (school.train(others, preparation=RESAMPLED), name),
        (school.train(others, preparation={"grid": "resample"}), name),
    ):
        error = job.error or {}
        assert error["code"] == "invalid-shape"
        spacing = f"{3 * unit:.4g} x {2 * unit:.4g} x {2 * unit:.4g} mm"
        assert error["detail"].startswith(f"{named} has voxels of {spacing}")
        assert "3 x 2 x 2 mm" in error["detail"]
        assert "is the unit right?" in error["detail"]


def test_a_much_finer_scan_is_resampled_without_much_memory(school: School) -> None:
    model = school.train(bare(school.rows), preparation=RESAMPLED)
    fine = taken_in(school, body(), (2 / 15, 2 / 15, 3 / 15))
    tracemalloc.start()
    try:
        job = predicted(school, model, fine)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert "spacing-far" in warnings(job)
    assert peak < 4 * 8 * MOST_READ


@pytest.mark.parametrize(
    ("preparation", "setting"),
    [
        ({"clip": 10**400}, "clip"),
        ({"shape": [True, 8, 8]}, "shape"),
        ({"shape": [10**400, 1, 1]}, "shape"),
        ({"grid": "resample", "spacing": [1e300, 1e300, 1e300]}, "spacing"),
        ({"grid": "resample", "spacing": [1e-300, 1e-300, 1e-300]}, "spacing"),
    ],
)
def test_settings_beyond_all_reason_are_named(
    school: School, preparation: dict[str, Any], setting: str
) -> None:
    error = school.train(preparation=preparation).error or {}
    assert error["code"] == "invalid-parameters"
    assert f"/preparation/{setting}" in error["detail"]
