"""`tomotrain recipes`: what a model can be made by, and what can be set, with the defaults."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from service.client import Client
from service.commands.common import AsJson, BadOption, Url, connected


def recipes(url: Url = None, as_json: AsJson = False) -> None:
    """List the settings of each recipe, and how scans can be prepared, with the service's defaults."""
    with connected(url) as client:
        found = published(client)
    if as_json:
        print(json.dumps(found, allow_nan=False))
        return
    for title, option, tables in (
        ("Recipes", "--setting", found["settings"]),
        ("Preparation of scans", "--preparation", {"": found["preparation"]}),
    ):
        Console().print(_table(f"{title}: {option} NAME=VALUE", tables))


def published(client: Client) -> dict[str, dict[str, Any]]:
    """The settings of every recipe, and the preparation's, as trainings take them.

    Raises BadOption where no worker trains.
    """
    for kind in client.kinds():
        if kind.name == "train":
            properties = kind.parameters_schema["properties"]
            return {name: properties[name]["examples"][0] for name in ("settings", "preparation")}
    raise BadOption("no worker has announced that it trains; is one running?")


def _table(title: str, tables: dict[str, dict[str, Any]]) -> Table:
    """A line for each setting."""
    shown = Table(title=title, title_justify="left", expand=False)
    named = any(tables)
    for name in (*(["recipe"] if named else []), "setting"):
        shown.add_column(name, style="bold", no_wrap=True)
    shown.add_column("default", overflow="fold")
    for recipe, settings in tables.items():
        for number, (name, value) in enumerate(settings.items() or [("(none)", "")]):
            first = [recipe if number == 0 else ""] if named else []
            shown.add_row(*first, name, Text(json.dumps(value) if settings else ""))
    return shown
