"""Who may do what: keys, scopes, projects, sessions, tokens, the limits of senders, and the audit log."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from house import House, open_house
from sqlalchemy import text

from storage.access import Access, Scope
from storage.audit import AuditLog

ISSUER, AUDIENCE = "https://issuer.example", "tomotrain"


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """A service that asks for keys."""
    with open_house(tmp_path, authentication=True) as opened:
        yield opened


def access(house: House) -> Access:
    return Access(house.catalogue.database)


def holder(house: House, *scopes: Scope, project: str = "default", **more: Any) -> httpx.Client:
    """A client with a key of its own."""
    access(house).put_project(project)
    made = access(house).make_key("test", scopes or tuple(Scope), project_id=project, **more)
    return httpx.Client(
        base_url=house.http.base_url, headers={"Authorization": f"Bearer {made.secret}"}, trust_env=False
    )


def problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert body["code"] == code
    return body


def operations(house: House) -> list[tuple[str, str]]:
    """Every operation of the API, with its address filled in."""
    paths = house.http.get("/openapi.json").json()["paths"]
    filled = {"volume_id": "vol_1", "job_id": "job_1", "axis": "z", "index": "0", "key": "zarr.json"}
    return [
        (method.upper(), path.format_map(_Filled(filled)))
        for path, item in paths.items()
        for method in item
        if method in ("get", "post", "put", "patch", "delete")
    ]


class _Filled(dict[str, str]):
    def __missing__(self, name: str) -> str:
        return "x"


OPEN = ("/livez", "/readyz", "/startupz", "/problems/", "/openapi.json")
"""What anybody may ask."""


def test_nothing_else_answers_a_stranger(house: House) -> None:
    asked = [(method, path) for method, path in operations(house) if not path.startswith(OPEN)]
    assert len(asked) > 12
    for method, path in asked:
        if (method, path) in (("POST", "/v1/session"), ("DELETE", "/v1/session"), ("OPTIONS", "/v1/tus")):
            continue
        answer = house.http.request(method, path)
        body = problem(answer, 401, "no-credentials")
        assert "tomotrain keys create" in body["detail"], (method, path)
        assert answer.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize(
    "credentials",
    [
        "Bearer tt_0000000000000000_" + 43 * "a",
        "Bearer tt_",
        "Bearer x.y.z",
        "Bearer",
        "Basic dXNlcjpwYXNz",
        "Bearer " + 9000 * "a",
        'Bearer {"alg":"none"}',
    ],
)
def test_false_credentials_are_refused(house: House, credentials: str) -> None:
    answer = house.http.get("/v1/jobs", headers={"Authorization": credentials})
    problem(answer, 401, "bad-credentials")
    assert credentials[7:] not in answer.text or len(credentials) < 8


def test_a_secret_that_is_nearly_right_is_wrong(house: House) -> None:
    made = access(house).make_key("test")
    wrong = made.secret[:-1] + ("A" if made.secret[-1] != "A" else "B")
    ask = lambda secret: house.http.get("/v1/jobs", headers={"Authorization": f"Bearer {secret}"})  # noqa: E731
    assert ask(made.secret).status_code == 200
    problem(ask(wrong), 401, "bad-credentials")


def test_keys_do_what_their_scopes_say(house: House, nifti: bytes) -> None:
    with holder(house, Scope.JOBS_READ) as reader, holder(house, Scope.VOLUMES_WRITE) as sender:
        assert reader.get("/v1/jobs").status_code == 200
        refused = problem(reader.post("/v1/jobs", json={"kind": "embed"}), 403, "missing-scope")
        assert "jobs:write" in refused["detail"]
        problem(reader.get("/v1/volumes"), 403, "missing-scope")
        problem(reader.get("/v1/keys"), 403, "missing-scope")
        # The answer to a sender shows the volume: that is reading, too.
        problem(sender.post("/v1/volumes", content=nifti), 403, "missing-scope")
    with holder(house, Scope.VOLUMES_WRITE, Scope.VOLUMES_READ) as sender:
        assert sender.post("/v1/volumes", content=nifti).status_code == 202


def test_other_projects_are_not_found(house: House, nifti: bytes) -> None:
    with holder(house) as ours, holder(house, project="other") as theirs:
        accepted = ours.post("/v1/volumes", content=nifti).json()
        volume, ingest = accepted["volume"]["id"], accepted["job"]["id"]
        house.work(ingest)
        job = ours.post("/v1/jobs", json={"kind": "embed", "volume_id": volume}).json()["id"]
        for path in (
            f"/v1/volumes/{volume}",
            f"/v1/volumes/{volume}/slices/z/0",
            f"/v1/volumes/{volume}/zarr/zarr.json",
        ):
            assert ours.get(path).status_code == 200
            problem(theirs.get(path), 404, "volume-not-found")
        for path in (f"/v1/jobs/{job}", f"/v1/jobs/{ingest}", f"/v1/jobs/{ingest}/result"):
            assert ours.get(path).status_code in (200, 409)
            problem(theirs.get(path), 404, "job-not-found")
        problem(theirs.post(f"/v1/jobs/{job}/cancel"), 404, "job-not-found")
        problem(theirs.post("/v1/jobs", json={"kind": "embed", "volume_id": volume}), 404, "volume-not-found")
        assert len(ours.get("/v1/jobs").json()["jobs"]) == 2
        assert theirs.get("/v1/jobs").json()["jobs"] == theirs.get("/v1/volumes").json()["volumes"] == []
        digest = ours.get(f"/v1/volumes/{volume}").json()["source_sha256"]
        assert theirs.get("/v1/volumes", params={"sha256": digest}).json()["volumes"] == []
    assert house.catalogue.job(job).submitted_by is not None


def test_keys_are_made_listed_and_ended_over_http(house: House) -> None:
    with holder(house) as admin:
        answer = admin.post("/v1/keys", json={"name": "gateway", "scopes": ["jobs:read"], "days": 1})
        assert answer.status_code == 201
        assert answer.headers["cache-control"] == "no-store"
        made = answer.json()
        bearer = {"Authorization": f"Bearer {made['key']}"}
        assert house.http.get("/v1/jobs", headers=bearer).status_code == 200
        assert house.http.get("/v1/session", headers=bearer).json()["scopes"] == ["jobs:read"]
        listed = admin.get("/v1/keys")
        assert made["key"] not in listed.text
        assert {key["name"] for key in listed.json()["keys"]} == {"test", "gateway"}
        assert admin.delete(f"/v1/keys/{made['id']}").json()["revoked_at"] is not None
        problem(house.http.get("/v1/jobs", headers=bearer), 401, "bad-credentials")
        problem(admin.delete("/v1/keys/0"), 404, "access-key-not-found")
        with holder(house, project="other") as others:
            problem(others.delete(f"/v1/keys/{made['id']}"), 404, "access-key-not-found")
        for wrong in ({}, {"name": ""}, {"name": "a", "scopes": ["root"]}, {"name": "a", "days": -1}):
            problem(admin.post("/v1/keys", json=wrong), 422, "invalid-request")


def test_an_expired_key_opens_nothing(house: House) -> None:
    with holder(house, days=0.5 / 86_400) as client:
        assert client.get("/v1/jobs").status_code == 200
        time.sleep(2.6)
        problem(client.get("/v1/jobs"), 401, "bad-credentials")


def test_a_browser_signs_in_and_out(house: House) -> None:
    made = access(house).make_key("browser")
    with httpx.Client(base_url=house.http.base_url, trust_env=False) as browser:
        problem(browser.post("/v1/session", json={"key": "tt_no"}), 401, "bad-credentials")
        answer = browser.post("/v1/session", json={"key": made.secret})
        assert answer.status_code == 201
        cookie = answer.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=strict" in cookie
        assert made.secret not in cookie
        assert browser.get("/v1/jobs").status_code == 200
        cross = browser.post("/v1/jobs", json={"kind": "embed"}, headers={"Sec-Fetch-Site": "cross-site"})
        problem(cross, 403, "cross-site")
        kept = cookie.partition(";")[0]
        assert browser.delete("/v1/session").status_code == 204
        problem(house.http.get("/v1/jobs", headers={"Cookie": kept}), 401, "bad-credentials")


def test_a_revoked_key_ends_its_sessions(house: House) -> None:
    made = access(house).make_key("browser")
    secret = access(house).open_session(made.key, 60)
    assert access(house).key_of_session(secret) == made.key
    access(house).revoke(made.key.id)
    assert access(house).key_of_session(secret) is None
    assert access(house).key_of(made.secret) is None


def test_a_session_ends_with_its_time(house: House) -> None:
    made = access(house).make_key("browser")
    secret = access(house).open_session(made.key, -1)
    assert access(house).key_of_session(secret) is None


def test_the_catalogue_holds_no_secret(house: House) -> None:
    made = access(house).make_key("test")
    session = access(house).open_session(made.key, 60)
    held = b"".join(path.read_bytes() for path in house.root.glob("catalogue.db*"))
    assert made.key.id.encode() in held
    for secret in (made.secret, made.secret.rpartition("_")[2], session):
        assert secret.encode() not in held


def test_a_hasty_sender_is_told_to_wait(tmp_path: Path) -> None:
    with open_house(tmp_path, authentication=True, requests_per_s=1, requests_at_once=5) as house:
        with holder(house) as client:
            answers = [client.get("/v1/jobs") for _ in range(7)]
        assert [answer.status_code for answer in answers[:5]] == [200] * 5
        assert problem(answers[-1], 429, "too-many-requests")["retryable"]
        assert int(answers[-1].headers["retry-after"]) >= 1
        with holder(house) as another:
            assert another.get("/v1/jobs").status_code == 200


def test_whoever_guesses_is_slowed_down(house: House) -> None:
    codes = []
    while len(codes) < 3000 and "too-many-requests" not in codes:
        answer = house.http.get("/v1/jobs", headers={"Authorization": "Bearer tt_x"})
        codes.append(answer.json()["code"])
    assert codes[:50] == ["bad-credentials"] * 50
    assert codes[-1] == "too-many-requests"


class Issuer:
    """An OpenID Connect issuer: one RSA key, published on this machine."""

    def __init__(self) -> None:
        self.private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        document = jwt.algorithms.RSAAlgorithm.to_jwk(self.private.public_key(), as_dict=True)
        keys = json.dumps({"keys": [{**document, "kid": "k1", "use": "sig", "alg": "RS256"}]}).encode()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(keys)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/jwks"

    def token(self, *, key: Any = None, algorithm: str = "RS256", **claims: Any) -> str:
        told = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": "ana",
            "exp": time.time() + 60,
            "scope": "jobs:read",
            **claims,
        }
        kept = {name: value for name, value in told.items() if value is not None}
        return jwt.encode(kept, self.private if key is None else key, algorithm, headers={"kid": "k1"})

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    opened = Issuer()
    yield opened
    opened.close()


@pytest.fixture
def federated(tmp_path: Path, issuer: Issuer) -> Iterator[House]:
    """A service that takes an issuer's tokens, too."""
    with open_house(
        tmp_path, authentication=True, oidc_issuer=ISSUER, oidc_audience=AUDIENCE, oidc_jwks_url=issuer.url
    ) as opened:
        yield opened


