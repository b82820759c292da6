"""docs/results.md, with its figures, from the JSON files that benchmark runs wrote under docs/results.

`--only pictures` first trains a model for a minute and draws where one of its answers comes from.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.results.document import document, missing
from benchmarks.results.runs import PICTURE, read

DOCS = Path("docs")
PICTURES = "pictures"


def run(only: Sequence[str] = (), docs: Path = DOCS) -> dict[str, Any]:
    """Write the document and the figures of the runs that are there."""
    from benchmarks.results import pictures, plots
    from benchmarks.results.asked import asked

    if unknown := set(only) - {PICTURES}:
        raise SystemExit(f"no part {', '.join(sorted(unknown))}; there is {PICTURES}")
    folder = docs / "results"
    folder.mkdir(parents=True, exist_ok=True)
    if PICTURES in only:
        pictures.draw(folder)
    runs = read(folder)
    figures = plots.draw(runs, folder)
    if (folder / f"{PICTURE}.png").exists():
        figures.add(f"{PICTURE}.png")
    wanted = asked()
    (docs / "results.md").write_text(document(runs, wanted, figures))
    return {
        "document": str(docs / "results.md"),
        "figures": sorted(figures),
        "not_measured": missing(runs, wanted),
    }


def show(result: dict[str, Any]) -> None:
    """Say what was written, and what there is no run of."""
    print(f"{result['document']}, with {len(result['figures'])} figures")
    for command in result["not_measured"]:
        print(f"not measured: {command}")
