"""A connection to one service: who asks, and what its refusals look like from this side."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Any, Self

import httpx

from service.schemas import Problem

KEY_VARIABLE = "TOMOTRAIN_API_KEY"


class ServiceProblem(Exception):
    """The service refused a request, or a job failed. `problem` is what it said."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(f"{problem.title.lower()}: {problem.detail}")
        self.problem = problem


class ServiceUnreachable(Exception):
    """Nothing that speaks this API answers at the address."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(
            f"no answer from {url} ({reason}); is the service running? `tomotrain up` starts one"
        )
        self.url = url


class Connection:
    """See `service.client.Client`."""

    def __init__(
        self, url: str, *, key: str | None = None, transport: httpx.BaseTransport | None = None
    ) -> None:
        self.url = url.rstrip("/")
        secret = key or os.environ.get(KEY_VARIABLE)
        self.authorization = {"Authorization": f"Bearer {secret}"} if secret else {}
        self._http = httpx.Client(
            base_url=self.url,
            headers=self.authorization,
            timeout=60.0,
            transport=transport,
            trust_env=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """The answer to a request. Raises ServiceProblem or ServiceUnreachable."""
        try:
            answer = self._http.request(method, path, **options)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ServiceUnreachable(self.url, str(error) or type(error).__name__) from error
        if answer.is_error:
            raise ServiceProblem(problem_of(answer))
        return answer


def problem_of(answer: httpx.Response) -> Problem:
    """What an answer says went wrong."""
    try:
        return Problem.model_validate_json(answer.content)
    except ValueError:
        return Problem(
            type="about:blank",
            title=f"HTTP {answer.status_code}",
            status=answer.status_code,
            detail=f"{answer.url} does not speak this API",
            instance=answer.url.path,
            code="bad-request",
        )