def with_token(house: House, token: str, path: str = "/v1/jobs") -> httpx.Response:
    return house.http.get(path, headers={"Authorization": f"Bearer {token}"})


def test_a_token_of_the_issuer_opens_its_project(federated: House, issuer: Issuer) -> None:
    assert with_token(federated, issuer.token()).status_code == 200
    who = with_token(federated, issuer.token(tomotrain_project="ward"), "/v1/session").json()
    assert who == {"name": "oidc:ana", "project_id": "ward", "scopes": ["jobs:read"], "authentication": True}
    problem(with_token(federated, issuer.token(), "/v1/volumes"), 403, "missing-scope")
    made = access(federated).make_key("test")
    assert with_token(federated, made.secret).status_code == 200


def test_false_tokens_are_refused(federated: House, issuer: Issuer) -> None:
    stranger = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    public = "public keys are no secrets" * 4
    false = {
        "expired": issuer.token(exp=time.time() - 3600),
        "another audience": issuer.token(aud="somebody"),
        "another issuer": issuer.token(iss="https://elsewhere.example"),
        "nobody": issuer.token(sub=None),
        "without end": issuer.token(exp=None),
        "not yet": issuer.token(nbf=time.time() + 3600),
        "another key": issuer.token(key=stranger),
        "alg none": jwt.encode({"sub": "ana"}, None, "none", headers={"kid": "k1"}),
        "symmetric": issuer.token(key=public, algorithm="HS256"),
    }
    for case, token in false.items():
        assert with_token(federated, token).json()["code"] == "bad-credentials", case


