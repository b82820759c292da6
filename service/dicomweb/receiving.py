"""STOW-RS (PS3.18 10.5): the instances of a request's body, written to disk as they come, and collected.

Nothing of a request counts before all of its body has arrived: one that breaks off leaves nothing.
"""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from service.dicomweb.json_model import (
    DUPLICATE,
    MISMATCH,
    NO_ROOM,
    NOT_UNDERSTOOD,
    PROCESSING,
    WRONG_CLASS,
    Stowed,
)
from service.dicomweb.media import DICOM
from service.dicomweb.multipart import Part, boundary_of, parts
from service.errors import ApiError
from service.intake import Patience, announced_size, pieces
from service.uploading import Uploads
from storage.dicom_collections import DicomCollections, SeriesOfStudy
from storage.dicom_uids import NewUid
from storage.errors import EmptyUpload, QuotaExceeded, ScanError, ScanTooLarge, UnsupportedScan
from storage.ids import new_id
from storage.jobs import Sender
from storage.readers.base import Limits
from storage.readers.dicom_instance import PREAMBLE_BYTES, is_dicom
from storage.readers.dicom_sent import SentInstance, sent_instance
from storage.records import Received
from storage.tidy import upload_path
from storage.uploads import Upload


@dataclass(frozen=True)
class Arrived:
    """One part of a body: the instance and its file, or the reason for which it is refused."""

    instance: SentInstance | None = None
    received: Received | None = None
    failure: int | None = None


@dataclass
class Desk:
    """Takes in the instances of one request. `study` is the one that its address names, if any."""

    uploads: Uploads
    collections: DicomCollections
    new_uid: NewUid
    sender: Sender
    address: str
    study: str | None = None
    _folder: Path = field(init=False)
    _bytes: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        """Choose where the parts lie until all have come: swept after a day if this process dies."""
        self._folder = upload_path(self.uploads.root, new_id("vol"))

    async def take_in(self, request: Request) -> list[Stowed]:
        """What became of the instances of the body, in their order.

        Raises ApiError for a body that is none or breaks off; ScanTooLarge, StorageLow, StorageFull or
        QuotaExceeded where it has no room.
        """
        boundary = boundary_of(request.headers.get("content-type", ""))
        await run_in_threadpool(
            self.uploads.require_room, self.sender.project_id, announced_size(request.headers)
        )
        body = pieces(request, Patience(self.uploads.idle_s))
        try:
            arrived = [each async for each in self._each(body, boundary)]
            if not arrived:
                raise ApiError("bad-request", f"the body has no part; send instances, each as {DICOM}")
            return await run_in_threadpool(self._kept, arrived)
        finally:
            await run_in_threadpool(shutil.rmtree, self._folder, ignore_errors=True)

    async def _each(self, body: AsyncIterator[bytes], boundary: bytes) -> AsyncIterator[Arrived]:
        place = 0
        async for part in parts(body, boundary):
            place += 1
            if part.media_type != DICOM:
                yield Arrived(failure=NOT_UNDERSTOOD)
                continue
            received = await self._written(part, str(place))
            if received is None:
                yield Arrived(failure=NOT_UNDERSTOOD)
            else:
                yield await run_in_threadpool(self._looked_at, received)

    async def _written(self, part: Part, name: str) -> Received | None:
        """A part as a file; None for an empty one."""
        left = self.uploads.most_bytes - self._bytes
        upload = await run_in_threadpool(Upload, self._folder, name, left, self.uploads.watermark.require)
        try:
            async for piece in part.content:
                await run_in_threadpool(upload.write, piece)
            received = await run_in_threadpool(upload.finish)
        except EmptyUpload:
            upload.abort()
            return None
        except ScanTooLarge:
            upload.abort()
            most = self.uploads.most_bytes
            raise ScanTooLarge("body, whose instances together", most + 1, most) from None
        except BaseException:
            upload.abort()
            raise
        self._bytes += received.size
        return received

    def _looked_at(self, received: Received) -> Arrived:
        """What a file is, by its header alone."""
        with received.path.open("rb") as file:
            if not is_dicom(file.read(PREAMBLE_BYTES + 4)):
                return _refused(received, NOT_UNDERSTOOD)
        try:
            instance = sent_instance(received.path, self.new_uid, Limits())
        except UnsupportedScan:
            return _refused(received, WRONG_CLASS)
        except ScanError:
            return _refused(received, NOT_UNDERSTOOD)
        if self.study is not None and instance.study not in (self.study, self.new_uid(self.study)):
            return _refused(received, MISMATCH, instance)
        return Arrived(instance, received)

    def _kept(self, arrived: list[Arrived]) -> list[Stowed]:
        """Collect what was understood, series by series."""
        series: dict[SeriesOfStudy, dict[str, Received]] = {}
        failures: dict[int, int] = {}
        for place, each in enumerate(arrived):
            if each.instance is None or each.received is None or each.failure is not None:
                failures[place] = each.failure or PROCESSING
                continue
            group = series.setdefault(SeriesOfStudy(each.instance.study, each.instance.series), {})
            first = group.setdefault(each.instance.uid, each.received)
            if first.sha256 != each.received.sha256:
                failures[place] = DUPLICATE
        refused = {which: self._collected(which, instances) for which, instances in series.items()}
        return [self._told(each, failures.get(place), refused) for place, each in enumerate(arrived)]

    def _collected(self, which: SeriesOfStudy, instances: dict[str, Received]) -> dict[str, int]:
        """Which instances of a series are refused, and why."""
        try:
            differing = self.collections.add(self.sender, which, instances)
        except QuotaExceeded:
            return dict.fromkeys(instances, NO_ROOM)
        return dict.fromkeys(differing, DUPLICATE)

    def _told(
        self, each: Arrived, failure: int | None, refused: dict[SeriesOfStudy, dict[str, int]]
    ) -> Stowed:
        instance = each.instance
        if instance is None:
            return Stowed(None, None, failure=failure)
        which = SeriesOfStudy(instance.study, instance.series)
        failure = failure or refused.get(which, {}).get(instance.uid)
        url = f"{self.address}/{instance.study}/series/{instance.series}/instances/{instance.uid}"
        return Stowed(instance.sop_class or None, instance.uid, url, failure)


def _refused(received: Received, failure: int, instance: SentInstance | None = None) -> Arrived:
    """Let go of a part that is refused."""
    received.path.unlink(missing_ok=True)
    return Arrived(instance, None, failure)
