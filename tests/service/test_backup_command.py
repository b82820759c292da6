"""Backups by command: the same as the functions, with exit statuses, and causes with cures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from house import House, Library, open_house
from typer.testing import CliRunner

from service.cli import app
from storage.backup import back_up


def url(root: Path) -> str:
    return f"sqlite:///{root / 'catalogue.db'}"


def test_by_command(house: House, nifti: bytes, tmp_path_factory: Any) -> None:
    place = tmp_path_factory.mktemp("elsewhere")
    volume_id = house.ready(nifti)
    copy, new = str(place / "copy"), str(place / "new")
    run = CliRunner().invoke
    made = run(app, ["backup", copy, "--data-root", str(house.root), "--json"])
    assert made.exit_code == 0, made.output
    facts = json.loads(made.stdout)
    assert facts["left_out"] == []
    checked = run(app, ["backup", "--verify", copy, "--json"])
    assert checked.exit_code == 0
    assert json.loads(checked.stdout)["digest"] == facts["digest"]
    brought = run(app, ["restore", copy, "--data-root", new, "--json"])
    assert brought.exit_code == 0, brought.output
    with open_house(place / "new") as again:
        assert again.http.get(f"/v1/volumes/{volume_id}").status_code == 200
    (place / "copy" / "catalogue.db").write_bytes(b"")
    assert run(app, ["backup", "--verify", copy]).exit_code == 1


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        (["backup", "{taken}", "--data-root", "{root}"], "is there already"),
        (["backup", "{new}", "--data-root", "{taken}"], "no catalogue.db"),
        (["backup", "--verify", "{taken}"], "no backup.json"),
        (["restore", "{taken}", "--data-root", "{new}"], "no backup.json"),
        (["restore", "{copy}", "--data-root", "{root}"], "is not empty"),
    ],
)
def test_bad_options_are_told_with_their_cure(
    library: Library, tmp_path: Path, arguments: list[str], cause: str
) -> None:
    root = library.house.root
    (tmp_path / "taken").mkdir()
    back_up(url(root), root, tmp_path / "copy")
    names = {"taken": tmp_path / "taken", "new": tmp_path / "new", "root": root, "copy": tmp_path / "copy"}
    answer = CliRunner().invoke(app, [argument.format(**names) for argument in arguments])
    assert answer.exit_code != 0
    assert cause in str(answer.exception)
