"""What a client remembers of uploads that have not ended, so that its next process goes on with them.

One small file each in the user's cache folder (`XDG_CACHE_HOME`, else `~/.cache`), which names the upload's
address and nothing of the scan. Where none can be written, nothing is remembered.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from pathlib import Path

FORGOTTEN_S = 7 * 86_400.0


class Remembered:
    """The address of the upload of certain bytes to a service."""

    def __init__(self, url: str, sha256: str, name: str | None) -> None:
        told = "\0".join((url, sha256, name or ""))
        self._path = _folder() / hashlib.sha256(told.encode()).hexdigest()[:32]

    def read(self) -> str | None:
        """The address, where there is one."""
        try:
            return self._path.read_text().strip() or None
        except OSError:
            return None

    def write(self, address: str) -> None:
        """Remember an address; forget those of long ago."""
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            for other in self._path.parent.iterdir():
                if time.time() - other.stat().st_mtime > FORGOTTEN_S:
                    other.unlink()
            self._path.write_text(address)

    def forget(self) -> None:
        """The upload has ended."""
        with contextlib.suppress(OSError):
            self._path.unlink()


def _folder() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "tomotrain" / "uploads"
