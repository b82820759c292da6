"""Webhooks over real HTTP: made, told, told again, and never told where they must not be."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from house import House, open_house, wait_until
from problem_checks import assert_problem
from receivers import Door, Got, Receiver

from service import webhooks as sending
from service.outside import Guard
from service.webhooks import Courier, pause_after
from storage.access import Access, Scope
from storage.jobs import Job
from storage.webhooks import WebhookEvent, Webhooks

DOCUMENT = Path(__file__).parents[2] / "docs" / "webhooks.md"
Verified = Callable[[str, Mapping[str, str], bytes], dict[str, Any]]


@pytest.fixture
def verified() -> Verified:
    """What the documentation tells receivers to do."""
    (program,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(program, names)
    function: Verified = names["verified"]
    return function


@pytest.fixture
def busy(tmp_path: Path) -> Iterator[House]:
    """A service that tells webhooks on this machine, at once."""
    with open_house(tmp_path, sweep_every_s=0.05, webhook_hosts=("127.0.0.1",)) as opened:
        yield opened


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A service for webhooks that are refused."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.outside.resolved", resolving())
        with open_house(tmp_path_factory.mktemp("empty")) as opened:
            yield opened


@pytest.fixture
def door() -> Iterator[Door]:
    opened = Door()
    yield opened
    opened.close()


def made(house: House, url: str, *events: str) -> dict[str, Any]:
    wanted = {"url": url, **({"events": list(events)} if events else {})}
    answer = house.http.post("/v1/webhooks", json=wanted)
    assert answer.status_code == 201, answer.text
    assert answer.headers["location"] == f"/v1/webhooks/{answer.json()['id']}"
    assert answer.headers["cache-control"] == "no-store"
    document: dict[str, Any] = answer.json()
    return document


def deliveries(house: House, hook: Mapping[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = house.http.get(hook["links"]["deliveries"]).json()["deliveries"]
    return found


def finished(house: House, **options: Any) -> Job:
    return house.finish(house.catalogue.submit("embed", {}, **options).id, {"answer": "DOE^JOHN"})


def accepted(got: Got, secret: str, verified: Verified) -> dict[str, Any]:
    """The event, from a request that is as it should be."""
    assert got.headers["content-type"] == "application/cloudevents+json"
    event = verified(secret, got.headers, got.body)
    assert event["specversion"] == "1.0"
    assert event["id"] == got.headers["webhook-id"]
    assert datetime.fromisoformat(event["time"]).tzinfo is not None
    assert all(event[name] for name in ("type", "source", "subject", "data"))
    return event


def test_a_job_that_ends_is_told(busy: House, verified: Verified) -> None:
    with Receiver(204) as receiver:
        hook = made(busy, receiver.url)
        job = finished(busy, labels={"patient": "DOE^JOHN"})
        wait_until(lambda: len(receiver.got) == 1)
        event = accepted(receiver.got[0], hook["secret"], verified)
        assert (event["type"], event["subject"]) == ("tomotrain.job.succeeded", job.id)
        assert event["data"]["state"] == "succeeded"
        assert event["data"]["links"]["result"] == f"/v1/jobs/{job.id}/result"
        assert b"DOE" not in receiver.got[0].body
        wait_until(lambda: deliveries(busy, hook)[0]["state"] == "delivered")
        (delivery,) = deliveries(busy, hook)
        assert (delivery["tries"], delivery["status"], delivery["error"]) == (1, 204, None)
        assert delivery["event"] == event
        time.sleep(0.3)
        assert len(receiver.got) == 1


def test_a_signature_fits_one_secret_one_body_and_the_present(busy: House, verified: Verified) -> None:
    with Receiver() as receiver:
        hook, other = made(busy, receiver.url), made(busy, receiver.url)
        busy.http.post(hook["links"]["test"])
        wait_until(lambda: len(receiver.got) == 1)
    got = receiver.got[0]
    assert accepted(got, hook["secret"], verified)["type"] == "tomotrain.webhook.test"
    late = {**got.headers, "webhook-timestamp": str(int(got.headers["webhook-timestamp"]) - 301)}
    renamed = {**got.headers, "webhook-id": "dlv_0"}
    for secret, headers, body in (
        (other["secret"], got.headers, got.body),
        (hook["secret"], got.headers, got.body + b" "),
        (hook["secret"], late, got.body),
        (hook["secret"], renamed, got.body),
        (hook["secret"], {**got.headers, "webhook-signature": "v1,"}, got.body),
    ):
        with pytest.raises(ValueError, match="this was"):
            verified(secret, headers, body)


def test_signing_as_the_standard_has_it() -> None:
    """The example of the specification's reference libraries."""
    headers = sending.signed(
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        1614265330,
        b'{"test": 2432232314}',
    )
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_what_fails_is_tried_again_under_the_same_id(
    busy: House, verified: Verified, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "PAUSES_S", (0.01,) * 5)
    with Receiver(500, 302, 0, 200, headers={"Location": "/elsewhere"}) as receiver:
        hook = made(busy, receiver.url)
        finished(busy)
        wait_until(lambda: len(receiver.got) == 4)
        wait_until(lambda: deliveries(busy, hook)[0]["state"] == "delivered")
    assert {got.path for got in receiver.got} == {"/in"}
    assert len({got.headers["webhook-id"] for got in receiver.got}) == 1
    for got in receiver.got:
        accepted(got, hook["secret"], verified)
    assert deliveries(busy, hook)[0]["tries"] == 4


