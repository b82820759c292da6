"""Numbers for Prometheus: right, without names, read back by its own parser; and the alerts on them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from house import House, Library, open_house
from problem_checks import assert_problem
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text

from service import metrics as service_metrics
from storage.access import Access, Scope

RULES = Path(__file__).parents[2] / "docker" / "prometheus-rules.yml"
OPENMETRICS = {"Accept": "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"}


def scraped(house: House, **options: Any) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """Every sample by name and labels, as OpenMetrics' own parser reads it."""
    answer = house.http.get("/metrics", headers=OPENMETRICS, **options)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    samples: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in read_openmetrics(answer.text):
        for sample in family.samples:
            samples.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return samples


def labels(**named: str) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(named.items()))


@pytest.fixture(autouse=True)
def counted_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_metrics, "KEPT_S", -1.0)


def test_requests_are_counted_by_route_and_not_by_what_they_say(house: House, nifti: bytes) -> None:
    volume_id = house.ready(nifti)
    for _ in range(3):
        house.http.get(f"/v1/volumes/{volume_id}?patient=Mustermann")
    house.http.get("/v1/volumes/vol_00?patient=Mustermann")
    house.http.get("/Mustermann")
    samples = scraped(house)
    route = {"method": "GET", "route": "/v1/volumes/{volume_id}"}
    counted = samples["tomotrain_api_requests_total"]
    assert counted[labels(**route, status="2xx")] == 3
    assert counted[labels(**route, status="4xx")] == 1
    assert counted[labels(method="GET", route="none", status="4xx")] == 1
    assert samples["tomotrain_api_request_duration_seconds_count"][labels(**route)] == 4
    sent = {"method": "POST", "route": "/v1/volumes"}
    assert samples["tomotrain_api_received_bytes_total"][labels(**sent)] == len(nifti)
    text = house.http.get("/metrics").text
    assert "Mustermann" not in text
    assert "vol_" not in text


def test_jobs_and_volumes_are_counted_as_the_catalogue_has_them(house: House, nifti: bytes) -> None:
    volume_id = house.ready(nifti)
    jobs = [house.catalogue.submit("embed", {}, volume_id=volume_id) for _ in range(4)]
    house.finish(jobs[0].id, {})
    taken = house.catalogue.claim(jobs[1].id, "worker", 60)
    assert taken is not None
    error = {"code": "over-budget", "detail": "Mustermann", "retryable": False}
    house.catalogue.fail(taken.id, taken.attempt, error)
    assert house.catalogue.claim(jobs[2].id, "worker", -1) is not None
    samples = scraped(house)
    still = samples["tomotrain_jobs_open"]
    assert still[labels(kind="embed", queue="batch", state="queued")] == 1
    assert still[labels(kind="embed", queue="batch", state="running")] == 1
    ended = samples["tomotrain_jobs_ended"]
    assert ended[labels(queue="batch", state="succeeded")] == 1
    assert ended[labels(queue="batch", state="failed")] == 1
    assert samples["tomotrain_leases_expired"][()] == 1
    assert samples["tomotrain_oldest_queued_seconds"][labels(queue="batch")] > 0
    assert samples["tomotrain_oldest_queued_seconds"][labels(queue="train")] == 0
    assert samples["tomotrain_day_failures"] == {labels(kind="embed", code="over-budget"): 1}
    assert samples["tomotrain_day_attempts"][labels(kind="embed", state="running")] == 1
    assert samples["tomotrain_workers_alive"] == {labels(queue="batch"): 1, labels(queue="interactive"): 1}
    assert samples["tomotrain_volumes"] == {labels(state="ready"): 1}
    assert samples["tomotrain_volumes_bytes"] == {labels(state="ready"): len(nifti)}


def test_a_worker_that_fell_silent_is_not_alive(tmp_path: Path) -> None:
    with open_house(tmp_path, worker_fresh_s=1e-9) as house:
        assert set(scraped(house)["tomotrain_workers_alive"].values()) == {0}


def test_without_the_catalogue_the_process_still_tells_of_itself(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sqlalchemy.engine.Engine.begin", lambda engine: 1 / 0)
    samples = scraped(house)
    assert samples["tomotrain_catalogue_up"][()] == 0
    assert samples["process_resident_memory_bytes"][()] > 0
    assert "tomotrain_jobs_open" not in samples


def test_scrapes_in_a_row_count_the_catalogue_once(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_metrics, "KEPT_S", 3600.0)
    before = scraped(house)
    house.catalogue.submit("embed", {})
    assert scraped(house).get("tomotrain_jobs_open") == before.get("tomotrain_jobs_open")


@pytest.mark.parametrize("accept", ["", "*/*", "text/plain;version=1.2.x;escaping=%00", "application/json"])
def test_whoever_does_not_take_openmetrics_gets_the_text_format(library: Library, accept: str) -> None:
    answer = library.http.get("/metrics", headers={"Accept": accept})
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert "tomotrain_api_requests" in {family.name for family in read_text(answer.text)}


def test_only_who_may_see_operations_sees_them(tmp_path: Path) -> None:
    with open_house(tmp_path, authentication=True) as house:
        assert_problem(house.http.get("/metrics"), 401, "no-credentials")
        access = Access(house.catalogue.database)
        for scope, status in ((Scope.JOBS_READ, 403), (Scope.OPERATIONS_READ, 200)):
            secret = access.make_key("scraper", [scope]).secret
            answer = house.http.get("/metrics", headers={"Authorization": f"Bearer {secret}"})
            assert answer.status_code == status


def test_a_scraper_without_a_key_is_let_in_where_the_settings_say_so(tmp_path: Path) -> None:
    with open_house(tmp_path, authentication=True, metrics_open=True) as house:
        assert house.http.get("/metrics").status_code == 200
        assert_problem(house.http.get("/v1/jobs"), 401, "no-credentials")


def test_the_alerts_name_metrics_and_labels_that_there_are(library: Library) -> None:
    told = library.http.get("/metrics", headers=OPENMETRICS).text
    known = {
        f"{family.name}{ending}" for family in read_openmetrics(told) for ending in ("", "_total", "_bucket")
    }
    rules = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
    assert len({rule["alert"] for rule in rules}) == len(rules) >= 5
    for rule in rules:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["expr"].count("(") == rule["expr"].count(")")
        names = set(re.findall(r"tomotrain_\w+", rule["expr"]))
        assert names <= known, names - known
        assert names or rule["expr"].startswith("up{")
