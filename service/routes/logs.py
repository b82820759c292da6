"""What was told of a job while it ran (storage/job_logs.py), as lines of JSON (application/x-ndjson)."""

from __future__ import annotations

import json
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from service.deps import FoundJob, Parts
from service.schemas import PROBLEMS
from storage.job_logs import MOST_LINES, LogPage, read_log

MEDIA_TYPE = "application/x-ndjson"
LARGEST_SEQ = (1 << 53) - 1
"""Of what JSON can carry without loss."""

After = Annotated[int, Query(ge=0, le=LARGEST_SEQ, description="`seq` of the last line that is known")]
Limit = Annotated[int, Query(ge=1, le=MOST_LINES, description="most lines at once")]

ANSWER: dict[str, Any] = {
    "description": "lines, the oldest first; none yet: empty",
    "content": {MEDIA_TYPE: {}},
    "headers": {
        "X-Next-After": {"description": "`after` of the next request", "schema": {"type": "integer"}},
        "Link": {"description": "where there are more lines already: the next", "schema": {"type": "string"}},
    },
}

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], responses=PROBLEMS)


@router.get(
    "/{job_id}/logs",
    response_class=Response,
    responses={200: ANSWER},
)
def get_logs(
    request: Request,
    job: FoundJob,
    parts: Parts,
    after: After = 0,
    limit: Limit = MOST_LINES,
) -> Response:
    """What was told of a job: begins and ends of attempts, phases, warnings and errors; no word of a scan's.

    Go on with `X-Next-After` as `after`: while there is more, `Link` leads there, and while the job has not
    ended `Retry-After` says when to come back.
    """
    log = read_log(parts.settings.data_root, job.id, after=after, limit=limit)
    body = "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in log.lines)
    headers = {"Cache-Control": "private, no-store", "X-Next-After": str(log.next_after)}
    if log.more:
        headers |= _next(request, log)
    elif not job.state.terminal:
        headers["Retry-After"] = "1"
    return Response(body, media_type=MEDIA_TYPE, headers=headers)


def _next(request: Request, log: LogPage) -> dict[str, str]:
    """The `Link` header (RFC 8288) that leads to the next lines."""
    address = request.url.include_query_params(after=log.next_after)
    return {"Link": f'<{address.path}?{address.query}>; rel="next"'}