def test_half_an_issuer_is_no_setting(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="together"), open_house(tmp_path, oidc_issuer=ISSUER):
        pass


def test_everything_that_changes_and_every_refusal_is_in_the_log(house: House, nifti: bytes) -> None:
    log = AuditLog(house.catalogue.database)
    house.http.get("/v1/jobs")
    with holder(house) as client:
        accepted = client.post("/v1/volumes", content=nifti, headers={"X-Request-Id": "r-1"}).json()
        volume = accepted["volume"]["id"]
        house.work(accepted["job"]["id"])
        for index in range(3):
            client.get(f"/v1/volumes/{volume}/slices/z/{index}")
        client.get("/v1/jobs")
    with holder(house, Scope.JOBS_READ) as reader:
        reader.post("/v1/jobs", json={"kind": "embed"})
    told = [(record.action, record.subject, record.outcome) for record in reversed(log.records())]
    assert told == [
        ("list-jobs", "/v1/jobs", 401),
        ("send-scan", "/v1/volumes", 202),
        ("view-volume", f"/v1/volumes/{volume}", 200),
        ("submit", "/v1/jobs", 403),
    ]
    first, sent, *_ = reversed(log.records())
    assert (first.actor, first.project_id) == ("unknown", None)
    assert (sent.actor[:4], sent.project_id, sent.request_id) == ("key:", "default", "r-1")
    assert [record.action for record in log.records(project_id="other")] == []
    assert log.verify() is None


