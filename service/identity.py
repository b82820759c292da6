"""Who sends a request: an API key, a browser's session that a key opened, or an OpenID Connect token.

    Authorization: Bearer tt_...     an API key
    Authorization: Bearer eyJ...     a token of the issuer that the settings name (RFC 7519, RFC 9068)
    Cookie: tomotrain_session=...    a browser that has signed in

A principal belongs to one project and sees nothing of the others.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from dataclasses import dataclass

from fastapi import Request

from service.errors import ApiError
from service.oidc import Tokens
from service.settings import ServiceSettings
from service.traceparent import traceparent
from service.tracing import traceparent_of_span
from storage.access import EVERYTHING, Access, AccessKey, Scope
from storage.jobs import Sender
from storage.tables import DEFAULT_PROJECT

COOKIE = "tomotrain_session"
REALM = {"WWW-Authenticate": 'Bearer realm="tomotrain"'}
REMEMBERED_S = 2.0
"""For so long a key that was revoked elsewhere is still good here."""
MOST_REMEMBERED = 10_000
_CURE = "send `Authorization: Bearer <API key>`; `tomotrain keys create` makes one"


@dataclass(frozen=True)
class Principal:
    """Somebody who was recognised; `name` is for the audit log and for job rows."""

    name: str
    project_id: str
    scopes: frozenset[Scope]
    key: AccessKey | None = None

    def sender(self, request: Request) -> Sender:
        """Whom a job of this request comes from."""
        return Sender(self.project_id, self.name, traceparent_of_span() or traceparent(request))

    def require(self, *scopes: str) -> None:
        """Raise ApiError `missing-scope` where one is lacking."""
        lacking = sorted(set(scopes) - self.scopes)
        if lacking:
            raise ApiError("missing-scope", f"this needs the scope {lacking[0]}: use a key that has it")


ANYBODY = Principal("anybody", DEFAULT_PROJECT, EVERYTHING)
"""Whoever sends a request to a service that asks for no credentials."""


class Doorkeeper:
    """Recognises senders."""

    def __init__(self, settings: ServiceSettings, access: Access) -> None:
        self._settings, self._access = settings, access
        self._tokens = Tokens.of(settings)
        self._remembered: OrderedDict[bytes, tuple[Principal, float]] = OrderedDict()

    def remembered(self, request: Request) -> Principal | None:
        """Who sends the request, if that was found out a moment ago; asks neither database nor issuer."""
        if not self._settings.authentication:
            return ANYBODY
        principal, until = self._remembered.get(_credentials(request), (None, 0.0))
        return principal if time.monotonic() < until else None

    def recognise(self, request: Request) -> Principal:
        """Who sends the request. Raises ApiError `no-credentials` or `bad-credentials`, both 401."""
        principal = self._recognise(request)
        self._remembered[_credentials(request)] = (principal, time.monotonic() + REMEMBERED_S)
        while len(self._remembered) > MOST_REMEMBERED:
            self._remembered.popitem(last=False)
        return principal

    def forget(self) -> None:
        """Ask anew about everybody: something was revoked."""
        self._remembered.clear()

    def _recognise(self, request: Request) -> Principal:
        authorization = request.headers.get("authorization")
        if authorization is not None:
            return self._by_header(authorization)
        session = request.cookies.get(COOKIE)
        if session is None:
            raise ApiError("no-credentials", f"who sends this? {_CURE}", headers=REALM)
        key = self._access.key_of_session(session)
        if key is None:
            raise ApiError("bad-credentials", "the session has ended; sign in again", headers=REALM)
        return of_key(key)

    def of_secret(self, secret: str) -> Principal:
        """Whose API key this is. Raises ApiError `bad-credentials`."""
        key = self._access.key_of(secret)
        if key is None:
            raise ApiError("bad-credentials", f"no valid API key; {_CURE}", headers=REALM)
        return of_key(key)

    def _by_header(self, authorization: str) -> Principal:
        scheme, _, credentials = authorization.partition(" ")
        if scheme.lower() != "bearer" or not credentials:
            raise ApiError("bad-credentials", f"no bearer credentials; {_CURE}", headers=REALM)
        if credentials.startswith("tt_") or self._tokens is None:
            return self.of_secret(credentials)
        claims = self._tokens.claims(credentials)
        return Principal(f"oidc:{claims.subject}", claims.project_id, claims.scopes)


def _credentials(request: Request) -> bytes:
    """What tells senders apart, without their secrets."""
    told = f"{request.headers.get('authorization')}\0{request.cookies.get(COOKIE)}"
    return hashlib.sha256(told.encode()).digest()


def of_key(key: AccessKey) -> Principal:
    """Who holds a key."""
    return Principal(f"key:{key.id}", key.project_id, key.scopes, key)
