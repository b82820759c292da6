"""WADO-RS (PS3.18 10.4): instances, their metadata and their pixels, sent piece by piece.

The first piece is made before the answer begins: what fails there is told as a problem.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

from fastapi import Response
from fastapi.responses import StreamingResponse

from service.dicomweb.archive import HeldInstance, HeldSeries
from service.dicomweb.json_model import Attributes
from service.dicomweb.media import DICOM, DICOM_JSON, OCTETS, Offer, chosen
from service.dicomweb.multipart import content_type_of, new_boundary, written
from service.errors import ApiError

JSON = "application/json"
_DOCUMENTS = (Offer(DICOM_JSON), Offer(JSON))
_FILES = (Offer(DICOM, multipart=True), Offer(DICOM))
_PIXELS = (Offer(OCTETS, multipart=True), Offer(OCTETS))
_KEPT = {"Cache-Control": "private, no-cache", "Vary": "Accept"}


def document_type(accept: str | None) -> str:
    """Of what is told in the DICOM JSON model. Raises ApiError `not-acceptable`."""
    return _chosen(accept, _DOCUMENTS).media_type


def document(content: Attributes | Sequence[Attributes], media_type: str, status: int = 200) -> Response:
    """An answer in the DICOM JSON model."""
    body = json.dumps(content, allow_nan=False, separators=(",", ":"))
    return Response(body, status, _KEPT, media_type)


def files(contents: Iterable[bytes], accept: str | None) -> Response:
    """Instances, in parts. Raises ApiError `not-acceptable`, and as `contents` does."""
    return _in_parts(contents, _chosen(accept, _FILES[:1]).media_type)


def one_file(instance: HeldInstance, accept: str | None) -> Response:
    """One instance, by itself where that is asked for. Raises as `files`."""
    return _one(_chosen(accept, _FILES), instance.content())


def one_frame(instance: HeldInstance, accept: str | None) -> Response:
    """The pixels of an instance, uncompressed, little endian. Raises as `files`."""
    offer = _chosen(accept, _PIXELS)
    return _one(offer, instance.pixels())


def metadata(series: Iterable[HeldSeries], accept: str | None) -> Response:
    """The headers of all instances, one array. Raises as `files`."""
    return metadata_of((each for held in series for each in held.instances()), accept)


def metadata_of(instances: Iterable[HeldInstance], accept: str | None) -> Response:
    """The headers of some instances, one array. Raises as `files`."""
    media_type = document_type(accept)
    texts = (_header(each) for each in instances)
    return StreamingResponse(_begun(_array(texts)), 200, _KEPT, media_type)


def _chosen(accept: str | None, offers: Sequence[Offer]) -> Offer:
    offer = chosen(accept, offers)
    if offer is None:
        told = " or ".join(_told(each) for each in offers)
        raise ApiError("not-acceptable", f"this is there as {told}, uncompressed; accept that")
    return offer


def _told(offer: Offer) -> str:
    return f'multipart/related; type="{offer.media_type}"' if offer.multipart else offer.media_type


def _one(offer: Offer, content: bytes) -> Response:
    if offer.multipart:
        return _in_parts([content], offer.media_type)
    return Response(content, 200, _KEPT, offer.media_type)


def _in_parts(contents: Iterable[bytes], media_type: str) -> Response:
    boundary = new_boundary()
    head = {"Content-Type": media_type}
    body = written(((head, [content]) for content in contents), boundary)
    return StreamingResponse(_begun(body), 200, _KEPT, content_type_of(boundary, media_type))


def _begun(pieces: Iterator[Any]) -> Iterator[Any]:
    """The same, of which the first has been made."""
    first = next(pieces)
    return chain([first], pieces)


def _array(texts: Iterable[str]) -> Iterator[str]:
    opening = "["
    for text in texts:
        yield opening + text
        opening = ","
    yield "]" if opening == "," else "[]"


def _header(instance: HeldInstance) -> str:
    return json.dumps(instance.header(), allow_nan=False, separators=(",", ":"))
