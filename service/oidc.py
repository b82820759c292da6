"""OpenID Connect bearer tokens (RFC 7519, 9068), checked by PyJWT against the issuer's published keys.

Only asymmetric signatures are taken. A token must name its subject, the issuer and the audience of the
settings, and be within its time; `scope` lists what it may do, and a claim names the project.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from service.errors import ApiError
from service.settings import ServiceSettings
from storage.access import Scope
from storage.tables import DEFAULT_PROJECT

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
LEEWAY_S = 30
KEYS_KEPT_S = 300
FETCH_S = 5.0
REALM = {"WWW-Authenticate": 'Bearer realm="tomotrain", error="invalid_token"'}


@dataclass(frozen=True)
class Claims:
    """What a valid token says."""

    subject: str
    project_id: str
    scopes: frozenset[Scope]


class Tokens:
    """Tokens of one issuer."""

    def __init__(self, issuer: str, audience: str, jwks_url: str, project_claim: str) -> None:
        from jwt import PyJWKClient  # noqa: PLC0415 - cryptography is slow to import

        self._issuer, self._audience, self._project_claim = issuer, audience, project_claim
        self._keys = PyJWKClient(jwks_url, lifespan=KEYS_KEPT_S, timeout=FETCH_S)

    @classmethod
    def of(cls, settings: ServiceSettings) -> Tokens | None:
        """Those that the settings name; None where they name none. Raises ValueError where a part lacks."""
        parts = (settings.oidc_issuer, settings.oidc_audience, settings.oidc_jwks_url)
        issuer, audience, url = parts
        if issuer and audience and url:
            return cls(issuer, audience, url, settings.oidc_project_claim)
        if any(parts):
            raise ValueError("set TOMOTRAIN_OIDC_ISSUER, _AUDIENCE and _JWKS_URL together, or none of them")
        return None

    def claims(self, token: str) -> Claims:
        """What a token says. Raises ApiError `bad-credentials`, or `not-ready` while the issuer is away."""
        import jwt  # noqa: PLC0415 - as above

        try:
            key = self._keys.get_signing_key_from_jwt(token)
            payload: dict[str, Any] = jwt.decode(
                token,
                key,
                algorithms=list(ALGORITHMS),
                audience=self._audience,
                issuer=self._issuer,
                leeway=LEEWAY_S,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except jwt.PyJWKClientConnectionError as error:
            detail = "the issuer's keys cannot be had now; try again in a few seconds"
            raise ApiError("not-ready", detail, retryable=True) from error
        except jwt.PyJWTError as error:
            detail = f"the token is not valid ({type(error).__name__}): get a fresh one from the issuer"
            raise ApiError("bad-credentials", detail, headers=REALM) from error
        return Claims(str(payload["sub"]), self._project(payload), _scopes(payload))

    def _project(self, payload: dict[str, Any]) -> str:
        return str(payload.get(self._project_claim, DEFAULT_PROJECT))


def _scopes(payload: dict[str, Any]) -> frozenset[Scope]:
    """Those of ours that the token names: `scope` (a text, RFC 8693) or `scp` (a list)."""
    told = payload.get("scope", payload.get("scp", ""))
    names = told.split() if isinstance(told, str) else told
    return frozenset(scope for scope in Scope if scope in names)