@pytest.mark.parametrize(
    ("status", "state", "words"),
    [(307, "pending", "redirects are not followed"), (503, "pending", "503"), (410, "failed", "410")],
)
def test_what_a_receiver_answers_is_told(busy: House, status: int, state: str, words: str) -> None:
    with Receiver(status, headers={"Location": "/in", "Retry-After": "100"}) as receiver:
        hook = made(busy, receiver.url)
        busy.http.post(hook["links"]["test"])
        wait_until(lambda: deliveries(busy, hook)[0]["error"] is not None)
    (delivery,) = deliveries(busy, hook)
    assert (delivery["state"], delivery["status"], delivery["tries"]) == (state, status, 1)
    assert words in delivery["error"]
    if state == "pending":
        pause = datetime.fromisoformat(delivery["next_at"]) - datetime.fromisoformat(delivery["tried_at"])
        assert 99 < pause.total_seconds() < 110


def test_a_receiver_that_is_silent_holds_up_only_itself(busy: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "ANSWER_S", 0.5)
    with Receiver(0, hangs_s=1.0) as silent, Receiver() as quick:
        slow, fast = made(busy, silent.url), made(busy, quick.url)
        for _ in range(12):
            finished(busy)
        wait_until(lambda: len(quick.got) == 12)
        wait_until(lambda: any(delivery["error"] for delivery in deliveries(busy, slow)))
        assert "did not answer within" in next(d["error"] for d in deliveries(busy, slow) if d["error"])
        wait_until(lambda: {delivery["state"] for delivery in deliveries(busy, fast)} == {"delivered"})


def test_a_receiver_that_is_not_there(busy: House, door: Door) -> None:
    hook = made(busy, f"http://127.0.0.1:{door.port}/")
    busy.http.post(hook["links"]["test"])
    wait_until(lambda: deliveries(busy, hook)[0]["error"] is not None)
    assert deliveries(busy, hook)[0]["status"] is None


def test_pauses_grow_and_end_after_a_day() -> None:
    pauses = [pause_after(tries) for tries in range(1, 12)]
    told = [pause for pause in pauses if pause is not None]
    assert pauses[-1] is None
    assert told == sorted(told)
    assert 0.8 * 86_400 * 0.95 < sum(told) < 1.2 * 86_400
    assert len({pause_after(3) for _ in range(20)}) > 10
    assert (pause_after(1, 600.0), pause_after(1, 1e9)) == (600.0, 3600.0)


