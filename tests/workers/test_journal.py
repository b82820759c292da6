"""What the log of a job says, and that nothing of a scan's header can be in it."""

from __future__ import annotations

import ast
import io
import logging
import os
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid
from support.probe import Probe, ProbeResult
from support.scans import upload

from storage.catalogue import Catalogue
from storage.errors import InvalidScan, StorageFull
from storage.ids import new_id
from storage.job_logs import JobLog, log_path, read_log
from storage.jobs import Job, JobState, Progress
from workers.context import JobContext
from workers.jobs.base import Outcome
from workers.jobs.ingest import Ingest
from workers.journal import PROGRESS_S, WITHHELD, Journal

ROOT = Path(__file__).resolve().parents[2]
DONE = Outcome(ProbeResult(number=1))
SECRET = "DOE^JANE"
PLANTED = {
    "AccessionNumber": "ACC-77120",
    "AdditionalPatientHistory": "history of Doe",
    "BranchOfService": "Navy Doe",
    "CountryOfResidence": "Ruritania",
    "CurrentPatientLocation": "Ward Doe 7",
    "DerivationDescription": "derived for Doe",
    "DeviceSerialNumber": "SN-55481-Z",
    "EthnicGroup": "Ruritanian",
    "ImageComments": "image of Doe",
    "InstitutionAddress": "1 Doe Street",
    "InstitutionName": "St. Doe Hospital",
    "InstitutionalDepartmentName": "Doe Unit",
    "IssuerOfPatientID": "Doe Registry",
    "NameOfPhysiciansReadingStudy": "Reader^Doe",
    "Occupation": "Doe keeper",
    "OperatorsName": "Operator^Doe",
    "OtherPatientIDs": "OTHER-4711",
    "OtherPatientNames": "Doe^Janet",
    "PatientAddress": "2 Doe Road",
    "PatientBirthName": "Roe^Jane",
    "PatientComments": "comment on Doe",
    "PatientID": "PID-4711-88",
    "PatientMotherBirthName": "Roe^Mary",
    "PatientName": SECRET,
    "PatientTelephoneNumbers": "+99 555 01234",
    "PerformingPhysicianName": "Performer^Doe",
    "ReferringPhysicianName": "Referrer^Doe",
    "RequestingPhysician": "Requester^Doe",
    "StationName": "DOESTATION",
    "StudyDescription": "study of Doe",
    "StudyID": "STUDY-DOE",
}
MALFORMED = {"PatientBirthDate": "Doe 1970", "PatientAge": "Doe years", "StudyTime": "Doe o'clock"}
"""Values that pydicom warns about, in words that quote them."""


