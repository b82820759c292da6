"""Tells webhooks of jobs that have ended: CloudEvents 1.0 as structured JSON, signed by Standard Webhooks.

The header `webhook-signature` is `v1,` and base64 of HMAC-SHA256 over `id.timestamp.body`; a receiver
compares it, refuses old timestamps, and takes each `webhook-id` once: what is sent may come more than once.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import random
import ssl
import threading
import time
from collections import Counter
from importlib.metadata import version
from typing import Any, NamedTuple

import httpx

from service.outside import Guard, OutsideError, outside_client
from service.schemas import timestamp
from storage.changes import Glance
from storage.jobs import JobState
from storage.webhooks import MOST_NOTED, Delivery, Parcel, Webhooks

log = logging.getLogger("tomotrain.service")

MEDIA_TYPE = "application/cloudevents+json"
TEST = "webhook.test"
ANSWER_S = 15.0
"""A receiver has so long to take an event, from the first look at its name to its status."""
LEASE_S = 60.0
MOST_AT_ONCE = 16
PAUSES_S = (5.0, 30.0, 120.0, 600.0, 1800.0, 3600.0, 7200.0, 14_400.0, 21_600.0, 36_000.0)
"""After each try that came to nothing; the last one is about a day after the first."""
LONGEST_WISH_S = 3600.0
"""So far a receiver may put off the next try by `Retry-After`."""
KEPT_S = 30 * 86_400.0
FORGET_EVERY_S = 3600.0
_GONE = 410


def describe(glance: Glance, event_id: str) -> dict[str, Any]:
    """The event of a job that has ended: where it stands, and no word of what it is about."""
    address = f"/v1/jobs/{glance.id}"
    links = {"self": address}
    if glance.state is JobState.SUCCEEDED:
        links["result"] = f"{address}/result"
    data = {
        "id": glance.id,
        "kind": glance.kind,
        "state": glance.state,
        "volume_id": glance.volume_id,
        "error_code": glance.error_code,
        "links": links,
    }
    return _event(f"job.{glance.state}", event_id, data, at=glance.ended_at or 0.0, subject=glance.id)


def describe_test(event_id: str) -> dict[str, Any]:
    """An event that tells nothing but that telling works."""
    return _event(TEST, event_id, {"message": "this is a test"}, at=time.time(), subject=event_id)


def _event(name: str, event_id: str, data: dict[str, Any], *, at: float, subject: str) -> dict[str, Any]:
    return {
        "specversion": "1.0",
        "id": event_id,
        "type": f"tomotrain.{name}",
        "source": "/v1/jobs" if subject != event_id else "/v1/webhooks",
        "subject": subject,
        "time": timestamp(at),
        "datacontenttype": "application/json",
        "data": data,
    }


def signed(secret: str, delivery_id: str, at: int, body: bytes) -> dict[str, str]:
    """The headers of Standard Webhooks for a body that is sent at a time (seconds since 1970)."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    told = b".".join([delivery_id.encode(), str(at).encode(), body])
    signature = base64.b64encode(hmac.digest(key, told, hashlib.sha256)).decode()
    return {
        "webhook-id": delivery_id,
        "webhook-timestamp": str(at),
        "webhook-signature": f"v1,{signature}",
    }


class Answer(NamedTuple):
    """What a receiver said: its status and its `Retry-After`, or, without a status, why there is none."""

    status: int | None
    error: str | None = None
    wish_s: float = 0.0


