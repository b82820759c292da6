"""Webhooks: subscribe to the ends of the project's jobs, test that, and see what was delivered."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from fastapi import Path as FromPath
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from service.conditional import PageSize, PageToken, decode_token, json_answer, next_link, page
from service.deps import Known, Parts, needs
from service.described import CONDITIONAL, UNCHANGED
from service.errors import ApiError
from service.outside import LONGEST_URL, Guard, OutsideError, Refused
from service.schemas import PROBLEMS, Wire, timestamp
from service.webhooks import describe_test
from storage.access import Scope
from storage.webhooks import Delivery, Webhook, WebhookEvent

_MAX_BODY_BYTES = 16 << 10

router = APIRouter(
    prefix="/v1/webhooks", tags=["events"], responses=PROBLEMS, dependencies=[needs(Scope.JOBS_WRITE)]
)

WebhookId = Annotated[str, FromPath(pattern=r"^[a-z0-9_-]{1,64}$")]


class WebhookRequest(BaseModel):
    """Where to send which events."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"url": "https://ris.hospital.example/tomotrain", "events": ["job.succeeded"]}]
        },
    )

    url: str = Field(
        max_length=LONGEST_URL,
        description="https; a host that is public, or allowed here",
        json_schema_extra={"format": "uri", "pattern": "^https?://"},
    )
    events: list[WebhookEvent] = Field(list(WebhookEvent), min_length=1, max_length=len(WebhookEvent))


class WebhookView(Wire):
    """A webhook, without its secret."""

    id: str
    url: str
    events: list[WebhookEvent]
    created_at: str
    links: dict[str, str]


class MadeWebhookView(WebhookView):
    """A new webhook. `secret` is shown here and nowhere else: receivers verify signatures by it."""

    secret: str


class WebhookList(Wire):
    """The project's webhooks, oldest first."""

    webhooks: list[WebhookView]


class DeliveryView(Wire):
    """An event for a webhook: `pending`, `delivered` or `failed`; `error` is of the last try."""

    id: str
    state: str
    created_at: str
    next_at: str | None
    tries: int
    tried_at: str | None
    status: int | None = Field(description="of the receiver's last answer")
    error: str | None
    event: dict[str, Any] = Field(description="what is sent (CloudEvents 1.0)")


class DeliveryPage(Wire):
    """Newest first. `next_page_token` is null on the last page (AIP-158)."""

    deliveries: list[DeliveryView]
    next_page_token: str | None = None


@router.post("", status_code=201, response_model=MadeWebhookView, max_body_size=_MAX_BODY_BYTES)
async def make_webhook(wanted: WebhookRequest, parts: Parts, who: Known) -> Response:
    """Have the ends of jobs told to a URL. Answers with the secret that deliveries are signed with, once."""
    await _check(parts.outside, wanted.url)
    made = await run_in_threadpool(parts.webhooks.make, wanted.url, wanted.events, project_id=who.project_id)
    view = MadeWebhookView(**_view(made.webhook).model_dump(), secret=made.secret)
    headers = {"Location": view.links["self"], "Cache-Control": "no-store"}
    return JSONResponse(view.model_dump(mode="json"), 201, headers)


async def _check(guard: Guard, url: str) -> None:
    """Raise ApiError `address-not-allowed`, or `invalid-request` for what is no such URL at all."""
    try:
        await guard.admit(url)
    except OutsideError as error:
        code = "address-not-allowed" if isinstance(error, Refused) else "invalid-request"
        raise ApiError(code, f"url: {error}", errors=[("/url", str(error))]) from error


@router.get("", response_model=WebhookList, responses=UNCHANGED, openapi_extra=CONDITIONAL)
def list_webhooks(request: Request, parts: Parts, who: Known) -> Response:
    """The project's webhooks."""
    views = [_view(webhook) for webhook in parts.webhooks.webhooks(who.project_id)]
    return json_answer(request, WebhookList(webhooks=views))


@router.get("/{webhook_id}", response_model=WebhookView, responses=UNCHANGED, openapi_extra=CONDITIONAL)
def get_webhook(request: Request, webhook_id: WebhookId, parts: Parts, who: Known) -> Response:
    """One webhook."""
    return json_answer(request, _view(parts.webhooks.webhook(webhook_id, project_id=who.project_id)))


@router.delete("/{webhook_id}", status_code=204)
def remove_webhook(webhook_id: WebhookId, parts: Parts, who: Known) -> Response:
    """End a webhook, and forget its deliveries."""
    parts.webhooks.remove(webhook_id, project_id=who.project_id)
    return Response(status_code=204)


@router.post("/{webhook_id}/test", status_code=202, response_model=DeliveryView)
def try_webhook(webhook_id: WebhookId, parts: Parts, who: Known) -> Response:
    """Send an event of the type `tomotrain.webhook.test`; the deliveries say what came of it."""
    put = parts.webhooks.put(webhook_id, describe_test, project_id=who.project_id)
    headers = {"Location": f"/v1/webhooks/{webhook_id}/deliveries"}
    return JSONResponse(_delivery_view(put).model_dump(mode="json"), 202, headers)


@router.get(
    "/{webhook_id}/deliveries",
    response_model=DeliveryPage,
    responses=UNCHANGED,
    openapi_extra=CONDITIONAL,
)
def list_deliveries(
    request: Request,
    webhook_id: WebhookId,
    parts: Parts,
    who: Known,
    page_size: PageSize = 50,
    page_token: PageToken = None,
) -> Response:
    """What was sent, or is to be, newest first; for 30 days."""
    rows = parts.webhooks.deliveries(
        webhook_id, project_id=who.project_id, limit=page_size + 1, before=decode_token(page_token)
    )
    shown, token = page(rows, page_size)
    document = DeliveryPage(deliveries=[_delivery_view(row) for row in shown], next_page_token=token)
    return json_answer(request, document, headers=next_link(request, token))


def _view(webhook: Webhook) -> WebhookView:
    address = f"/v1/webhooks/{webhook.id}"
    return WebhookView(
        id=webhook.id,
        url=webhook.url,
        events=list(webhook.events),
        created_at=timestamp(webhook.created_at) or "",
        links={"self": address, "deliveries": f"{address}/deliveries", "test": f"{address}/test"},
    )


def _delivery_view(delivery: Delivery) -> DeliveryView:
    return DeliveryView(
        id=delivery.id,
        state=delivery.state,
        created_at=timestamp(delivery.created_at) or "",
        next_at=timestamp(delivery.next_at),
        tries=delivery.tries,
        tried_at=timestamp(delivery.tried_at),
        status=delivery.status,
        error=delivery.error,
        event=delivery.document,
    )
