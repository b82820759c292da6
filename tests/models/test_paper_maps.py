"""Every row of a PAPER.md points to code and to a test that exist."""

from __future__ import annotations

import ast
import re
from functools import reduce
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROW = re.compile(
    r"^\|[^|]+\| `(?P<module>[\w.]+):(?P<name>[\w.]+)` \| `(?P<file>[\w/.]+)::(?P<test>\w+)` \|$"
)
ROWS = [
    (paper.parent.name, line)
    for paper in sorted(ROOT.glob("models/*/PAPER.md"))
    for line in paper.read_text().splitlines()
    if line.startswith("|") and not re.match(r"^\| *(Statement|-)", line) and not line.startswith("|---")
]


def test_the_maps_have_rows() -> None:
    assert sum(paper == "cpic" for paper, _ in ROWS) >= 10


@pytest.mark.parametrize(("paper", "line"), ROWS)
def test_rows_point_to_code_and_tests(paper: str, line: str) -> None:
    row = ROW.match(line)
    assert row is not None, f"not a row of statement, code and test: {line}"
    assert callable(reduce(getattr, row["name"].split("."), import_module(row["module"])))
    tests = ast.parse((ROOT / row["file"]).read_text())
    assert row["test"] in {node.name for node in tests.body if isinstance(node, ast.FunctionDef)}
