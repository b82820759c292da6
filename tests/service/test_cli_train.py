"""`tomotrain train`, `predict`, `evaluate` and `compress-model`: what they send, print and refuse."""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from house import EMBED, INTERNAL, House

from service.cli import main
from service.client import Client
from service.learning_report import evaluation_tables, prediction_rows, training_rows
from service.schemas import JobView
from storage.jobs import Job, JobKind, JobState, Queue

NOTICE = "For research. Not a medical device."
FIGURE = {"value": 4.25, "low": 3.5, "high": 5.0, "spread": 0.5}
NONE = {"value": None, "low": None, "high": None, "spread": None}
WARNING = {"code": "few-scans", "text": "30 trained numbers for 3 scans: more may be learnt than holds"}
RESULTS: dict[str, dict[str, Any]] = {
    "train": {
        "notice": NOTICE,
        "regressor": "voxel_ridge",
        "task": "mean",
        "classes": [],
        "target_name": "age",
        "target_unit": "years",
        "rows": 3,
        "scans": 2,
        "patients": 2,
        "covariates": ["sex"],
        "folds": 5,
        "compared": [
            {"regressor": "voxel_ridge", "metrics": {"rmse": FIGURE, "r2": FIGURE}, "reason": "simplest"},
            {"regressor": "constant", "metrics": {"rmse": FIGURE, "r2": NONE}, "reason": "beaten"},
        ],
        "reasons": ["the simplest that none beats at 95 %"],
        "intervals": [
            {"level": 0.9, "threshold": 7.5, "needed": 9},
            {"level": 0.95, "threshold": None, "needed": 19},
        ],
        "warnings": [WARNING],
        "model_parameters": 30,
        "seconds": 61.25,
    },
    "predict": {
        "notice": NOTICE,
        "target_name": "age",
        "target_unit": "years",
        "value": 63.25,
        "class_name": None,
        "intervals": [
            {"level": 0.9, "low": 55.75, "high": 70.75},
            {"level": 0.95, "low": None, "high": None},
        ],
        "quantiles": [{"level": 0.2, "value": 60.0}],
        "probabilities": [],
        "verdict": "yes: closer to the training's scans than 71 % of them",
        "warnings": [{"code": "spacing-far", "text": "spacing 5 mm"}],
        "voxels": 4000,
        "share_read": 0.25,
        "cubes_read": 520,
        "seconds": 0.71,
        "model": "job_1",
        "regressor": "voxel_ridge",
    },
    "evaluate": {
        "notice": NOTICE,
        "model": "job_1",
        "regressor": "voxel_ridge",
        "rows": 3,
        "scans": 2,
        "patients": 2,
        "metrics": {"rmse": FIGURE, "r2": NONE},
        "coverage": [{"level": 0.9, "observed": 0.875, "low": 0.8, "high": 0.9}],
        "warnings": [WARNING],
    },
    "compress-model": {
        "notice": NOTICE,
        "model": "job_1",
        "regressor": "resnet3d",
        "task": "mean",
        "target_unit": "years",
        "method": "ring",
        "goal": {"pcr": 3.0},
        "pcr": 3.0125,
        "fcr": 2.5,
        "fcr_executed": 1.0,
        "parameters": {"before": 6025, "after": 2000},
        "macs": {"before": 5000, "after": 2000},
        "bytes": {"before": 30000, "after": 12000},
        "latency": {"before": {"p50_s": 0.5, "p95_s": 0.75}, "after": {"p50_s": 0.25, "p95_s": 0.5}},
        "layers_changed": 8,
        "layers_left": 5,
        "largest_layer_error": 0.25,
        "metrics": {
            "rmse": {"before": FIGURE, "after": FIGURE, "difference": FIGURE},
            "r2": dict.fromkeys(("before", "after", "difference"), NONE),
        },
        "agreement": {
            "of": "mean",
            "largest_change": 1.5,
            "mean": 0.25,
            "lower": -1.0,
            "upper": 1.25,
            "other_classes": None,
        },
        "intervals": [{"level": 0.9, "threshold": 9.0, "needed": 9}],
        "guarantee": "covers a row of a new patient; widened by 1.5",
        "made_on": {"rows": 2, "scans": 1, "patients": 1},
        "judged_on": {"rows": 1, "scans": 1, "patients": 1},
        "warnings": [WARNING],
    },
}


