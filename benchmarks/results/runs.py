"""What benchmark runs left: one JSON file each, as `--json` wrote it, and the command that writes it.

A file with `cases` is of `cpic_cohort` and may have any name; the others have the names of their benchmarks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

COHORTS, PICTURE = "cpic_cohort", "saliency"
FOLDER = "docs/results"
"""Where runs lie, from the repository's root."""

Told = Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """What was told, the command that told it, and of which `code` it is: empty where that was not told."""

    told: Told
    command: str
    code: Told = field(default_factory=dict)


@dataclass(frozen=True)
class Runs:
    """Cases of cohorts by name, and the other benchmarks' runs by theirs."""

    cases: Mapping[str, Run]
    others: Mapping[str, Run]


def command(name: str, cases: Sequence[str] = ()) -> str:
    """What writes the file `name`.json: some cases of the cohorts, or the benchmark of that name."""
    if name == PICTURE:
        return "python -m benchmarks results --only pictures"
    benchmark = f"{COHORTS} --only {','.join(cases)}" if cases else name
    return f"python -m benchmarks {benchmark} --json {FOLDER}/{name}.json"


def read(folder: Path) -> Runs:
    """All runs of a folder. Raises SystemExit, naming files, for broken ones, and a case in two of them."""
    cases: dict[str, Run] = {}
    others: dict[str, Run] = {}
    for path in sorted(folder.glob("*.json")):
        told = _told(path)
        code = told.get("provenance", {})
        if "cases" not in told:
            settings = {name: told[name] for name in ("digest",) if code and name in told}
            others[path.stem] = Run(told, command(path.stem), {**code, **settings})
            continue
        for name, case in told["cases"].items():
            if name in cases:
                raise SystemExit(f"{path} has the case {name}, which another file has too: remove one")
            by = command(path.stem, tuple(told["cases"]))
            cases[name] = Run(case, by, {**code, **case.get("provenance", {})})
    return Runs(cases, others)


def _told(path: Path) -> Told:
    try:
        told = json.loads(path.read_text())
    except ValueError as error:
        raise SystemExit(f"{path} is no JSON ({error}): run its benchmark again") from error
    if not isinstance(told, dict):
        raise SystemExit(f"{path} is no benchmark's: it holds no object")
    return told