def test_several_services_tell_each_end_once(house: House) -> None:
    hooks = Webhooks(house.catalogue.database)
    guard = Guard(["127.0.0.1"])
    couriers = [Courier(hooks, guard, every_s=0.02) for _ in range(3)]
    with Receiver() as receiver:
        hooks.make(receiver.url, list(WebhookEvent))
        for courier in couriers:
            courier.start()
        ids = [finished(house).id for _ in range(30)]
        wait_until(lambda: len(receiver.got) >= 30, 20)
        time.sleep(0.2)
        for courier in couriers:
            courier.stop()
    assert Counter(json.loads(got.body)["subject"] for got in receiver.got) == Counter(ids)


def test_a_service_that_stops_does_not_wait_for_a_receiver(house: House) -> None:
    hooks = Webhooks(house.catalogue.database)
    courier = Courier(hooks, Guard(["127.0.0.1"]), every_s=0.02)
    with Receiver(0, hangs_s=2) as receiver:
        hook = hooks.make(receiver.url, list(WebhookEvent)).webhook
        courier.start()
        finished(house)
        wait_until(lambda: len(receiver.got) == 1)
        began = time.monotonic()
        courier.stop()
        assert time.monotonic() - began < 1
    assert hooks.deliveries(hook.id, project_id="default")[0].state == "pending"


@pytest.mark.parametrize(
    ("url", "status", "code"),
    [
        ("https://127.0.0.1:{port}/", 403, "address-not-allowed"),
        ("https://[::ffff:127.0.0.1]:{port}/", 403, "address-not-allowed"),
        ("https://169.254.169.254/latest/meta-data/", 403, "address-not-allowed"),
        ("https://localhost.:{port}/", 403, "address-not-allowed"),
        ("https://inside.example:{port}/", 403, "address-not-allowed"),
        ("http://outside.example/", 403, "address-not-allowed"),
        ("https://gone.example/", 422, "invalid-request"),
        ("https://2130706433:{port}/", 422, "invalid-request"),
        ("https://0x7f.1:{port}/", 422, "invalid-request"),
        ("https://user@outside.example/", 422, "invalid-request"),
        ("file:///etc/passwd", 422, "invalid-request"),
        ("", 422, "invalid-request"),
        ("https://a.example/" + "x" * 2000, 422, "invalid-request"),
    ],
)
def test_hostile_webhooks_are_refused_where_they_are_made(
    empty: House, door: Door, url: str, status: int, code: str
) -> None:
    answer = empty.http.post("/v1/webhooks", json={"url": url.format(port=door.port)})
    body = assert_problem(answer, status, code)
    assert [error["pointer"] for error in body["errors"]] == ["/url"]
    assert empty.http.get("/v1/webhooks").json() == {"webhooks": []}
    assert door.came == 0


def test_a_webhook_whose_name_has_moved_inside_is_refused_where_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, door: Door
) -> None:
    places = {"moving.example": ["93.184.215.14"]}
    monkeypatch.setattr("service.outside.resolved", resolving(places))
    with open_house(tmp_path, sweep_every_s=0.05) as house:
        hook = made(house, f"https://moving.example:{door.port}/")
        places["moving.example"] = ["127.0.0.1"]
        finished(house)
        wait_until(lambda: any(delivery["error"] for delivery in deliveries(house, hook)))
        (delivery,) = deliveries(house, hook)
    assert "not at a public address" in delivery["error"]
    assert (delivery["status"], delivery["state"], door.came) == (None, "pending", 0)


def resolving(more: Mapping[str, Sequence[str]] | None = None) -> Any:
    """A resolver that asks nobody."""
    places = {"localhost": ["127.0.0.1"], "inside.example": ["10.0.0.1"], "outside.example": ["8.8.8.8"]}

    async def resolve(host: str, port: int) -> Sequence[str]:
        return {**places, **(more or {})}.get(host, [])

    return resolve


