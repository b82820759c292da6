"""An OME-Zarr store as one zip, as OME-NGFF's RFC-9 has it: nothing deflated, metadata first, and a comment
that says so; and other files likewise. Written forwards, an entry at a time: what has been handed out is not
changed any more.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping
from zipfile import ZIP_STORED, ZipFile, ZipInfo

COMMENT = {"ome": {"version": "0.5", "zipFile": {"centralDirectory": {"jsonFirst": True}}}}


def zip_pieces(
    entries: Iterable[tuple[str, bytes]], comment: Mapping[str, object] | None = COMMENT
) -> Iterator[bytes]:
    """The bytes of a zip of names and contents, in the order in which they come. The same entries make the
    same bytes: there are no times in them. `comment` is the archive's own.
    """
    end = _End()
    with ZipFile(end, "w", ZIP_STORED) as archive:
        archive.comment = json.dumps(comment).encode() if comment else b""
        for name, content in entries:
            archive.writestr(ZipInfo(name), content)
            yield end.taken()
    yield end.taken()


def metadata_first(key: str) -> tuple[bool, int, str]:
    """Sorts a store's keys: `zarr.json`, those of its nodes from the top, then all else."""
    return not key.endswith("zarr.json"), key.count("/") if key.endswith("zarr.json") else 0, key


class _End(io.BytesIO):
    """The end of a file that is being written."""

    def __init__(self) -> None:
        super().__init__()
        self._before = 0

    def taken(self) -> bytes:
        """What has been written since the last time."""
        content = self.getvalue()
        self._before += len(content)
        super().seek(0)
        self.truncate()
        return content

    def tell(self) -> int:
        """The place in the whole file."""
        return self._before + super().tell()

    def seek(self, place: int, whence: int = io.SEEK_SET, /) -> int:
        """To a place in the whole file, from where on nothing was taken yet."""
        assert whence == io.SEEK_SET
        return self._before + super().seek(place - self._before)
