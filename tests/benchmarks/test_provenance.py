"""Which code a result is of, and numbers as they stand in tables."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import __main__ as command_line
from benchmarks import targets
from benchmarks.provenance import commit, digest, without_added
from models.regressors.cpic import Cpic
from models.regressors.readouts import FibreReadoutConfig


def git(folder: Path, *arguments: str) -> None:
    who = ["-c", "user.name=a", "-c", "user.email=a@localhost"]
    subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True)


def test_changes_count_but_for_those_of_documents(tmp_path: Path) -> None:
    assert commit(tmp_path) == {"commit": "unknown", "dirty": None}
    git(tmp_path, "init")
    (tmp_path / "docs").mkdir()
    for name in ("code.py", "docs/results.md"):
        (tmp_path / name).write_text("1")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    clean = commit(tmp_path)
    assert len(clean["commit"]) == 12
    assert clean["dirty"] is False
    (tmp_path / "docs/results.md").write_text("2")
    (tmp_path / "docs/new.json").write_text("{}")
    assert commit(tmp_path) == clean
    (tmp_path / "new.py").write_text("1")
    assert commit(tmp_path) == {**clean, "dirty": True}


def test_every_json_file_says_which_code_made_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Benchmark:
        @staticmethod
        def run() -> dict[str, int]:
            return {"figure": 1}

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(command_line, "import_module", lambda name: Benchmark)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "cubes", "--json", str(tmp_path / "cubes.json")])
    assert command_line.main() == 0
    told = json.loads((tmp_path / "cubes.json").read_text())
    assert told["figure"] == 1
    assert set(told["provenance"]) == {"commit", "dirty", "versions", "date"}
    assert set(told["provenance"]["versions"]) == {"python", "torch", "numpy", "zarr", "tomotrain"}


def test_a_setting_that_was_added_counts_where_it_changes_something() -> None:
    settings = {"a": 1, "encoder": {"spectral_bound": None, "b": None}}
    assert without_added(settings) == {"a": 1, "encoder": {"b": None}}
    assert without_added({"spectral_bound": 2.0}) == {"spectral_bound": 2.0}
    bound = replace(Cpic(), encoder=replace(Cpic().encoder, spectral_bound=1.0))
    assert digest({"cpic": bound}) != digest({"cpic": Cpic()})


def test_a_digest_is_of_all_settings() -> None:
    narrow = replace(Cpic(), readout=FibreReadoutConfig(counts=(3,)))
    assert len({digest({"cpic": recipe}) for recipe in (Cpic(), Cpic(steps=7), narrow)}) == 3
    assert digest({"cpic": Cpic()}) == digest({"cpic": Cpic()})


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (238.5, "239"),
        (239.5, "240"),
        (0.4535, "0.454"),
        (1.125, "1.13"),
        (999.6, "1,000"),
        (99.96, "100"),
        (0.0, "0"),
        (-0.0487, "-0.0487"),
        (13231, "13,231"),
        (6.957e-7, "6.96e-07"),
        (None, "none"),
    ],
)
def test_halves_are_rounded_up_in_every_table(value: float | None, shown: str) -> None:
    assert targets.number(value) == shown
