"""A project's volumes as an archive of studies, series and instances.

Of instances that several volumes of a series hold, as of one sent twice, the newest volume's is the one.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from service.dicomweb import json_model
from service.dicomweb.json_model import TAGS, Attributes, SeriesEntry
from service.dicomweb.query import Query
from service.errors import ApiError
from storage.dicom_series import SeriesIndex
from storage.dicom_uids import NewUid
from storage.exports.dicom import DicomSeries
from storage.exports.dicom_identity import Identity
from storage.exports.slabs import slab_depth
from storage.records import VolumeRecord
from storage.volume import Volume

SLAB_BYTES = 32 << 20
"""So much of a volume is in memory while its instances are sent."""
PAGE = 100
BY_INDEX = frozenset({"StudyInstanceUID", "SeriesInstanceUID"})
"""Keys of which the index tells at once which studies match."""
Opener = Callable[[VolumeRecord], Volume]


@dataclass(frozen=True)
class HeldInstance:
    """One instance, of a plane of a frame of a volume; `number` counts from 1 within the volume."""

    entry: SeriesEntry
    series: DicomSeries
    uid: str
    plane: int
    frame: int

    @property
    def number(self) -> int:
        """Its Instance Number."""
        return self.frame * self.series.planes + self.plane + 1

    def attributes(self) -> Attributes:
        """As a search tells of it."""
        return json_model.instance(self.entry, self.series.sop_class, self.uid, self.number)

    def content(self) -> bytes:
        """As a PS3.10 file. Raises CorruptVolume."""
        return self.series.instance(self.plane, self.frame)

    def header(self) -> Attributes:
        """All but its pixels. Raises CorruptVolume."""
        found: Attributes = self.series.header(self.plane, self.frame).to_json_dict()
        return found

    def pixels(self) -> bytes:
        """Those of its only frame, 16 bits each, little endian. Raises CorruptVolume."""
        from pydicom import dcmread  # noqa: PLC0415 - slow to import

        found: bytes = dcmread(io.BytesIO(self.content())).PixelData
        return found


@dataclass(frozen=True)
class HeldSeries:
    """One series: the volumes that hold it, newest first, and what is known of each."""

    volumes: tuple[VolumeRecord, ...]
    entries: tuple[SeriesEntry, ...]
    opened: Opener

    def attributes(self) -> Attributes:
        """As a search tells of it."""
        found = json_model.series(self.entries[0])
        count, _ = TAGS["NumberOfSeriesRelatedInstances"]
        found[count]["Value"] = [self.count()]
        return found

    def count(self) -> int:
        """How many instances it has."""
        if len(self.entries) == 1:
            return self.entries[0].instances
        return sum(1 for _ in self.instances())

    def instances(self) -> Iterator[HeldInstance]:
        """All, each once. Raises CorruptVolume."""
        seen: set[str] = set()
        for entry, series in self._opened():
            for frame in range(series.frames):
                for plane in range(series.planes):
                    uid = series.instance_uid(plane, frame)
                    if uid not in seen:
                        seen.add(uid)
                        yield HeldInstance(entry, series, uid, plane, frame)

    def contents(self) -> Iterator[bytes]:
        """The PS3.10 files of all, some planes of one in memory at a time. Raises CorruptVolume."""
        seen: set[str] = set()
        for _, series in self._opened():
            depth = slab_depth(series.volume, SLAB_BYTES)
            for place, (_, content) in enumerate(series.instances(depth)):
                uid = series.instance_uid(place % series.planes, place // series.planes)
                if uid not in seen:
                    seen.add(uid)
                    yield content

    def _opened(self) -> Iterator[tuple[SeriesEntry, DicomSeries]]:
        for entry, record in zip(self.entries, self.volumes, strict=True):
            yield entry, DicomSeries(self.opened(record))


class Archive:
    """What a project has. `address` is that of all its studies; UIDs may be the sender's, or the replaced
    ones.
    """

    def __init__(
        self, index: SeriesIndex, new_uid: NewUid, opened: Opener, project_id: str, address: str
    ) -> None:
        self._index, self._new_uid, self._opened = index, new_uid, opened
        self._project_id, self._address = project_id, address

    def study(self, study: str) -> list[HeldSeries]:
        """The series of a study. Raises ApiError `not-found`."""
        found = self._series(self._either([study]))
        if not found:
            raise ApiError("not-found", "there is no such study here: search by GET /dicomweb/studies")
        return found

    def one_series(self, study: str, series: str) -> HeldSeries:
        """One series of a study. Raises ApiError `not-found`."""
        found = self._series(self._either([study]), self._either([series]))
        if not found:
            raise ApiError("not-found", "there is no such series in a study of this UID")
        return found[0]

    def instance(self, study: str, series: str, uid: str) -> HeldInstance:
        """One instance of a series. Raises ApiError `not-found`."""
        wanted = self._either([uid])
        for instance in self.one_series(study, series).instances():
            if instance.uid in wanted:
                return instance
        raise ApiError("not-found", "there is no such instance in the series of this UID")

    def search_studies(self, query: Query) -> list[Attributes]:
        """The studies that match, those with the newest volumes first."""
        uids = self._matching(query)
        if query.keys.keys() <= BY_INDEX:
            uids = uids[query.offset : query.offset + query.limit]
            return [_study(each) for each in self._read(uids)]
        return self._page(query, map(_study, self._read(uids)))

    def search_series(self, query: Query) -> list[Attributes]:
        """The series that match, study by study."""
        series = (each for study in self._read(self._matching(query)) for each in study)
        return self._page(query, (each.attributes() for each in series))

    def search_instances(self, query: Query, among: Sequence[HeldSeries]) -> list[Attributes]:
        """The instances of some series that match."""
        instances = (each for series in among for each in series.instances())
        return self._page(query, (each.attributes() for each in instances))

    def _page(self, query: Query, found: Iterator[Attributes]) -> list[Attributes]:
        """Those of all that match which are asked for; looks no further than that."""
        matching: list[Attributes] = []
        for each in found:
            if len(matching) >= query.offset + query.limit:
                break
            if query.matches(each, self._new_uid):
                matching.append(each)
        return list(query.page(matching))

    def _matching(self, query: Query) -> list[str]:
        """The studies that those of the query's keys leave which the index knows."""
        if query.asks_for_what_is_never_kept():
            return []
        return self._index.studies(
            self._project_id,
            studies=self._asked(query, "StudyInstanceUID"),
            series=self._asked(query, "SeriesInstanceUID"),
            modality=query.exactly("Modality") or query.exactly("ModalitiesInStudy"),
        )

    def _read(self, uids: Sequence[str]) -> Iterator[list[HeldSeries]]:
        """These studies in this order, some read at a time."""
        for start in range(0, len(uids), PAGE):
            by_study: dict[str, list[HeldSeries]] = {uid: [] for uid in uids[start : start + PAGE]}
            for each in self._series(list(by_study)):
                by_study[each.entries[0].identity.study].append(each)
            yield from filter(None, by_study.values())

    def _asked(self, query: Query, keyword: str) -> set[str] | None:
        """The UIDs that a query names, and what replaces them; None where it names none."""
        wanted = [uid for uid in query.keys.get(keyword, ()) if uid]
        return self._either(wanted) if wanted else None

    def _either(self, uids: Sequence[str]) -> set[str]:
        return {*uids, *map(self._new_uid, uids)}

    def _series(self, studies: Sequence[str] | set[str], series: set[str] | None = None) -> list[HeldSeries]:
        grouped: dict[tuple[str, str], list[tuple[VolumeRecord, SeriesEntry]]] = {}
        for record in self._index.volumes(self._project_id, studies, series):
            assert record.stored is not None
            identity = Identity.of(record.stored)
            entry = SeriesEntry(identity, record.stored, self._address)
            grouped.setdefault((identity.study, identity.series), []).append((record, entry))
        return [
            HeldSeries(tuple(record for record, _ in held), tuple(entry for _, entry in held), self._opened)
            for held in grouped.values()
        ]


def _study(series: Sequence[HeldSeries]) -> Attributes:
    """As a search tells of it."""
    found = json_model.study([each.entries[0] for each in series])
    count, _ = TAGS["NumberOfStudyRelatedInstances"]
    found[count]["Value"] = [sum(each.count() for each in series)]
    return found