def test_webhooks_are_made_shown_and_removed(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    hook = made(house, "https://8.8.8.8/in", "job.failed")
    secret = hook.pop("secret")
    assert re.fullmatch(r"whsec_[A-Za-z0-9+/]{43}=", secret)
    assert hook["events"] == ["job.failed"]
    assert house.http.get(hook["links"]["self"]).json() == hook
    listed = house.http.get("/v1/webhooks")
    assert listed.json() == {"webhooks": [hook]}
    again = house.http.get("/v1/webhooks", headers={"If-None-Match": listed.headers["etag"]})
    assert again.status_code == 304
    put = house.http.post(hook["links"]["test"])
    assert (put.status_code, put.json()["state"]) == (202, "pending")
    house.http.post(hook["links"]["test"])
    first = house.http.get(hook["links"]["deliveries"], params={"page_size": 1}).json()
    rest = house.http.get(
        hook["links"]["deliveries"], params={"page_size": 1, "page_token": first["next_page_token"]}
    ).json()
    assert rest["deliveries"] == [put.json()]
    assert rest["next_page_token"] is None
    assert house.http.delete(hook["links"]["self"]).status_code == 204
    assert_problem(house.http.get(hook["links"]["self"]), 404, "webhook-not-found")
    assert secret not in listed.text


@pytest.mark.parametrize(
    ("wanted", "pointer"),
    [
        ({}, "/url"),
        ({"url": 1}, "/url"),
        ({"url": "https://8.8.8.8/", "events": []}, "/events"),
        ({"url": "https://8.8.8.8/", "events": ["job.exploded"]}, "/events/0"),
        ({"url": "https://8.8.8.8/", "events": ["job.failed"] * 4}, "/events"),
        ({"url": "https://8.8.8.8/", "secret": "mine"}, "/secret"),
    ],
)
def test_webhooks_that_do_not_fit(empty: House, wanted: dict[str, Any], pointer: str) -> None:
    body = assert_problem(empty.http.post("/v1/webhooks", json=wanted), 422, "invalid-request")
    assert [error["pointer"] for error in body["errors"]] == [pointer]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/webhooks/{id}"),
        ("DELETE", "/v1/webhooks/{id}"),
        ("POST", "/v1/webhooks/{id}/test"),
        ("GET", "/v1/webhooks/{id}/deliveries"),
    ],
)
def test_webhooks_that_are_not_there(house: House, method: str, path: str) -> None:
    assert_problem(house.http.request(method, path.format(id="whk_0")), 404, "webhook-not-found")
    assert_problem(house.http.request(method, path.format(id="A%20B")), 422, "invalid-request")
    hook = made(house, "https://8.8.8.8/in")
    strange = house.http.get(hook["links"]["deliveries"], params={"page_token": "strange"})
    assert_problem(strange, 422, "invalid-request")


def test_webhooks_need_their_scope_and_are_their_projects(tmp_path: Path) -> None:
    with open_house(tmp_path, authentication=True) as house:
        access = Access(house.catalogue.database)
        access.put_project("radiology")
        reader = access.make_key("reader", [Scope.JOBS_READ])
        writer = access.make_key("writer", [Scope.JOBS_WRITE])
        stranger = access.make_key("stranger", [Scope.JOBS_WRITE], project_id="radiology")
        assert_problem(house.http.get("/v1/webhooks"), 401, "no-credentials")
        house.http.headers["Authorization"] = f"Bearer {reader.secret}"
        assert_problem(house.http.get("/v1/webhooks"), 403, "missing-scope")
        answer = house.http.post("/v1/webhooks", json={"url": "https://8.8.8.8/in"})
        assert_problem(answer, 403, "missing-scope")
        house.http.headers["Authorization"] = f"Bearer {writer.secret}"
        hook = made(house, "https://8.8.8.8/in")
        house.http.headers["Authorization"] = f"Bearer {stranger.secret}"
        assert house.http.get("/v1/webhooks").json() == {"webhooks": []}
        for method, link in (("GET", "self"), ("DELETE", "self"), ("POST", "test"), ("GET", "deliveries")):
            assert_problem(house.http.request(method, hook["links"][link]), 404, "webhook-not-found")
