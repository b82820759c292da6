"""The first API key of a new service: made once, and kept where only the data root's owner can read it."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from service.settings import ServiceSettings
from storage.access import Access

log = logging.getLogger("tomotrain.service")

NAME = "first key"


def key_path(data_root: Path) -> Path:
    """Where the first key of a data root is kept."""
    return data_root / "run" / "key"


def keep_first_key(settings: ServiceSettings, access: Access) -> None:
    """Where a catalogue has no key: make one for everything, keep it in the data root, and say so."""
    made = access.first_key(NAME)
    if made is None:
        return
    path = key_path(settings.data_root)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:  # noqa: PTH123
        file.write(made.secret)
    log.warning("the first API key is in %s; `tomotrain keys create` makes others", path)


def kept_key(data_root: Path) -> str | None:
    """The first key, where it is still kept; None elsewhere."""
    try:
        return key_path(data_root).read_text().strip() or None
    except OSError:
        return None