def series(**changes: Any) -> bytes:
    """A zipped DICOM series with planted identifiers in values, file names and the archive's comment."""
    buffer, number = io.BytesIO(), generate_uid()
    with zipfile.ZipFile(buffer, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.comment = SECRET.encode()
        for index in range(4):
            file = io.BytesIO()
            pydicom.dcmwrite(file, plane(index, number, changes), enforce_file_format=True)
            archive.writestr(f"{SECRET}/{index}.dcm", file.getvalue())
    return buffer.getvalue()


def plane(index: int, series_uid: str, changes: dict[str, Any]) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = MRImageStorage, generate_uid()
    dataset.SeriesInstanceUID, dataset.Modality = series_uid, "MR"
    dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [0, 0, 2.0 * index], [1, 0, 0, 0, 1, 0]
    dataset.PixelSpacing, dataset.Rows, dataset.Columns = [1, 1], 16, 16
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 0
    dataset.PixelData = np.arange(256, dtype="<u2").tobytes()
    for name, value in {**PLANTED, **MALFORMED, **changes}.items():
        setattr(dataset, name, value)
    return dataset


def lines(root: Path, job: Job) -> list[dict[str, Any]]:
    return list(read_log(root, job.id).lines)


def leaks(root: Path, job: Job) -> list[str]:
    """Planted words that are in the log."""
    told = log_path(root, job.id).read_text().lower()
    return [word for word in (*PLANTED.values(), *MALFORMED.values(), "doe", "roe^") if word.lower() in told]


@pytest.mark.parametrize(
    ("changes", "events"),
    [
        ({}, {"begun", "progress", "ended"}),
        ({"Rows": 0}, {"begun", "error", "ended"}),
        ({"PixelData": SECRET.encode()}, {"begun", "error", "ended"}),
        ({"PhotometricInterpretation": SECRET}, {"begun", "error", "ended"}),
    ],
)
def test_no_planted_identifier_gets_in(
    changes: dict[str, Any], events: set[str], catalogue: Catalogue, make_runner: Any, tmp_path: Path
) -> None:
    _, job = upload(catalogue, tmp_path, series(**changes))
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        ended = make_runner(Ingest()).run(job.id)
    assert events <= {line["event"] for line in lines(tmp_path, job)} <= events | {"warning", "record"}
    assert (ended.state is JobState.SUCCEEDED) == ("error" not in events)
    assert leaks(tmp_path, job) == []
    assert str(ROOT) not in log_path(tmp_path, job.id).read_text()


def test_what_pydicom_quotes_in_its_warnings_is_withheld(
    catalogue: Catalogue, make_runner: Any, tmp_path: Path
) -> None:
    def behave(context: JobContext) -> Outcome:
        plane(0, generate_uid(), {})
        return DONE

    runner = make_runner(Probe(behave))
    job = catalogue.submit("probe", {})
    with warnings.catch_warnings(record=True) as quoted:
        warnings.simplefilter("always")
        assert runner.run(job.id).state is JobState.SUCCEEDED
    assert "Doe 1970" in str(quoted[0].message)
    warned = [line for line in lines(tmp_path, job) if line["event"] == "warning"]
    assert {line["trace"][0].rpartition(":")[0] for line in warned} == {"pydicom.valuerep"}
    assert leaks(tmp_path, job) == []


def careless(context: JobContext) -> Outcome:
    """Tells a secret in every way that there is."""
    log = logging.getLogger("tomotrain.somewhere")
    log.setLevel(logging.INFO)
    error = InvalidScan(SECRET)
    log.info("job %s: %d of %s planes, state %s", context.job.id, 3, SECRET, JobState.RUNNING)
    log.warning("%(name)s is %(number)d", {"name": SECRET, "number": 4})
    log.error("refused: %s, then %s", error, ValueError(SECRET))
    log.warning("%d planes", np.int64(4711))
    log.warning(Path(SECRET))
    try:
        raise KeyError(SECRET)
    except KeyError:
        log.exception("it goes on")
    logging.getLogger("pydicom").warning("bad value %s", SECRET)
    logging.getLogger().error(SECRET)
    warnings.warn(SECRET, UserWarning, stacklevel=1)
    raise RuntimeError(f"{SECRET} in {context.data_root}")


def test_the_worker_s_own_log_does_not_quote_a_refused_scan_either(
    catalogue: Catalogue, make_runner: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def behave(context: JobContext) -> Outcome:
        raise InvalidScan("it cannot be read") from ValueError(SECRET)

    ended = make_runner(Probe(behave)).run(catalogue.submit("probe", {}).id)
    assert f"job {ended.id}: invalid-scan" in caplog.text
    assert SECRET not in caplog.text


def test_what_careless_code_tells_is_withheld(catalogue: Catalogue, make_runner: Any, tmp_path: Path) -> None:
    runner = make_runner(Probe(careless))
    job = catalogue.submit("probe", {})
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        runner.run(job.id)
    assert leaks(tmp_path, job) == []
    assert str(tmp_path) not in log_path(tmp_path, job.id).read_text()
    told = [(line["level"], line["event"], line["text"]) for line in lines(tmp_path, job)]
    assert told == [
        ("info", "begun", "attempt 1 of 3 begins"),
        ("info", "record", f"job {job.id}: 3 of {WITHHELD} planes, state running"),
        ("warning", "record", f"{WITHHELD} is 4"),
        ("error", "record", "refused: invalid-scan, then ValueError"),
        ("warning", "record", "%d planes"),
        ("warning", "record", WITHHELD),
        ("error", "record", "it goes on"),
        ("warning", "warning", "UserWarning of a library"),
        ("error", "error", "it broke off: internal-error"),
        ("info", "ended", "failed"),
    ]
    noted = {line["text"]: line for line in lines(tmp_path, job)}
    assert noted["it goes on"]["type"] == "KeyError"
    broke = noted["it broke off: internal-error"]
    assert (broke["type"], broke["code"]) == ("RuntimeError", "internal-error")
    assert broke["trace"][-1].startswith(f"{careless.__module__}:")
    assert noted["UserWarning of a library"]["trace"][0].rpartition(":")[0].endswith("test_journal")


def test_every_record_of_this_program_is_a_literal() -> None:
    """An f-string would carry whatever is in it past the allow-list."""
    calls = [
        (path, node)
        for package in ("models", "storage", "workers")
        for path in sorted((ROOT / package).rglob("*.py"))
        if "getLogger" in (source := path.read_text())
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and _is_log_call(node.func)
    ]
    assert len(calls) > 20
    assert [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path, node in calls
        if not (isinstance(node.args[0], ast.Constant) and isinstance(node.args[0].value, str))
    ] == []


def _is_log_call(function: ast.expr) -> bool:
    levels = {"debug", "info", "warning", "error", "exception", "critical"}
    return (
        isinstance(function, ast.Attribute)
        and function.attr in levels
        and isinstance(function.value, ast.Name)
        and function.value.id in ("log", "logger")
    )


def test_attempts_follow_each_other_in_one_log(
    catalogue: Catalogue, make_runner: Any, tmp_path: Path
) -> None:
    def behave(context: JobContext) -> Outcome:
        context.report(Progress("reading", 1, 8, "planes"))
        context.report(Progress("reading", 2, 8, "planes"))
        context.report(Progress("writing"))
        if context.job.attempt == 1:
            raise StorageFull("full")
        return DONE

    runner = make_runner(Probe(behave))
    job = catalogue.submit("probe", {})
    assert runner.run(job.id).state is JobState.QUEUED
    assert runner.run(job.id).state is JobState.SUCCEEDED
    told = lines(tmp_path, job)
    assert [(line["attempt"], line["text"]) for line in told] == [
        (1, "attempt 1 of 3 begins"),
        (1, "reading"),
        (1, "writing"),
        (1, "it broke off: storage-full"),
        (1, "queued, to be tried again"),
        (2, "attempt 2 of 3 begins"),
        (2, "reading"),
        (2, "writing"),
        (2, "succeeded"),
    ]
    assert (told[1]["done"], told[1]["total"], told[1]["unit"]) == (1, 8, "planes")
    assert told[-1]["seconds"] >= 0
    assert [line["at"] for line in told] == sorted(line["at"] for line in told)


def test_progress_is_told_now_and_then(
    catalogue: Catalogue, make_runner: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr("workers.journal.time.monotonic", lambda: clock[0])
    make_runner(Probe(lambda context: DONE))
    job = catalogue.submit("probe", {})
    with Journal(tmp_path, job) as journal:
        for second in range(200):
            clock[0] = 1000.0 + second
            for phase in ("fitting", "checking"):
                journal.progress(Progress(phase, second, 200))
        clock[0] += 1000
        for second in range(3 * int(PROGRESS_S)):
            clock[0] += 1
            journal.progress(Progress("fitting", second, 200))
    told = [line["text"] for line in lines(tmp_path, job)]
    assert told[:2] == ["fitting", "checking"]
    assert len(told) <= 2 + 200 / 10 + 1 + 3
    assert told[-3:] == ["fitting"] * 3


def test_a_disk_that_refuses_costs_lines_and_not_the_job(
    catalogue: Catalogue, make_runner: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = make_runner(Probe(lambda context: DONE))
    (tmp_path / "logs").write_text("not a folder")
    assert runner.run(catalogue.submit("probe", {}).id).state is JobState.SUCCEEDED
    (tmp_path / "logs").unlink()

    def refuse(log: JobLog, line: Any) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(JobLog, "append", refuse)
    assert runner.run(catalogue.submit("probe", {}).id).state is JobState.SUCCEEDED


def test_a_worker_s_own_records_stay_out_when_no_job_runs(tmp_path: Path, catalogue: Catalogue) -> None:
    before = len(logging.getLogger("tomotrain").handlers), warnings.showwarning
    job = Job(new_id("job"), "probe", JobState.RUNNING, 1, 3, {}, None, "batch", 0.0)  # type: ignore[arg-type]
    with Journal(tmp_path, job):
        logging.getLogger("tomotrain.workers").error("during")
    logging.getLogger("tomotrain.workers").error("after")
    assert [line["text"] for line in lines(tmp_path, job)] == ["during"]
    assert (len(logging.getLogger("tomotrain").handlers), warnings.showwarning) == before
