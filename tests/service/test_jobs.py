"""Jobs: submitted, watched, cancelled, and what they made."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import pytest
from house import EMBED, House, wait_until
from problem_checks import assert_problem

from service.errors import MOST_ERRORS
from service.parameters import checked
from service.sweeper import Sweeper
from storage.artifacts import ArtifactStore
from storage.errors import MOST_PROBLEMS, CohortNotReady, InvalidCohort, InvalidParameters, StorageError
from storage.jobs import JobKind, JobState, Queue
from storage.tidy import store_key


@pytest.fixture
def volume_id(house: House, nifti: bytes) -> str:
    return house.ready(nifti)


def submit(house: House, volume_id: str | None, **more: object) -> dict[str, object]:
    answer = house.http.post("/v1/jobs", json={"kind": "embed", "volume_id": volume_id, **more})
    assert answer.status_code == 202, answer.text
    assert answer.headers["location"] == f"/v1/jobs/{answer.json()['id']}"
    assert answer.headers["retry-after"] == "1"
    document: dict[str, object] = answer.json()
    return document


def test_a_job_gets_its_defaults_and_is_rung(house: House, volume_id: str) -> None:
    job = submit(house, volume_id, parameters={"rank": 3, "nested": {}}, labels={"trial": "a"})
    assert job["parameters"] == {"rank": 3, "layout": "qtt", "nested": {"seed": 0}}
    assert (job["state"], job["attempt"], job["labels"]) == ("queued", 0, {"trial": "a"})
    wait_until(lambda: house.queue.rung[str(job["id"])] == 1)


def test_a_job_on_a_scan_that_is_being_read_waits_and_then_runs(house: House, nifti: bytes) -> None:
    accepted = house.send(nifti)
    job = submit(house, accepted["volume"]["id"])
    assert job["state"] == "waiting"
    assert str(job["id"]) not in house.queue.rung
    house.work(accepted["job"]["id"])
    assert house.http.get(f"/v1/jobs/{job['id']}").json()["state"] == "queued"
    sweeper = Sweeper(house.catalogue, house.queue, house.root, every_s=1, ring_after_s=30, jobs_kept_s=1e6)
    assert sweeper.sweep() == 1
    assert house.queue.rung[str(job["id"])] == 1
    assert sweeper.sweep() == 0


def test_the_sweep_rings_when_the_broker_is_back(house: House, nifti: bytes) -> None:
    house.queue.down = True
    job_id = house.send(nifti)["job"]["id"]
    sweeper = Sweeper(house.catalogue, house.queue, house.root, every_s=1, ring_after_s=0, jobs_kept_s=1e6)
    assert sweeper.sweep() == 0
    house.queue.down = False
    assert sweeper.sweep() == 1
    assert house.queue.rung == {job_id: 1}


def test_a_running_sweeper_rings_by_itself_and_ends(house: House, nifti: bytes) -> None:
    house.queue.down = True
    job_id = house.send(nifti)["job"]["id"]
    house.queue.down = False
    sweeper = Sweeper(house.catalogue, house.queue, house.root, every_s=0.01, ring_after_s=0, jobs_kept_s=1e6)
    sweeper.start()
    wait_until(lambda: house.queue.rung[job_id] > 0)
    sweeper.stop()


def test_the_sweep_removes_what_the_last_lost_worker_left(house: House, nifti: bytes) -> None:
    accepted = house.send(nifti)
    half_written = house.root / store_key(accepted["volume"]["id"], 3)
    half_written.mkdir(parents=True)
    for _ in range(3):
        assert house.catalogue.claim(accepted["job"]["id"], "worker", -1) is not None
    sweeper = Sweeper(house.catalogue, house.queue, house.root, every_s=1, ring_after_s=30, jobs_kept_s=1e6)
    sweeper.sweep()
    assert house.http.get(f"/v1/jobs/{accepted['job']['id']}").json()["error"]["code"] == "worker-lost"
    sweeper.tidy()
    assert not half_written.exists()
    assert list((house.root / "uploads").iterdir()) == []


@pytest.mark.parametrize(
    ("request_body", "status", "code", "pointers"),
    [
        ({"kind": "embed", "parameters": {"rank": 0}}, 422, "invalid-parameters", ["/parameters/rank"]),
        (
            {"kind": "embed", "parameters": {"rank": "x", "layout": "ring"}},
            422,
            "invalid-parameters",
            ["/parameters/layout", "/parameters/rank"],
        ),
        ({"kind": "embed", "parameters": {"colour": 1}}, 422, "invalid-parameters", ["/parameters"]),
        ({"kind": "embed", "volume_id": None}, 422, "invalid-request", ["/volume_id"]),
        ({"kind": "paint"}, 422, "unknown-kind", []),
        ({"kind": "ingest"}, 422, "unknown-kind", []),
        ({"kind": "embed", "volume_id": "vol_0"}, 404, "volume-not-found", []),
        ({"kind": "embed", "volume_id": "../x"}, 404, "volume-not-found", []),
    ],
)
def test_a_job_that_does_not_fit(
    house: House, volume_id: str, request_body: dict[str, object], status: int, code: str, pointers: list[str]
) -> None:
    before = house.http.get("/v1/jobs").json()["jobs"]
    answer = house.http.post("/v1/jobs", json={"volume_id": volume_id, **request_body})
    body = assert_problem(answer, status, code)
    assert [error["pointer"] for error in body["errors"]] == pointers
    assert house.http.get("/v1/jobs").json()["jobs"] == before


def test_kinds_show_their_schemas_and_hide_the_internal(house: House) -> None:
    (kind,) = house.http.get("/v1/kinds").json()["kinds"]
    assert kind["name"] == "embed"
    assert kind["parameters_schema"]["properties"]["rank"]["default"] == 10


def test_jobs_are_listed_by_what_is_asked(house: House, volume_id: str) -> None:
    first, second = submit(house, volume_id), submit(house, volume_id)
    house.finish(str(first["id"]), {})

    def ids(query: str) -> list[str]:
        return [job["id"] for job in house.http.get(f"/v1/jobs?{query}").json()["jobs"]]

    assert ids("kind=embed") == [second["id"], first["id"]]
    assert ids("kind=embed&state=succeeded") == [first["id"]]
    assert ids("kind=embed&volume_id=vol_0") == []
    assert ids(f"kind=ingest&volume_id={volume_id}") != []


def test_a_poller_hears_of_a_change_and_of_nothing_else(house: House, volume_id: str) -> None:
    address = f"/v1/jobs/{submit(house, volume_id)['id']}"
    first = house.http.get(address)
    known = {"If-None-Match": first.headers["etag"]}
    assert first.headers["retry-after"] == "1"
    assert house.http.get(address, headers=known).status_code == 304
    house.finish(first.json()["id"], {"answer": 42})
    after = house.http.get(address, headers=known)
    assert (after.status_code, after.json()["result"]) == (200, {"answer": 42})
    assert "retry-after" not in after.headers


def test_a_result_is_there_when_the_job_has_succeeded(house: House, volume_id: str) -> None:
    address = f"/v1/jobs/{submit(house, volume_id)['id']}"
    answer = house.http.get(f"{address}/result")
    assert assert_problem(answer, 409, "job-not-finished")["retryable"] is True
    assert "retry-after" in answer.headers
    job = house.finish(address.rpartition("/")[2], {"ranks": [1, 2]})
    assert house.http.get(f"{address}/result").json() == {"ranks": [1, 2]}
    assert house.http.get(address).json()["links"]["result"] == f"/v1/jobs/{job.id}/result"


@pytest.mark.parametrize(
    ("code", "status"), [("over-budget", 422), ("non-finite-sample", 422), ("worker-lost", 500)]
)
def test_a_failed_job_says_why(house: House, volume_id: str, code: str, status: int) -> None:
    job_id = str(submit(house, volume_id)["id"])
    job = house.catalogue.claim(job_id, "worker", 60)
    assert job is not None
    error = {"code": code, "detail": "because", "retryable": False, "needed": 7, "worst": [1, 2]}
    house.catalogue.fail(job.id, job.attempt, error)
    shown = house.http.get(f"/v1/jobs/{job_id}").json()["error"]
    assert (shown["code"], shown["status"], shown["detail"], shown["needed"]) == (code, status, "because", 7)
    assert shown["type"] == f"/problems/{code}"
    answer = house.http.get(f"/v1/jobs/{job_id}/result")
    assert assert_problem(answer, 409, "job-failed")["cause"]["code"] == code


def test_a_volume_that_was_refused_says_why_and_takes_no_jobs(house: House, nifti: bytes) -> None:
    accepted = house.send(nifti)
    volume_id = accepted["volume"]["id"]
    waiting = submit(house, volume_id)
    job = house.catalogue.claim(accepted["job"]["id"], "worker", 60)
    assert job is not None
    house.catalogue.fail(
        job.id, job.attempt, {"code": "invalid-scan", "detail": "cut short", "retryable": False}
    )
    volume = house.http.get(f"/v1/volumes/{volume_id}").json()
    assert (volume["state"], volume["error"]["status"]) == ("rejected", 422)
    assert "zarr" not in volume["links"]
    assert house.http.get(f"/v1/jobs/{waiting['id']}").json()["error"]["code"] == "volume-rejected"
    answer = house.http.post("/v1/jobs", json={"kind": "embed", "volume_id": volume_id})
    assert_problem(answer, 409, "volume-not-ready")


def test_cancelling(house: House, volume_id: str) -> None:
    queued, running = str(submit(house, volume_id)["id"]), str(submit(house, volume_id)["id"])
    job = house.catalogue.claim(running, "worker", 60)
    assert job is not None
    answer = house.http.post(f"/v1/jobs/{queued}/cancel")
    assert (answer.status_code, answer.json()["state"]) == (200, "cancelled")
    answer = house.http.post(f"/v1/jobs/{running}/cancel")
    assert (answer.status_code, answer.json()["state"]) == (202, "cancelling")
    house.catalogue.cancelled(running, job.attempt)
    answer = house.http.post(f"/v1/jobs/{running}/cancel")
    assert (answer.status_code, answer.json()["state"]) == (200, JobState.CANCELLED)
    assert_problem(house.http.get(f"/v1/jobs/{running}/result"), 409, "job-failed")


def test_artifacts_are_downloads_that_prove_their_content(house: House, volume_id: str) -> None:
    job_id, content = str(submit(house, volume_id)["id"]), bytes(range(256))
    artifact = ArtifactStore(house.root / "artifacts").writer(job_id, 1).write_bytes("a.bin", content, "x/y")
    address = f"/v1/jobs/{job_id}/artifacts/a.bin"
    assert_problem(house.http.get(address), 404, "artifact-not-found")
    house.finish(job_id, {}, (artifact,))
    digest = f"sha-256=:{base64.b64encode(hashlib.sha256(content).digest()).decode()}:"
    whole = house.http.get(address)
    assert whole.content == content
    assert whole.headers["content-type"] == "x/y"
    assert whole.headers["content-disposition"] == 'attachment; filename="a.bin"'
    assert (whole.headers["content-digest"], whole.headers["repr-digest"]) == (digest, digest)
    part = house.http.get(address, headers={"Range": "bytes=3-5"})
    assert (part.status_code, part.content, part.headers["repr-digest"]) == (206, content[3:6], digest)
    assert "content-digest" not in part.headers
    assert house.http.get(address, headers={"If-None-Match": whole.headers["etag"]}).status_code == 304
    (shown,) = house.http.get(f"/v1/jobs/{job_id}").json()["artifacts"]
    assert (shown["href"], shown["size"]) == (address, 256)


@pytest.mark.parametrize("name", ["b.bin", "..%2fa.bin", "%2e%2e", "A.BIN", "a.bin%00"])
def test_artifacts_that_were_not_published(house: House, volume_id: str, name: str) -> None:
    job_id = str(submit(house, volume_id)["id"])
    writer = ArtifactStore(house.root / "artifacts").writer(job_id, 1)
    artifact = writer.write_bytes("a.bin", b"x", "x/y")
    writer.write_bytes("b.bin", b"x", "x/y")
    house.finish(job_id, {}, (artifact,))
    answer = house.http.get(f"/v1/jobs/{job_id}/artifacts/{name}")
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"


LEARN = JobKind(
    name="learn",
    version="1",
    title="Learn",
    description="For tests",
    queue=Queue.TRAIN,
    parameters_schema={
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "rows": {
                "type": "array",
                "items": {"type": "object", "properties": {"target": {"type": ["number", "string"]}}},
            },
            "seed": {"type": "integer", "default": 0},
        },
    },
    result_schema={"type": "object"},
    needs_volume=False,
)


def a_cohort(rows: int) -> list[dict[str, object]]:
    return [
        {
            "volume_id": f"vol_0199aaaa-bbbb-7ccc-8ddd-{i:012x}",
            "patient": f"patient-{i:06d}",
            "target": i / 7,
            "covariates": {f"covariate_{number}": i / 3 + number for number in range(12)},
        }
        for i in range(rows)
    ]


def test_a_cohort_of_two_thousand_rows_fits_and_is_not_sent_with_every_look(house: House) -> None:
    house.catalogue.announce("worker", [EMBED, LEARN], "cpu")
    rows = a_cohort(2000)
    answer = house.http.post("/v1/jobs", json={"kind": "learn", "parameters": {"rows": rows}})
    assert answer.status_code == 202, answer.text
    address = answer.headers["location"]
    whole, brief = house.http.get(address), house.http.get(f"{address}?brief=true")
    assert whole.json()["parameters"] == {"rows": rows, "seed": 0}
    assert whole.json()["left_out"] == []
    assert brief.json()["parameters"] == {"seed": 0}
    assert brief.json()["left_out"] == ["rows"]
    assert whole.headers["etag"] != brief.headers["etag"]
    for path in ("/v1/jobs", f"{address}?brief=true"):
        assert len(house.http.get(path).content) < 2000
    (listed,) = house.http.get("/v1/jobs").json()["jobs"]
    assert listed == brief.json()


def test_every_faulty_row_of_a_cohort_is_named(house: House) -> None:
    house.catalogue.announce("worker", [EMBED, LEARN], "cpu")
    rows = a_cohort(20)
    rows[3]["target"], rows[17]["target"] = None, [1]
    answer = house.http.post("/v1/jobs", json={"kind": "learn", "parameters": {"rows": rows}})
    errors = assert_problem(answer, 422, "invalid-parameters")["errors"]
    assert [error["pointer"] for error in errors] == [
        "/parameters/rows/3/target",
        "/parameters/rows/17/target",
    ]


def test_a_list_that_is_too_long_or_too_short_is_refused_before_its_items_are_looked_at() -> None:
    class Untouched(dict[str, Any]):
        def __deepcopy__(self, memo: dict[int, Any]) -> None:
            pytest.fail("an item was looked at")

    schema = {
        "type": "object",
        "properties": {
            "rows": {"type": "array", "minItems": 2, "maxItems": 3, "items": {"required": ["target"]}},
            "more": {"type": "object", "properties": {"names": {"type": "array", "maxItems": 1}}},
        },
    }
    for rows, told in (
        ([Untouched()] * 1000, "1,000 items; 3 at most"),
        ([Untouched()], "1 items; 2 at least"),
    ):
        with pytest.raises(InvalidParameters) as refusal:
            checked({"rows": rows, "more": {"names": ["a", "b"]}}, schema)
        assert refusal.value.problems == [("/rows", told), ("/more/names", "2 items; 1 at most")]


def test_no_more_faults_are_looked_for_than_are_told() -> None:
    seen: set[int] = set()

    class Watched(list[Any]):
        def __getitem__(self, number: Any) -> Any:
            seen.add(number)
            return super().__getitem__(number)

        def __deepcopy__(self, memo: dict[int, Any]) -> Watched:
            return self

    items = {"type": "object", "required": ["target"]}
    schema = {"type": "object", "properties": {"rows": {"type": "array", "items": items}}}
    with pytest.raises(InvalidParameters) as refusal:
        checked({"rows": Watched([{}] * 5000)}, schema)
    assert seen == set(range(MOST_PROBLEMS))
    assert len(refusal.value.problems) == MOST_PROBLEMS
    assert refusal.value.problems[98][0] == "/rows/98"
    assert refusal.value.problems[-1] == ("", "more faults than the 99 that are told")
    with pytest.raises(InvalidParameters) as refusal:
        checked({"rows": [{}] * (MOST_PROBLEMS - 1)}, schema)
    assert [where for where, _ in refusal.value.problems] == [f"/rows/{i}" for i in range(MOST_PROBLEMS - 1)]


def test_a_recorded_error_stays_small_whatever_it_is_about() -> None:
    problems = [(f"/rows/{i}/target", "'x' is no number") for i in range(5000)]
    for kind in (InvalidParameters, InvalidCohort, CohortNotReady):
        record = error_record_of(kind(problems, more=7))
        assert record["problems"] == problems[:MOST_PROBLEMS]
        assert record["detail"].endswith("/rows/19/target: 'x' is no number; and 4,987 more")
        assert len(json.dumps(record)) < 20_000
    assert str(InvalidParameters([("", "too much")])) == "/: too much"


def test_a_recorded_fault_of_a_table_points_into_the_request(house: House, volume_id: str) -> None:
    job = submit(house, volume_id)
    claimed = house.catalogue.claim(str(job["id"]), "worker", 60)
    assert claimed is not None
    problems = [(f"/rows/{i}/target", "'x' is no number") for i in range(300)]
    house.catalogue.fail(claimed.id, 1, error_record_of(InvalidCohort(problems)))
    error = house.http.get(f"/v1/jobs/{claimed.id}").json()["error"]
    assert (error["code"], error["status"]) == ("invalid-cohort", 422)
    assert len(error["errors"]) == MOST_ERRORS
    assert error["errors"][1] == {"pointer": "/parameters/rows/1/target", "detail": "'x' is no number"}
    assert len(json.dumps(error)) < 20_000


def error_record_of(error: StorageError) -> dict[str, Any]:
    return {**error.facts(), "code": error.code, "detail": str(error), "retryable": error.retryable}
