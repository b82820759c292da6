"""How full the disk may become: new bytes are refused while there is room left for what runs already."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from storage.upload_errors import StorageLow

KEPT_SHARE = 0.05
KEPT_BYTES = 2 << 30


@dataclass(frozen=True)
class Watermark:
    """So much of the disk below `root` is kept free: a share of it, or so many bytes if that is more."""

    root: Path
    share: float = KEPT_SHARE
    least_bytes: int = KEPT_BYTES

    def require(self, wanted: int, promised: int = 0) -> None:
        """Raise StorageLow where `wanted` more bytes, beside those promised to others, would not leave it."""
        usage = shutil.disk_usage(self.root)
        kept = max(int(self.share * usage.total), self.least_bytes)
        if usage.free - promised - wanted < kept:
            raise StorageLow(wanted, max(usage.free - promised, 0), kept)
