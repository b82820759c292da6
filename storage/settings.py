"""Where things are kept. Read from the environment (`TOMOTRAIN_*`) by each process's own settings class."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from urllib.parse import quote

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from storage.log_lines import LogFormat

SUN_PATH_BYTES = 100


class StorageSettings(BaseSettings):
    """The data root and the addresses of the catalogue and the broker; base of every process's settings."""

    model_config = SettingsConfigDict(env_prefix="TOMOTRAIN_", extra="ignore", frozen=True)

    data_root: Path = Field(Path("var"), description="folder that holds volumes, artifacts and the catalogue")
    db_url: str | None = Field(
        None, description="SQLAlchemy URL of the catalogue; unset: SQLite in the data root"
    )
    broker_url: str | None = Field(
        None, description="Redis-protocol URL of the broker; unset: the embedded one in the data root"
    )

    log_format: LogFormat = Field("text", description="lines of the log: text, or json")

    @property
    def catalogue_url(self) -> str:
        """The catalogue's SQLAlchemy URL."""
        return self.db_url or f"sqlite:///{self.data_root.absolute() / 'catalogue.db'}"

    @property
    def broker(self) -> str:
        """The broker's URL; by default the embedded server's unix socket."""
        return self.broker_url or f"redis+socket://{quote(str(self.broker_socket))}"

    @property
    def broker_socket(self) -> Path:
        """Where the embedded broker listens: in the data root, or in the system's temporary folder.

        The latter where the path would be too long: a unix socket's address holds 104 bytes or more
        (`sun_path`; 104 on macOS, 108 on Linux), with the closing zero.
        """
        path = self.data_root.absolute() / "run" / "broker.sock"
        if len(os.fsencode(path)) < SUN_PATH_BYTES:
            return path
        name = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"tomotrain-{os.getuid()}-{name}" / "broker.sock"