def kind(name: str, *, needs_volume: bool = False) -> JobKind:
    return JobKind(
        name=name,
        version="1",
        title=name.title(),
        description="For tests",
        queue=Queue.TRAIN,
        parameters_schema={"type": "object"},
        result_schema={"type": "object"},
        needs_volume=needs_volume,
    )


@pytest.fixture
def classroom(house: House) -> House:
    """A service whose worker has announced the kinds that learn."""
    learning = [kind("train"), kind("predict", needs_volume=True), kind("evaluate"), kind("compress-model")]
    house.catalogue.announce("worker", [EMBED, INTERNAL, *learning], "cpu")
    return house


@contextmanager
def working(house: House) -> Iterator[None]:
    """Ingests what comes, and answers all else at once."""
    stop = threading.Event()

    def work() -> None:
        while not stop.wait(0.01):
            for job in house.catalogue.jobs(state=JobState.QUEUED):
                if job.kind == "ingest":
                    house.work(job.id)
                else:
                    house.finish(job.id, RESULTS[job.kind])

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@dataclass(frozen=True)
class Answer:
    """How a command ended, and what it said."""

    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Answer]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Runs a command in this process; importing everything anew takes a second."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def running(*arguments: str | Path) -> Answer:
        monkeypatch.setattr(sys, "argv", ["tomotrain", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr()
        return Answer(int(end.value.code or 0), said.out, said.err)

    yield running
    for number, handler in handlers.items():
        signal.signal(number, handler)


def words_of(text: str) -> str:
    return " ".join("".join(" " if letter in "│┃┏┓━┡┩└┘─┐┌┴┬┼┴├┤┳╇" else letter for letter in text).split())


def assert_one_line(answer: Answer, *words: str) -> None:
    assert answer.returncode == 2
    assert answer.stdout == ""
    (line,) = [line for line in answer.stderr.splitlines() if line.startswith("tomotrain: ")]
    for word in words:
        assert word in line


@pytest.fixture
def table(tmp_path: Path, nifti: bytes) -> Path:
    """Two scans, one of them with two rows."""
    (tmp_path / "a.nii").write_bytes(nifti)
    (tmp_path / "b.nii").write_bytes(nifti[:-1] + b"\x07")
    path = tmp_path / "cohort.csv"
    path.write_text("scan,patient,age,sex,weeks\na.nii,p1,61,M,0\na.nii,p1,62,M,52\nb.nii,p2,70,F,1\n")
    return path


def submitted(house: House, name: str) -> Job:
    (job,) = house.catalogue.jobs(kind=name)
    return job


def url_of(house: House) -> str:
    return str(house.http.base_url)


def test_train_sends_each_scan_once_and_prints_what_the_model_is_worth(
    run: Run, classroom: House, table: Path
) -> None:
    with working(classroom):
        answer = run(
            *("train", table, "--url", url_of(classroom), "--target", "age", "--unit", "years"),
            *("--category", "sex=M,F", "--covariates", "sex,weeks", "--regressor", "voxel_ridge"),
            *("--setting", "grid=3", "--preparation", "grid=resample", "--folds", "4", "--seed", "9"),
            *("--candidates", "voxel_ridge, cpic"),
        )
    assert answer.returncode == 0, answer.stderr
    volumes = classroom.catalogue.volumes()
    assert sorted(volume.name for volume in volumes) == ["a.nii", "b.nii"]
    ids = {volume.name: volume.id for volume in volumes}
    parameters = submitted(classroom, "train").parameters
    assert parameters.pop("rows") == [
        {"volume_id": ids["a.nii"], "patient": "p1", "target": 61, "covariates": {"sex": 0, "weeks": 0}},
        {"volume_id": ids["a.nii"], "patient": "p1", "target": 62, "covariates": {"sex": 0, "weeks": 52}},
        {"volume_id": ids["b.nii"], "patient": "p2", "target": 70, "covariates": {"sex": 1, "weeks": 1}},
    ]
    assert parameters == {
        "task": "mean",
        "regressor": "voxel_ridge",
        "candidates": ["voxel_ridge", "cpic"],
        "settings": {"grid": 3},
        "preparation": {"grid": "resample"},
        "folds": 4,
        "seed": 9,
        "target_name": "age",
        "target_unit": "years",
    }
    words = words_of(answer.stdout)
    for part in [
        f"Model {submitted(classroom, 'train').id}",
        "age (years): its mean",
        "3 rows, 2 scans, 2 patients",
        "voxel_ridge, 30 numbers",
        "chosen because the simplest that none beats",
        "90%: the answer, and 7.5 years to both sides",
        "none at 95%: that takes 19 patients",
        "careful 30 trained numbers",
        "voxel_ridge 4.25 (3.5 to 5) 4.25 (3.5 to 5)",
        "constant 4.25 (3.5 to 5) -",
        f"notice {NOTICE}",
    ]:
        assert part in words


def test_scans_that_the_service_has_are_not_sent_again(run: Run, classroom: House, table: Path) -> None:
    with Client(url_of(classroom)) as client, working(classroom):
        known = client.upload(table.parent / "a.nii").volume.id
        table.write_text(f"scan,patient,target\na.nii,p1,1\n{known},p1,2\nb.nii,p2,3\n")
        answer = run("train", table, "--url", url_of(classroom), "--json")
    document = json.loads(answer.stdout)
    assert document["result"] == RESULTS["train"]
    assert "parameters" not in document
    assert len(classroom.catalogue.volumes()) == 2
    rows = submitted(classroom, "train").parameters["rows"]
    assert [row["volume_id"] == known for row in rows] == [True, True, False]


def test_every_scan_that_is_refused_is_named_with_its_line(
    run: Run, classroom: House, table: Path, nifti: bytes
) -> None:
    (table.parent / "a.nii").write_bytes(b"no scan at all " * 50)
    (table.parent / "b.nii").write_bytes(b"")
    (table.parent / "c.nii").write_bytes(nifti)
    table.write_text("scan,patient,target\nc.nii,p0,0\na.nii,p1,1\nb.nii,p2,2\n")
    with working(classroom):
        answer = run("train", table, "--url", url_of(classroom))
    assert_one_line(answer, "line 3, a.nii: ", "none of the formats", "line 4, b.nii: ", "empty")
    assert classroom.catalogue.jobs(kind="train") == []


def test_bad_tables_and_options_end_with_one_line_before_anything_is_sent(
    run: Run, classroom: House, table: Path
) -> None:
    url = ("--url", url_of(classroom))
    assert_one_line(run("train", table, "--target", "age", *url), "line 2, sex: 'M'", "--category sex=A,B")
    assert_one_line(run("train", table, "--setting", "x", *url), "NAME=VALUE")
    assert_one_line(run("predict", "job_1", table.parent / "no.nii", *url), "give the path of a scan")
    assert classroom.catalogue.volumes() == []


def test_predict_sends_the_scan_and_prints_the_answer(run: Run, classroom: House, table: Path) -> None:
    scan = table.parent / "a.nii"
    with working(classroom):
        answer = run(
            *("predict", "job_1", scan, "--url", url_of(classroom)),
            *("--covariate", "weeks=3", "--covariate", "sex=F", "--category", "sex=M,F"),
        )
    assert answer.returncode == 0, answer.stderr
    (volume,) = classroom.catalogue.volumes()
    job = submitted(classroom, "predict")
    assert job.volume_id == volume.id
    assert job.parameters == {"model": "job_1", "covariates": {"weeks": 3, "sex": 1}}
    words = words_of(answer.stdout)
    for part in [
        "age 63.25 years",
        "90% interval 55.75 to 70.75 years",
        "95% interval unknown: the model learnt from too few patients",
        "quantile 0.2 60 years",
        "like the training's yes: closer",
        "careful spacing 5 mm",
        "4,000 voxels; 25.00% of the scan read in 520 boxes",
        "job_1 (voxel_ridge)",
        f"notice {NOTICE}",
    ]:
        assert part in words
    with working(classroom):
        again = run("predict", "job_1", volume.id, "--url", url_of(classroom), "--json")
    assert json.loads(again.stdout)["result"] == RESULTS["predict"]


def trained(house: House, **parameters: Any) -> str:
    """The id of a training that has succeeded."""
    job = house.catalogue.submit("train", {"rows": [], **parameters})
    house.finish(job.id, RESULTS["train"])
    return job.id


def test_evaluate_takes_targets_as_the_models_training_had_them(
    run: Run, classroom: House, table: Path
) -> None:
    names, numbers = trained(classroom, task="classes"), trained(classroom, task="mean")
    asked = ("--url", url_of(classroom), "--target", "sex", "--covariates", "weeks")
    with working(classroom):
        answer = run("evaluate", names, table, *asked)
    assert answer.returncode == 0, answer.stderr
    rows = submitted(classroom, "evaluate").parameters["rows"]
    assert [row["target"] for row in rows] == ["M", "M", "F"]
    assert_one_line(run("evaluate", numbers, table, *asked), "line 2, sex: 'M' is no finite number")
    assert_one_line(run("evaluate", "job_0", table, *asked), "job_0")


def test_compress_model_sends_the_table_and_prints_what_it_saves_and_changes(
    run: Run, classroom: House, table: Path
) -> None:
    model = trained(classroom, task="mean")
    asked = ("--url", url_of(classroom), "--target", "age", "--covariates", "weeks")
    with working(classroom):
        answer = run(
            *("compress-model", model, table, *asked, "--pcr", "3", "--epochs", "2", "--judged-share", "0.5"),
            *("--rate", "0.01", "--seed", "4", "--execution", "fewest", "--measure", "answers"),
        )
    assert answer.returncode == 0, answer.stderr
    job = submitted(classroom, "compress-model")
    parameters = dict(job.parameters)
    assert [row["target"] for row in parameters.pop("rows")] == [61, 62, 70]
    assert parameters == {
        "model": model,
        "method": "ring",
        "pcr": 3.0,
        "epochs": 2,
        "judged_share": 0.5,
        "rate": 0.01,
        "execution": "fewest",
        "measure": "answers",
        "seed": 4,
    }
    words = words_of(answer.stdout)
    for part in [
        f"Model {job.id}",
        "made of job_1 (resnet3d)",
        "wanted ring, pcr 3",
        "6,025 -> 2,000 (PCR 3.013)",
        "5,000 -> 2,000 (FCR 2.5, 1 as executed)",
        "30,000 -> 12,000 bytes",
        "time, median 500 -> 250 ms",
        "8 changed, 5 left; largest error of a kernel 0.25",
        "largest change 1.5 years, of any answer",
        "-1 to 1.25 years, mean 0.25 (limits of the mean)",
        "90%: the answer, and 9 years to both sides",
        "promise covers a row of a new patient; widened by 1.5",
        "judged by 1 rows, 1 scans, 1 patients",
        "careful 30 trained numbers",
        "RMSE 4.25 (3.5 to 5) 4.25 (3.5 to 5) 4.25 (3.5 to 5)",
        "R2 - - -",
        f"notice {NOTICE}",
    ]:
        assert part in words, part
    with working(classroom):
        again = run("compress-model", job.id, table, *asked, "--bytes", "900", "--macs", "5", "--json")
    assert json.loads(again.stdout)["result"] == RESULTS["compress-model"]
    (parameters,) = [
        each.parameters for each in classroom.catalogue.jobs(kind="compress-model") if each.id != job.id
    ]
    assert (parameters["model"], parameters["bytes"], parameters["macs"]) == (job.id, 900, 5)


def test_compress_model_takes_targets_that_go_together_and_says_so_before_anything_is_sent(
    run: Run, classroom: House, table: Path
) -> None:
    url = ("--url", url_of(classroom))
    assert_one_line(run("compress-model", "job_1", table, *url), "no target: give one of --eps, --max-drop")
    both = run("compress-model", "job_1", table, "--max-drop", "1", "--bytes", "9", *url)
    assert_one_line(both, "--bytes and --max-drop: give one of", "or some of --pcr, --macs, --bytes")
    assert_one_line(run("compress-model", "job_0", table, "--eps", "0.5", *url), "job_0")
    assert classroom.catalogue.volumes() == []


def test_targets_of_a_compressed_model_are_as_those_of_its_first_training(
    run: Run, classroom: House, table: Path
) -> None:
    job = classroom.catalogue.submit("compress-model", {"rows": [], "model": "job_1"})
    classroom.finish(job.id, {**RESULTS["compress-model"], "task": "classes"})
    with working(classroom):
        answer = run(
            "evaluate", job.id, table, "--url", url_of(classroom), "--target", "sex", "--covariates", "weeks"
        )
    assert answer.returncode == 0, answer.stderr
    assert [row["target"] for row in submitted(classroom, "evaluate").parameters["rows"]] == ["M", "M", "F"]


def test_recipes_are_listed_with_their_settings(run: Run, classroom: House) -> None:
    told = {
        "settings": {"examples": [{"constant": {}, "cpic": {"steps": 200, "readout": {"count": 4000}}}]},
        "preparation": {"examples": [{"grid": "pad", "shape": None}]},
    }
    schema = {"type": "object", "properties": told}
    classroom.catalogue.announce("other", [replace(kind("train"), parameters_schema=schema)], "cpu")
    answer = run("recipes", "--url", url_of(classroom))
    assert answer.returncode == 0, answer.stderr
    words = words_of(answer.stdout)
    for part in [
        "--setting NAME=VALUE recipe setting default",
        "constant (none)",
        "cpic steps 200",
        'readout {"count": 4000}',
        '--preparation NAME=VALUE setting default grid "pad" shape null',
    ]:
        assert part in words
    found = json.loads(run("recipes", "--url", url_of(classroom), "--json").stdout)
    assert found == {name: part["examples"][0] for name, part in told.items()}


def test_without_a_worker_that_trains_there_are_no_recipes(run: Run, house: House) -> None:
    assert_one_line(run("recipes", "--url", url_of(house)), "no worker has announced that it trains")


def test_help_says_where_settings_are_found(run: Run) -> None:
    answer = run("train", "--help")
    words = " ".join(answer.stdout.split())
    assert words.count("tomotrain recipes") == 3
    assert "with auto NAME is a recipe's and VALUE a JSON table" in words


def test_evaluate_asks_about_the_whole_table(run: Run, classroom: House, table: Path) -> None:
    model = trained(classroom)
    with working(classroom):
        answer = run(
            *("evaluate", model, table, "--url", url_of(classroom), "--target", "age"),
            *("--covariates", "weeks"),
        )
    assert answer.returncode == 0, answer.stderr
    parameters = submitted(classroom, "evaluate").parameters
    assert parameters["model"] == model
    assert [row["target"] for row in parameters["rows"]] == [61, 62, 70]
    words = words_of(answer.stdout)
    for part in ["RMSE 4.25 (3.5 to 5)", "R2 -", "87.5% of the truths lie in the 90% interval", NOTICE]:
        assert part in words


def test_a_failed_training_ends_with_its_reason(run: Run, classroom: House, table: Path) -> None:
    def work() -> None:
        while not (jobs := classroom.catalogue.jobs(kind="train")):
            for job in classroom.catalogue.jobs(state=JobState.QUEUED):
                if job.kind == "ingest":
                    classroom.work(job.id)
        classroom.catalogue.claim(jobs[0].id, "worker", 60)
        problems = [["/rows/1/target", "'x' is no number"]]
        error = {"code": "invalid-cohort", "detail": "/rows/1/target: 'x' is no number", "retryable": False}
        classroom.catalogue.fail(jobs[0].id, 1, {**error, "problems": problems})

    thread = threading.Thread(target=work)
    thread.start()
    answer = run("train", table, "--url", url_of(classroom), "--target", "age", "--category", "sex=M,F")
    thread.join()
    assert_one_line(answer, "nothing can be learnt from this table", "/rows/1/target: 'x' is no number")


def test_reports_of_classes() -> None:
    classes = {"task": "classes", "classes": ["ill", "well"]}
    assert ("target", "age (years): one of ill, well") in training_rows(RESULTS["train"] | classes)
    told = {
        "value": None,
        "class_name": "ill",
        "target_unit": "",
        "intervals": [],
        "probabilities": [{"name": "ill", "value": 0.75, "sets": [0.8]}],
    }
    rows = dict(prediction_rows(RESULTS["predict"] | told))
    assert rows["age"] == "ill"
    assert rows["probability of ill"] == "75.0%"
    (shown,) = evaluation_tables(JobView.model_construct(id="job_2", result=RESULTS["evaluate"]))
    assert str(shown.title) == "Evaluation job_2"