@pytest.mark.parametrize(
    ("deed", "sequence"),
    [
        ("UPDATE audit SET actor = 'nobody' WHERE sequence = 3", 3),
        ("UPDATE audit SET outcome = 200 WHERE sequence = 2", 2),
        ("DELETE FROM audit WHERE sequence = 2", 2),
        ("DELETE FROM audit WHERE sequence = 1", 1),
        ("UPDATE audit SET sequence = 9 WHERE sequence = 5", 5),
        ("UPDATE audit SET hash = (SELECT hash FROM audit WHERE sequence = 2) WHERE sequence = 4", 4),
    ],
)
def test_a_log_that_was_tampered_with_says_where(house: House, deed: str, sequence: int) -> None:
    log = AuditLog(house.catalogue.database)
    for number in range(5):
        log.append(actor="a", action="b", subject=str(number), outcome=202, request_id="r", project_id=None)
    assert log.verify() is None
    with house.catalogue.database.writing() as connection:
        connection.execute(text(deed))
    broken = log.verify()
    assert broken is not None
    assert broken.sequence == sequence


def test_records_of_many_at_once_make_one_chain(house: House) -> None:
    log = AuditLog(house.catalogue.database)

    def append() -> None:
        for _ in range(10):
            log.append(actor="a", action="b", subject="c", outcome=202, request_id="r", project_id=None)

    threads = [threading.Thread(target=append) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(log.records(limit=100)) == 40
    assert log.verify() is None


def test_the_objects_of_an_upload_are_one_record(house: House) -> None:
    log = AuditLog(house.catalogue.database)
    with holder(house) as client:
        upload = client.post("/v1/uploads", json={"kind": "zarr", "name": "scan"}).json()["id"]
        for key in ("zarr.json", "0/zarr.json", "0/c/0/0/0"):
            digest = base64.b64encode(hashlib.sha256(key.encode()).digest()).decode()
            answer = client.put(
                f"/v1/uploads/{upload}/objects/{key}",
                content=key.encode(),
                headers={"Content-Digest": f"sha-256=:{digest}:"},
            )
            assert answer.status_code == 201, answer.text
        client.put(f"/v1/uploads/{upload}/objects/..", content=b"x")
    told = [record.action for record in log.records()]
    assert told.count("put-object") == 1
    assert "create-upload" in told or "open-upload" in told
