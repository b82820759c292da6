"""What is kept of a DICOM header: an allow-list, as PS3.15 Annex E has it of what may stay.

Technique and geometry only: no names, dates, numbers of patients, places or devices, no free text, nothing
private and nothing nested. An attribute is kept where its value is of the kind that it should have (PS3.6):
whoever writes a name where a number belongs, has it dropped.
"""

from __future__ import annotations

import math
import re
from typing import Any

NUMBERS = (
    "MagneticFieldStrength", "RepetitionTime", "EchoTime", "InversionTime", "FlipAngle", "TemporalResolution",
    "NumberOfTemporalPositions", "SliceThickness", "SpacingBetweenSlices", "PixelSpacing",
    "ImagerPixelSpacing", "GantryDetectorTilt", "KVP", "XRayTubeCurrent", "Exposure",
    "ReconstructionDiameter", "BitsStored",
)  # fmt: skip
CODES = (
    "Modality", "ScanningSequence", "SequenceVariant", "MRAcquisitionType", "BodyPartExamined",
    "PatientPosition", "PhotometricInterpretation", "Units", "RescaleType", "BurnedInAnnotation",
    "RecognizableVisualFeatures",
)  # fmt: skip
"""Code strings (PS3.5 6.2, CS), or what is used like them."""
PRODUCTS = ("Manufacturer", "ManufacturerModelName", "ConvolutionKernel")
"""What a maker calls its goods."""
CODE = re.compile(r"[A-Za-z0-9_ ]{1,16}")
PRODUCT = re.compile(r"[^\x00-\x1f\x7f^]{1,64}")
"""No caret: it parts the components of a person's name (PS3.5 6.2, PN)."""


def kept_metadata(dataset: Any) -> dict[str, Any]:
    """The attributes of the allow-list that the data set has, as JSON values, without its UIDs."""
    kept = {keyword: _each(_number, dataset.get(keyword)) for keyword in NUMBERS}
    kept |= {keyword: _each(_matching(CODE), dataset.get(keyword)) for keyword in CODES}
    kept |= {keyword: _each(_matching(PRODUCT), dataset.get(keyword)) for keyword in PRODUCTS}
    return {keyword: value for keyword, value in kept.items() if value not in (None, [])}


def modality(dataset: Any) -> str:
    """The modality's code, `unknown` where there is none."""
    return _matching(CODE)(dataset.get("Modality")) or "unknown"


def _each(of_one: Any, value: Any) -> Any:
    """One value, or a list of them; None where one is not as it should be."""
    if isinstance(value, str | bytes) or not hasattr(value, "__iter__"):
        return of_one(value)
    values = [of_one(each) for each in value]
    return None if None in values else values


def _number(value: Any) -> int | float | None:
    if value is None or isinstance(value, str | bytes):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    if not math.isfinite(number):
        return None
    return int(number) if number.is_integer() else number


def _matching(pattern: re.Pattern[str]) -> Any:
    def text(value: Any) -> str | None:
        return str(value) if isinstance(value, str) and pattern.fullmatch(value) else None

    return text
