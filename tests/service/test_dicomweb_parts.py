"""DICOMweb's parts: multipart bodies, media types, JSON, searches; where there are, by other libraries."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import AsyncIterator, Iterable
from email import message_from_bytes
from typing import Any

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.datadict import dictionary_VR, tag_for_keyword

from service.dicomweb import json_model
from service.dicomweb.json_model import COERCED, TAGS, SeriesEntry, Stowed, stow_answer
from service.dicomweb.media import DICOM, DICOM_JSON, OCTETS, Offer, chosen
from service.dicomweb.multipart import boundary_of, content_type_of, new_boundary, parts, written
from service.dicomweb.query import parse
from service.errors import ApiError
from storage.dicom_uids import UidMap
from storage.exports.dicom_identity import Identity
from storage.grid import VoxelGrid
from storage.records import Statistics, StoredVolume

BOUNDARY = b"edge"
NEW_UID = UidMap(bytes(32))


async def _pieces(content: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(content), size):
        yield content[start : start + size]


def read(content: bytes, size: int = 7, boundary: bytes = BOUNDARY) -> list[tuple[dict[str, str], bytes]]:
    """Heads and contents of a body that arrives in pieces of some bytes."""

    async def run() -> list[tuple[dict[str, str], bytes]]:
        return [
            (dict(part.headers), b"".join([piece async for piece in part.content]))
            async for part in parts(_pieces(content, size), boundary)
        ]

    return asyncio.run(run())


def body(*contents: bytes, boundary: bytes = BOUNDARY) -> bytes:
    head = {"Content-Type": "application/dicom"}
    return b"".join(written([(head, [content]) for content in contents], boundary))


CONTENTS = st.lists(
    st.one_of(
        st.binary(max_size=60),
        st.lists(st.sampled_from([b"\r\n", b"--", b"edge", b"-", b"\r", b"\n", b"x"]), max_size=12).map(
            b"".join
        ),
    ).filter(lambda content: b"\r\n--edge" not in b"\r\n" + content),
    max_size=5,
)


@settings(max_examples=150, deadline=None)
@given(contents=CONTENTS, size=st.integers(1, 40))
def test_what_was_written_is_read_however_it_is_cut(contents: list[bytes], size: int) -> None:
    found = read(body(*contents), size)
    assert [content for _, content in found] == (contents or [])
    assert all(head == {"content-type": "application/dicom"} for head, _ in found)


def test_what_was_written_is_read_by_the_standard_library() -> None:
    boundary, contents = new_boundary(), [b"one\r\ntwo", b"\x00\x01" * 100]
    head = f"Content-Type: {content_type_of(boundary, DICOM)}\r\n\r\n".encode()
    message = message_from_bytes(head + body(*contents, boundary=boundary))
    assert message.get_content_type() == "multipart/related"
    assert message.get_param("type") == DICOM
    assert [part.get_payload(decode=True) for part in message.get_payload()] == contents  # type: ignore[union-attr]
    assert boundary_of(message["Content-Type"]) == boundary


def test_what_dicomweb_client_sends_is_read() -> None:
    """Its parts have a head each, and its body ends without a line's end."""
    from dicomweb_client.web import DICOMwebClient

    encode = DICOMwebClient("http://127.0.0.1:1")._encode_multipart_message
    content = encode([b"first", b"second"], 'multipart/related; type="application/dicom"; boundary=edge')
    assert [data for _, data in read(content)] == [b"first", b"second"]
    ours = body(b"first", b"second")
    assert [data for _, data in read(ours)] == [b"first", b"second"]


def test_parts_that_are_not_read_are_passed_over() -> None:
    async def run() -> list[str]:
        return [part.media_type async for part in parts(_pieces(body(b"a" * 50, b"b"), 5), BOUNDARY)]

    assert asyncio.run(run()) == [DICOM, DICOM]


def test_words_before_and_after_are_ignored() -> None:
    content = b"preamble\r\n" + body(b"a").replace(b"--edge\r\n", b"--edge \t\r\n") + b"\r\nepilogue"
    assert [data for _, data in read(content)] == [b"a"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "breaks off"),
        (b"--edge", "breaks off"),
        (body(b"a")[:-3], "breaks off"),
        (body(b"a" * 99)[:60], "breaks off"),
        (b"no boundary at all", "breaks off"),
        (b"--edgeless\r\n\r\nx\r\n--edge--", "begins with the boundary"),
        (b"--edge\r\nno colon\r\n\r\nx\r\n--edge--", "without a colon"),
        (b"--edge\r\n" + b"a: b\r\n" * 40 + b"\r\nx\r\n--edge--", "more than 32 lines"),
        (b"--edge\r\na: " + b"b" * 9000 + b"\r\n\r\nx\r\n--edge--", "more than 4096 bytes"),
    ],
)
def test_bodies_that_are_none(content: bytes, told: str) -> None:
    with pytest.raises(ApiError, match=told) as caught:
        read(content)
    assert caught.value.code == "bad-request"


