"""DICOMweb (PS3.18): a project's volumes as studies, series and instances; STOW-RS, QIDO-RS and WADO-RS.

UIDs in addresses and searches may be the sender's or those that replaced them; answers have the latter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import APIRouter, Header, Request, Response
from fastapi import Path as FromPath
from starlette.concurrency import run_in_threadpool

from service.addresses import DICOMWEB
from service.deps import Known, Parts, needs
from service.dicomweb import sending
from service.dicomweb.archive import Archive, HeldSeries
from service.dicomweb.json_model import Stowed, stow_answer
from service.dicomweb.media import DICOM, DICOM_JSON, OCTETS
from service.dicomweb.multipart import RELATED
from service.dicomweb.query import parse
from service.dicomweb.receiving import Desk
from service.errors import ApiError
from service.schemas import PROBLEMS
from storage.access import Scope
from storage.dicom_collections import DicomCollections
from storage.dicom_series import SeriesIndex
from storage.dicom_uids import UidMap

router = APIRouter(
    prefix=DICOMWEB, tags=["dicomweb"], responses=PROBLEMS, dependencies=[needs(Scope.VOLUMES_READ)]
)

Uid = Annotated[
    str, FromPath(pattern=r"^[0-9]+(\.[0-9]+)*$", max_length=64, description="the sender's or ours")
]
Accept = Annotated[str | None, Header(alias="Accept", include_in_schema=False)]
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_BODY = {
    "requestBody": {
        "required": True,
        "description": f'`{RELATED}; type="{DICOM}"; boundary=...`: each part is one PS3.10 file.',
        "content": {RELATED: _BINARY},
    }
}
_COUNT = {"type": "integer", "minimum": 0, "maximum": 999_999_999}
_UIDS = {"type": "string", "pattern": r"^([0-9]+(\.[0-9]+)*(,[0-9]+(\.[0-9]+)*)*)?$"}
_KEYS = {
    "parameters": [
        {"name": name, "in": "query", "required": False, "schema": schema, "description": told}
        for name, schema, told in (
            ("limit", _COUNT, "at most so many results, 1000 at most (PS3.18 8.3.4.4)"),
            ("offset", _COUNT, "leave out so many"),
            ("StudyInstanceUID", _UIDS, "one or several UIDs, parted by commas"),
            ("SeriesInstanceUID", _UIDS, "one or several UIDs, parted by commas"),
            ("Modality", {"type": "string"}, "of a series; `*` and `?` are wildcards"),
            ("ModalitiesInStudy", {"type": "string"}, "of a study"),
        )
    ]
}


def _answers(*media_types: str, description: str) -> dict[int | str, dict[str, Any]]:
    return {200: {"content": {name: {} for name in media_types}, "description": description}}


_FOUND = _answers(DICOM_JSON, description="what was found, in the DICOM JSON model")
_FILES = _answers(RELATED, description="instances, uncompressed, each in a part")
_FILE = _answers(RELATED, DICOM, description="the instance, uncompressed")
_PIXELS = _answers(RELATED, OCTETS, description="pixels of 16 bits, little endian")
_STORED: Mapping[int | str, dict[str, Any]] = {
    code: {"content": {DICOM_JSON: {}}, "description": told}
    for code, told in (
        (202, "what was stored, with replaced UIDs, and what was not, with reasons"),
        (409, "nothing was stored: why, instance by instance"),
    )
}


def _archive(request: Request, parts: Parts, who: Known) -> Archive:
    new_uid = UidMap.of(parts.settings.data_root)
    index = SeriesIndex(parts.catalogue.database)
    return Archive(
        index, new_uid, lambda record: parts.shelf.take(record).volume, who.project_id, _address(request)
    )


def _address(request: Request) -> str:
    """Of all studies."""
    return f"{str(request.base_url).rstrip('/')}{DICOMWEB}/studies"


@router.post(
    "/studies",
    status_code=202,
    response_class=Response,
    responses={**_STORED},
    openapi_extra=_BODY,
    dependencies=[needs(Scope.VOLUMES_WRITE)],
)
async def store_instances(request: Request, parts: Parts, who: Known, accept: Accept = None) -> Response:
    """STOW-RS: send instances. Those of a series are collected, and become a volume when for
    `TOMOTRAIN_STOW_QUIET_S` no more come.
    """
    return await _store(request, parts, who, accept, None)


@router.post(
    "/studies/{study}",
    status_code=202,
    response_class=Response,
    responses={**_STORED},
    openapi_extra=_BODY,
    dependencies=[needs(Scope.VOLUMES_WRITE)],
)
async def store_instances_of_study(
    request: Request, parts: Parts, who: Known, study: Uid, accept: Accept = None
) -> Response:
    """STOW-RS: send instances of one study; those of another are refused."""
    return await _store(request, parts, who, accept, study)


async def _store(
    request: Request, parts: Parts, who: Known, accept: str | None, study: str | None
) -> Response:
    sending.document_type(accept)  # before the body comes
    settings = parts.settings
    desk = Desk(
        parts.uploads,
        DicomCollections(parts.catalogue.database, settings.data_root, settings.stow_quiet_s),
        await run_in_threadpool(UidMap.of, settings.data_root),
        who.sender(request),
        _address(request),
        study,
    )
    items = await desk.take_in(request)
    study_url = _one_study(items)
    if study_url is not None:
        request.state.subject = urlsplit(study_url).path
    status, told = stow_answer(study_url, items)
    return sending.document(told, DICOM_JSON, status)


def _one_study(items: list[Stowed]) -> str | None:
    """Where the study is of which all stored instances are."""
    urls = {item.url.partition("/series/")[0] for item in items if item.url and item.failure is None}
    return urls.pop() if len(urls) == 1 else None


@router.get("/studies", response_class=Response, responses=_FOUND, openapi_extra=_KEYS)
def search_studies(request: Request, parts: Parts, who: Known, accept: Accept = None) -> Response:
    """QIDO-RS: studies, newest volumes first. A volume that did not come as DICOM is a study too."""
    media_type, query = sending.document_type(accept), parse(request.query_params.multi_items())
    return sending.document(_archive(request, parts, who).search_studies(query), media_type)


@router.get("/series", response_class=Response, responses=_FOUND, openapi_extra=_KEYS)
def search_series(request: Request, parts: Parts, who: Known, accept: Accept = None) -> Response:
    """QIDO-RS: series of all studies."""
    media_type, query = sending.document_type(accept), parse(request.query_params.multi_items())
    return sending.document(_archive(request, parts, who).search_series(query), media_type)


@router.get("/studies/{study}/series", response_class=Response, responses=_FOUND, openapi_extra=_KEYS)
def search_series_of_study(
    request: Request, parts: Parts, who: Known, study: Uid, accept: Accept = None
) -> Response:
    """QIDO-RS: the series of a study."""
    media_type, query = sending.document_type(accept), parse(request.query_params.multi_items())
    found = _archive(request, parts, who).search_series(query.with_keys(StudyInstanceUID=study))
    return sending.document(found, media_type)


@router.get("/studies/{study}/instances", response_class=Response, responses=_FOUND, openapi_extra=_KEYS)
def search_instances_of_study(
    request: Request, parts: Parts, who: Known, study: Uid, accept: Accept = None
) -> Response:
    """QIDO-RS: the instances of a study."""
    media_type, query = sending.document_type(accept), parse(request.query_params.multi_items())
    archive = _archive(request, parts, who)
    return sending.document(archive.search_instances(query, archive.study(study)), media_type)


@router.get(
    "/studies/{study}/series/{series}/instances",
    response_class=Response,
    responses=_FOUND,
    openapi_extra=_KEYS,
)
def search_instances_of_series(
    request: Request, parts: Parts, who: Known, study: Uid, series: Uid, accept: Accept = None
) -> Response:
    """QIDO-RS: the instances of a series."""
    media_type, query = sending.document_type(accept), parse(request.query_params.multi_items())
    archive = _archive(request, parts, who)
    found = archive.search_instances(query, [archive.one_series(study, series)])
    return sending.document(found, media_type)


@router.get("/studies/{study}", response_class=Response, responses=_FILES)
def retrieve_study(request: Request, parts: Parts, who: Known, study: Uid, accept: Accept = None) -> Response:
    """WADO-RS: all instances of a study."""
    held = _archive(request, parts, who).study(study)
    _note(request, held[0])
    return sending.files((content for series in held for content in series.contents()), accept)


@router.get("/studies/{study}/series/{series}", response_class=Response, responses=_FILES)
def retrieve_series(
    request: Request, parts: Parts, who: Known, study: Uid, series: Uid, accept: Accept = None
) -> Response:
    """WADO-RS: all instances of a series."""
    held = _archive(request, parts, who).one_series(study, series)
    _note(request, held)
    return sending.files(held.contents(), accept)


@router.get("/studies/{study}/series/{series}/instances/{instance}", response_class=Response, responses=_FILE)
def retrieve_instance(
    request: Request, parts: Parts, who: Known, study: Uid, series: Uid, instance: Uid, accept: Accept = None
) -> Response:
    """WADO-RS: one instance, in a part, or by itself where `Accept: application/dicom` asks for that."""
    archive = _archive(request, parts, who)
    found = archive.instance(study, series, instance)
    request.state.subject = urlsplit(found.entry.study_url).path
    return sending.one_file(found, accept)


@router.get(
    "/studies/{study}/series/{series}/instances/{instance}/frames/{frame}",
    response_class=Response,
    responses=_PIXELS,
)
def retrieve_frame(
    request: Request,
    parts: Parts,
    who: Known,
    study: Uid,
    series: Uid,
    instance: Uid,
    frame: Annotated[int, FromPath(ge=1, description="instances have one frame: 1")],
    accept: Accept = None,
) -> Response:
    """WADO-RS: the pixels of an instance."""
    found = _archive(request, parts, who).instance(study, series, instance)
    if frame != 1:
        raise ApiError("not-found", "the instance has one frame, 1")
    request.state.subject = urlsplit(found.entry.study_url).path
    return sending.one_frame(found, accept)


@router.get("/studies/{study}/metadata", response_class=Response, responses=_FOUND)
def retrieve_study_metadata(
    request: Request, parts: Parts, who: Known, study: Uid, accept: Accept = None
) -> Response:
    """WADO-RS: the headers of a study's instances."""
    return sending.metadata(_archive(request, parts, who).study(study), accept)


@router.get("/studies/{study}/series/{series}/metadata", response_class=Response, responses=_FOUND)
def retrieve_series_metadata(
    request: Request, parts: Parts, who: Known, study: Uid, series: Uid, accept: Accept = None
) -> Response:
    """WADO-RS: the headers of a series' instances."""
    return sending.metadata([_archive(request, parts, who).one_series(study, series)], accept)


@router.get(
    "/studies/{study}/series/{series}/instances/{instance}/metadata",
    response_class=Response,
    responses=_FOUND,
)
def retrieve_instance_metadata(
    request: Request, parts: Parts, who: Known, study: Uid, series: Uid, instance: Uid, accept: Accept = None
) -> Response:
    """WADO-RS: the header of an instance."""
    return sending.metadata_of([_archive(request, parts, who).instance(study, series, instance)], accept)


def _note(request: Request, series: HeldSeries) -> None:
    """Let the audit log have the study by its replaced UID."""
    request.state.subject = urlsplit(series.entries[0].study_url).path
