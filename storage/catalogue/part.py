"""What every part of the catalogue has: the database."""

from __future__ import annotations

from storage.database import Database


class Part:
    """Some of the catalogue's methods, on one database."""

    def __init__(self, database: Database) -> None:
        self._database = database
