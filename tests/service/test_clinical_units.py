"""Units of cohorts as codes of UCUM."""

from __future__ import annotations

import pytest

from service.clinical import units
from service.clinical.fhir_types import quantity


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("years", "a"),
        ("year", "a"),
        (" Years ", "a"),
        ("a", "a"),
        ("mL", "mL"),
        ("ml", "mL"),
        ("%", "%"),
        ("percent", "%"),
        ("kg/m²", "kg/m2"),
        ("kg/m^2", "kg/m2"),
        ("mm³", "mm3"),
        ("mmHg", "mm[Hg]"),
        ("HU", "[hnsf'U]"),
        ("µm", "um"),
        ("1", "1"),
    ],
)
def test_units_that_ucum_knows(text: str, code: str) -> None:
    unit = units.ucum(text)
    assert unit is not None
    assert unit.code == code


@pytest.mark.parametrize("text", ["", "m", "points of a score", "A", "GOLD stage", "mg dL", "²"])
def test_other_units_stay_texts(text: str) -> None:
    assert units.ucum(text) is None
    assert quantity(1.5, text) == {"value": 1.5, **({"unit": text} if text else {})}