@pytest.mark.parametrize(
    ("content_type", "code"),
    [
        ("application/dicom", "unsupported-media-type"),
        ("", "unsupported-media-type"),
        ("multipart/form-data; boundary=x", "unsupported-media-type"),
        ('multipart/related; type="application/dicom"', "bad-request"),
        (f"multipart/related; boundary={'x' * 71}", "bad-request"),
        ('multipart/related; boundary=""', "bad-request"),
        ('multipart/related; boundary="a b "', "bad-request"),
    ],
)
def test_content_types_that_are_none(content_type: str, code: str) -> None:
    with pytest.raises(ApiError) as caught:
        boundary_of(content_type)
    assert caught.value.code == code


def test_a_large_part_is_never_in_memory() -> None:
    piece = bytes(1 << 16)

    async def sent() -> AsyncIterator[bytes]:
        yield b"--edge\r\n\r\n"
        for _ in range(512):
            yield piece
        yield b"\r\n--edge--"

    async def run() -> int:
        total = 0
        async for part in parts(sent(), BOUNDARY):
            async for data in part.content:
                total += len(data)
        return total

    tracemalloc.start()
    try:
        assert asyncio.run(run()) == 512 << 16
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


MULTIPART, SINGLE, JSON = Offer(DICOM, multipart=True), Offer(DICOM), Offer(DICOM_JSON)


@pytest.mark.parametrize(
    ("accept", "offers", "expected"),
    [
        (None, [MULTIPART, JSON], MULTIPART),
        ("*/*", [MULTIPART, JSON], MULTIPART),
        ("application/dicom+json", [MULTIPART, JSON], JSON),
        ('multipart/related; type="application/dicom"', [MULTIPART, JSON], MULTIPART),
        ('multipart/related; type="application/dicom"; transfer-syntax=*', [MULTIPART], MULTIPART),
        (
            "multipart/related; type=application/dicom;transfer-syntax=1.2.840.10008.1.2.1",
            [MULTIPART],
            MULTIPART,
        ),
        (
            'multipart/related; type="application/dicom"; transfer-syntax=1.2.840.10008.1.2.4.90',
            [MULTIPART],
            None,
        ),
        ('multipart/related; type="application/octet-stream"', [MULTIPART], None),
        ("multipart/related", [MULTIPART], MULTIPART),
        ("application/dicom", [MULTIPART, SINGLE], SINGLE),
        ("application/*", [MULTIPART, SINGLE], SINGLE),
        ("application/dicom;q=0.5, application/dicom+json", [SINGLE, JSON], JSON),
        ("application/dicom;q=0, */*;q=0.1", [JSON], JSON),
        ("application/dicom+json;q=nonsense", [JSON], None),
        ('multipart/related; type="a,b", application/dicom+json', [JSON], JSON),
        ("image/jpeg", [MULTIPART, JSON], None),
        ("application/octet-stream", [Offer(OCTETS)], Offer(OCTETS)),
    ],
)
def test_what_is_accepted(accept: str | None, offers: list[Offer], expected: Offer | None) -> None:
    assert chosen(accept, offers) == expected


def entry(study: str, series: str, planes: int = 3, **metadata: Any) -> SeriesEntry:
    grid = VoxelGrid((planes, 4, 5))
    facts = StoredVolume(
        grid,
        ("z", "y", "x"),
        grid.shape,
        "int16",
        1,
        "",
        Statistics(0, 1, 0, 1),
        0,
        "dicom",
        metadata=metadata,
    )
    return SeriesEntry(Identity(study, series, "2.25.9"), facts, "http://127.0.0.1/dicomweb/studies")


def test_tags_and_kinds_are_those_of_the_dictionary() -> None:
    for keyword, (tag, vr) in TAGS.items():
        assert tag_for_keyword(keyword) == int(tag, 16)
        assert dictionary_VR(int(tag, 16)) == vr


