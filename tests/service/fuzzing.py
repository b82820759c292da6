"""What schemathesis asks a furnished service, and what it finds wrong with the answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from furnished import ARTIFACT, Furniture, furnish, keyed_house
from fuzz_checks import STORING
from house import House
from schemathesis.engine import Status, events, from_schema

SEED = 20
IDS = ("volume_id", "job_id", "webhook_id", "upload_id", "key_id", "study", "series", "instance")


@dataclass(frozen=True)
class Target:
    """A furnished service that asks for keys, what is in it, and what of it may be removed."""

    house: House
    kept: Furniture
    spare: Furniture


@dataclass
class Findings:
    """How many requests were sent for each operation, what was answered, and each distinct fault."""

    requests: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    faults: dict[tuple[str, str], str] = field(default_factory=dict)

    def __str__(self) -> str:
        return "\n\n".join(
            f"{operation}: {fault}\n    {curl}" for (operation, fault), curl in sorted(self.faults.items())
        )


@contextmanager
def fuzzed_house(root: Path, scan: bytes) -> Iterator[Target]:
    """A service whose webhooks reach nothing but this machine, and whose events come soon."""
    settings: dict[str, Any] = {
        "requests_per_s": 1e6,
        "requests_at_once": 10**6,
        "worker_fresh_s": 86_400.0,
    }
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr("service.outside.resolved", _nowhere)
        patch.setattr("service.events.PING_S", 0.2)
        patch.setattr("service.deps._REFUSED_AT_ONCE", 10**6)
        house = stack.enter_context(keyed_house(root, **settings))
        yield Target(house, furnish(house, scan), furnish(house, scan))


async def _nowhere(host: str, port: int) -> list[str]:
    return []


def fuzz(target: Target, *phases: str, examples: int) -> Findings:
    """What these phases of schemathesis find with so many examples for each operation."""
    schema = schemathesis.openapi.from_dict(
        target.house.http.get("/openapi.json").json(), config=_config(target, phases, examples)
    )
    found = Findings()
    for event in from_schema(schema).execute():
        if isinstance(event, events.ScenarioFinished):
            _note(found, event.recorder)
        elif isinstance(event, (events.NonFatalError, events.FatalError)):
            found.faults[getattr(event, "label", "schemathesis"), "error"] = str(_error(event))
    return found


def _error(event: Any) -> Any:
    return getattr(event, "info", None) or getattr(event, "exception", event)


def _note(found: Findings, recorder: Any) -> None:
    for case_id, exchange in recorder.interactions.items():
        found.requests[recorder.cases[case_id].value.operation.label] += 1
        if exchange.response is not None:
            found.statuses[exchange.response.status_code] += 1
    for case_id, checks in recorder.checks.items():
        operation = recorder.cases[case_id].value.operation.label
        for check in checks:
            if check.status is Status.FAILURE:
                failure = check.failure_info.failure
                fault = f"{check.name}: {failure.title}: {failure.message}"[:300]
                found.faults.setdefault((operation, fault), check.failure_info.code_sample[:2000])


def _config(target: Target, phases: tuple[str, ...], examples: int) -> schemathesis.Config:
    kept, spare = target.kept, target.spare
    words = {
        "artifacts": [ARTIFACT],
        "kinds": ["embed", "errand"],
        "objects": ["zarr.json", "0/zarr.json"],
        "offsets": ["0", "1000"],
        "tags": ["*"],
        "versions": ["1.0.0"],
    }
    named = {"kept": _ids(kept), "spare": _ids(spare)}
    dictionaries = {
        **{name: {"values": values} for name, values in words.items()},
        **{f"{which}-{name}": {"values": ids} for which, of in named.items() for name, ids in of.items()},
    }
    removing = {"include-method": "DELETE"}
    storing = {"include-operation-id": list(STORING)}
    ending = {"include-operation-id": ["cancel", "complete_upload", "append_tus"]}
    return schemathesis.Config.from_dict(
        {
            "base-url": str(target.house.http.base_url),
            "headers": {"Authorization": target.house.http.headers["authorization"]},
            "seed": SEED,
            "cache": {"enabled": False},
            "max-stream-events": 1,
            "request-timeout": 30,
            "continue-on-failure": True,
            "warnings": False,
            "suppress-health-check": ["all"],
            "generation": {
                "max-examples": examples,
                "deterministic": True,
                "database": "none",
                "no-shrink": True,
            },
            "phases": {
                name: {"enabled": name in phases} for name in ("examples", "coverage", "fuzzing", "stateful")
            },
            "checks": {
                name: {"expected-statuses": ["2xx", "304", "4xx"] if name.startswith("pos") else ["4xx"]}
                for name in ("positive_data_acceptance", "negative_data_rejection", "missing_required_header")
            },
            "dictionaries": dictionaries,
            "parameters": {
                **_addressed("kept"),
                "path.name": _from("artifacts", 0.5),
                "path.key": _from("objects", 0.5),
                "body.kind": _from("kinds", 0.5),
                "body.volume_id": _from("kept-volume_id", 0.5),
                "header.If-None-Match": _from("tags", 0.2),
                "header.Tus-Resumable": _from("versions", 0.8),
                "header.Upload-Offset": _from("offsets", 0.5),
            },
            "operations": [
                {**removing, "parameters": _addressed("spare")},
                {**ending, "parameters": _addressed("spare")},
                {**storing, "checks": {"missing_required_header": {"enabled": False}}},
            ],
        }
    )


def _ids(furniture: Furniture) -> dict[str, list[str]]:
    return {
        "volume_id": furniture.volumes,
        "job_id": list(furniture.jobs.values()),
        "webhook_id": furniture.webhooks,
        "upload_id": [*furniture.uploads, *furniture.tus_uploads],
        "key_id": furniture.keys,
        "study": [furniture.study],
        "series": [furniture.series],
        "instance": [furniture.instance],
    }


def _addressed(which: str) -> dict[str, Any]:
    return {f"path.{name}": _from(f"{which}-{name}", 0.6) for name in IDS}


def _from(dictionary: str, probability: float) -> dict[str, Any]:
    return {"dictionary": dictionary, "probability": probability}