class Courier:
    """Notes what has ended, and delivers: a thread with an event loop of its own."""

    def __init__(
        self,
        webhooks: Webhooks,
        guard: Guard,
        *,
        every_s: float,
        verify: ssl.SSLContext | None = None,
    ) -> None:
        self._webhooks, self._guard, self._every_s, self._verify = webhooks, guard, every_s, verify
        self._busy: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._forgot_at = float("-inf")
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="courier", daemon=True)

    def start(self) -> None:
        """Begin; returns at once."""
        self._thread.start()

    def stop(self) -> None:
        """End; what is on its way is broken off, and tried again by another process or the next one."""
        self._stopping.set()
        self._thread.join()

    async def _run(self) -> None:
        if await self._stopped():
            return
        async with outside_client(self._guard, timeout_s=ANSWER_S, verify=self._verify) as client:
            while True:
                try:
                    await self._round(client)
                except Exception:  # a database that is away now may be back at the next round
                    log.exception("webhooks could not be told")
                if await self._stopped():
                    break
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _stopped(self) -> bool:
        """Pause; whether it is time to end."""
        return await asyncio.to_thread(self._stopping.wait, self._every_s)

    async def _round(self, client: httpx.AsyncClient) -> None:
        """Note what has ended, and begin what is due."""
        while await asyncio.to_thread(self._webhooks.note_ended, describe) == MOST_NOTED:
            pass
        await self._forget()
        self._busy = +self._busy
        free = MOST_AT_ONCE - len(self._tasks)
        if free:
            parcels = await asyncio.to_thread(
                self._webhooks.take, limit=free, lease_s=LEASE_S, without=list(self._busy)
            )
            for parcel in parcels:
                task = asyncio.create_task(self._try(client, parcel))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _try(self, client: httpx.AsyncClient, parcel: Parcel) -> None:
        webhook_id = parcel.delivery.webhook_id
        self._busy[webhook_id] += 1
        try:
            answer = await send(client, parcel)
            await asyncio.to_thread(self._record, parcel.delivery, answer)
        except Exception:  # it stays due, and is tried again after its lease
            log.exception("a delivery of webhook %s was not recorded", webhook_id)
        finally:
            self._busy[webhook_id] -= 1

    def _record(self, delivery: Delivery, answer: Answer) -> None:
        if answer.status is not None and answer.error is None:
            self._webhooks.delivered(delivery, answer.status)
            return
        error = answer.error or "no answer"
        pause_s = None if answer.status == _GONE else pause_after(delivery.tries, answer.wish_s)
        log.warning("webhook %s: %s, in try %d", delivery.webhook_id, error, delivery.tries)
        self._webhooks.failed(delivery, error, status=answer.status, pause_s=pause_s)

    async def _forget(self) -> None:
        if time.monotonic() - self._forgot_at >= FORGET_EVERY_S:
            await asyncio.to_thread(self._webhooks.forget, older_than_s=KEPT_S)
            self._forgot_at = time.monotonic()


def pause_after(tries: int, wish_s: float = 0.0) -> float | None:
    """Seconds until the next try, after so many; None when there is to be none."""
    if tries > len(PAUSES_S):
        return None
    return max(PAUSES_S[tries - 1] * random.uniform(0.8, 1.2), min(wish_s, LONGEST_WISH_S))


async def send(client: httpx.AsyncClient, parcel: Parcel) -> Answer:
    """Try a delivery once. Its answer's body is not read."""
    body = json.dumps(parcel.delivery.document, separators=(",", ":")).encode()
    headers = {
        "content-type": MEDIA_TYPE,
        "user-agent": f"tomotrain/{version('tomotrain')}",
        **signed(parcel.secret, parcel.delivery.id, int(time.time()), body),
    }
    try:
        async with (
            asyncio.timeout(ANSWER_S),
            client.stream("POST", parcel.url, content=body, headers=headers) as answer,
        ):
            return _judged(answer)
    except OutsideError as error:
        return Answer(None, str(error))
    except (TimeoutError, httpx.TimeoutException):
        return Answer(None, f"the receiver did not answer within {ANSWER_S:.0f} s")
    except httpx.ConnectError:
        return Answer(None, "no connection to the receiver, or its certificate is not valid")
    except (httpx.HTTPError, httpx.InvalidURL):
        return Answer(None, "the receiver did not answer in HTTP")


def _judged(answer: httpx.Response) -> Answer:
    if answer.is_success:
        return Answer(answer.status_code)
    error = f"the receiver answered {answer.status_code}"
    if answer.is_redirect:
        error += "; redirects are not followed: make a webhook with the new URL"
    wish = answer.headers.get("retry-after", "")
    return Answer(answer.status_code, error, float(wish) if wish.isascii() and wish.isdigit() else 0.0)