def test_pydicom_reads_the_json() -> None:
    ct, mr = entry("2.25.1", "2.25.2", Modality="CT"), entry("2.25.1", "2.25.3", 5, Modality="MR")
    study = pydicom.Dataset.from_json(json_model.study([ct, mr]))
    assert (study.StudyInstanceUID, list(study.ModalitiesInStudy)) == ("2.25.1", ["CT", "MR"])
    assert (study.NumberOfStudyRelatedSeries, study.NumberOfStudyRelatedInstances) == (2, 8)
    assert study.PatientName == study.PatientID == study.StudyDate == ""
    series = pydicom.Dataset.from_json(json_model.series(mr))
    assert (series.SeriesInstanceUID, series.NumberOfSeriesRelatedInstances) == ("2.25.3", 5)
    assert series.RetrieveURL == "http://127.0.0.1/dicomweb/studies/2.25.1/series/2.25.3"
    one = pydicom.Dataset.from_json(json_model.instance(mr, "1.2.840.10008.5.1.4.1.1.4", "2.25.7", 2))
    assert (one.SOPInstanceUID, one.InstanceNumber, one.Rows, one.Columns) == ("2.25.7", 2, 4, 5)
    assert list(json_model.series(mr)) == sorted(json_model.series(mr))


def test_the_answer_to_stow() -> None:
    good, bad = Stowed("1.2", "2.25.1", "http://x/1"), Stowed(None, None, failure=0xC000)
    status, answer = stow_answer("http://x", [good, bad, good])
    read_back = pydicom.Dataset.from_json(answer)
    assert status == 202
    assert [item.WarningReason for item in read_back.ReferencedSOPSequence] == [COERCED] * 2
    assert [item.FailureReason for item in read_back.FailedSOPSequence] == [0xC000]
    status, answer = stow_answer(None, [bad])
    assert (status, "ReferencedSOPSequence" in pydicom.Dataset.from_json(answer)) == (409, False)
    assert stow_answer("http://x", [good])[0] == 202


SENT = "1.2.826.0.1.3680043.8.498.1"


def found_by(*parameters: tuple[str, str]) -> bool:
    mine = entry(NEW_UID(SENT), "2.25.2", Modality="CT", BodyPartExamined="CHEST")
    query = parse(parameters)
    return query.matches(json_model.study([mine]), NEW_UID) and query.matches(
        json_model.series(mine), NEW_UID
    )


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ([], True),
        ([("StudyInstanceUID", SENT)], True),
        ([("0020000d", NEW_UID(SENT))], True),
        ([("StudyInstanceUID", f"1.2,{SENT}")], True),
        ([("StudyInstanceUID", f"1.2\\{SENT}")], True),
        ([("StudyInstanceUID", "1.2.3")], False),
        ([("Modality", "CT"), ("SeriesInstanceUID", "2.25.2")], True),
        ([("Modality", "M?")], False),
        ([("Modality", "C*")], True),
        ([("Modality", "[C]T")], False),
        ([("ModalitiesInStudy", "CT")], True),
        ([("PatientName", "")], True),
        ([("PatientName", "*")], True),
        ([("PatientName", "Qwandt*")], False),
        ([("SeriesDescription", "x")], False),
        ([("StudyDate", "20190307")], False),
        ([("includefield", "all"), ("fuzzymatching", "true")], True),
    ],
)
def test_what_matches(parameters: list[tuple[str, str]], expected: bool) -> None:
    assert found_by(*parameters) is expected


@pytest.mark.parametrize(
    "parameters",
    [
        [("Nonsense", "1")],
        [("99999999", "1")],
        [("limit", "-1")],
        [("limit", "ten")],
        [("offset", "1" * 12)],
        [("StudyInstanceUID", "1.2.x")],
        [("StudyInstanceUID", "1.2,,x")],
    ],
)
def test_searches_that_cannot_be(parameters: Iterable[tuple[str, str]]) -> None:
    with pytest.raises(ApiError) as caught:
        parse(parameters)
    assert caught.value.code == "invalid-request"
    assert caught.value.errors


def test_pages_and_keys_of_the_address() -> None:
    query = parse([("limit", "2"), ("offset", "1")]).with_keys(StudyInstanceUID="2.25.1")
    assert query.keys == {"StudyInstanceUID": ("2.25.1",)}
    assert query.page([{"a": {}}, {"b": {}}, {"c": {}}, {"d": {}}]) == [{"b": {}}, {"c": {}}]
    assert parse([("limit", "5000")]).limit == 1000
