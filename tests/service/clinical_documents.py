"""Structured reports of predictions, written and read."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import highdicom as hd
import pydicom
from clinical_cases import report_with

from service.clinical.structured_report import document
from storage.exports.dicom import DicomSeries
from storage.volume import Volume


def written(result: dict[str, Any], volume: Volume | None) -> bytes:
    """The file; of no volume where that is gone."""
    if volume is None:
        return document(report_with(result, None), None)
    return document(report_with(result, volume.stored), DicomSeries(volume))


def read(result: dict[str, Any], volume: Volume | None) -> hd.sr.ComprehensiveSR:
    """The document as highdicom reads it from a file."""
    found = hd.sr.srread(io.BytesIO(written(result, volume)))
    assert isinstance(found, hd.sr.ComprehensiveSR)
    return found


def items(dataset: pydicom.Dataset) -> Iterator[pydicom.Dataset]:
    """All content items below one."""
    for item in dataset.get("ContentSequence", []):
        yield item
        yield from items(item)


def named(dataset: pydicom.Dataset, meaning: str) -> list[pydicom.Dataset]:
    """The content items below one that have this name."""
    return [item for item in items(dataset) if item.ConceptNameCodeSequence[0].CodeMeaning == meaning]
