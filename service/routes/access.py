"""Signing in and out in a browser, and the API keys of a project."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request, Response
from fastapi import Path as FromPath
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from service.deps import Known, Parts, needs
from service.identity import COOKIE, Principal
from service.schemas import PROBLEMS, Label, Wire, timestamp
from storage.access import WORKING, AccessKey, Scope

router = APIRouter(prefix="/v1", tags=["access"], responses=PROBLEMS)

_ADMIN = [needs(Scope.ADMIN)]


class SignIn(BaseModel):
    """An API key, to be exchanged for a cookie."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"key": "tt_..."}]})

    key: str = Field(min_length=1, max_length=200)


class WhoView(Wire):
    """Who sends the request, and what they may do."""

    name: str
    project_id: str
    scopes: list[Scope]
    authentication: bool = Field(description="false: this service asks nobody who they are")


class KeyView(Wire):
    """An API key without its secret."""

    id: str
    name: str
    project_id: str
    scopes: list[Scope]
    created_at: str
    expires_at: str | None
    revoked_at: str | None


class MadeKeyView(KeyView):
    """A new API key; its secret is never shown again."""

    key: str


class KeyList(Wire):
    """The keys of the project, oldest first."""

    keys: list[KeyView]


class KeyRequest(BaseModel):
    """A key to be made for the project of the sender."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"name": "PACS gateway", "scopes": ["volumes:write", "jobs:write"], "days": 365}]
        },
    )

    name: Annotated[Label, Field(min_length=1)]
    scopes: Annotated[list[Scope], Field(min_length=1, max_length=len(Scope))] = sorted(WORKING)
    days: Annotated[float | None, Field(gt=0, le=36_500, allow_inf_nan=False)] = None


@router.post("/session", status_code=201, response_model=WhoView)
def sign_in(wanted: SignIn, request: Request, parts: Parts) -> Response:
    """Exchange an API key for a cookie that scripts cannot read and other sites cannot send."""
    who = parts.doorkeeper.of_secret(wanted.key)
    assert who.key is not None
    request.state.principal = who
    answer = JSONResponse(_who(who, parts).model_dump(mode="json"), 201)
    answer.set_cookie(
        COOKIE,
        parts.access.open_session(who.key, parts.settings.session_s),
        max_age=int(parts.settings.session_s),
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="strict",
    )
    return answer


@router.get("/session", response_model=WhoView)
def who_am_i(who: Known, parts: Parts) -> WhoView:
    """Who sends this request."""
    return _who(who, parts)


@router.delete("/session", status_code=204)
def sign_out(request: Request, parts: Parts) -> Response:
    """End the browser's session."""
    secret = request.cookies.get(COOKIE)
    if secret is not None:
        parts.access.close_session(secret)
        parts.doorkeeper.forget()
    answer = Response(status_code=204)
    answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return answer


@router.get("/keys", response_model=KeyList, dependencies=_ADMIN)
def list_keys(who: Known, parts: Parts) -> KeyList:
    """The project's keys, revoked ones too."""
    return KeyList(keys=[_key_view(key) for key in parts.access.all_keys(who.project_id)])


@router.post("/keys", status_code=201, response_model=MadeKeyView, dependencies=_ADMIN)
def create_key(wanted: KeyRequest, who: Known, parts: Parts) -> Response:
    """A new key for the project; the answer is the only one that holds its secret."""
    made = parts.access.make_key(wanted.name, wanted.scopes, project_id=who.project_id, days=wanted.days)
    view = MadeKeyView(**_key_view(made.key).model_dump(), key=made.secret)
    return JSONResponse(view.model_dump(mode="json"), 201, {"Cache-Control": "no-store"})


@router.delete("/keys/{key_id}", response_model=KeyView, dependencies=_ADMIN)
def revoke_key(key_id: Annotated[str, FromPath(max_length=64)], who: Known, parts: Parts) -> KeyView:
    """End a key of the project, and every session that it opened."""
    revoked = parts.access.revoke(key_id, project_id=who.project_id)
    parts.doorkeeper.forget()
    return _key_view(revoked)


def _who(who: Principal, parts: Parts) -> WhoView:
    return WhoView(
        name=who.name,
        project_id=who.project_id,
        scopes=sorted(who.scopes),
        authentication=parts.settings.authentication,
    )


def _key_view(key: AccessKey) -> KeyView:
    return KeyView(
        id=key.id,
        name=key.name,
        project_id=key.project_id,
        scopes=sorted(key.scopes),
        created_at=timestamp(key.created_at) or "",
        expires_at=timestamp(key.expires_at),
        revoked_at=timestamp(key.revoked_at),
    )
