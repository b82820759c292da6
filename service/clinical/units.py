"""Units of what models learn, as codes of UCUM (the Unified Code for Units of Measure), where they are such.

A model's unit is the text that its cohort's owner wrote. Texts that could mean two things, such as `m`, stay
texts: a code that is wrong is worse than none.
"""

from __future__ import annotations

import re
from typing import NamedTuple

SYSTEM = "http://unitsofmeasure.org"


class Unit(NamedTuple):
    """A code of UCUM, and what it means."""

    code: str
    meaning: str


ONE = Unit("1", "no units")
PERCENT = Unit("%", "percent")

_UNITS = (
    ONE,
    PERCENT,
    Unit("a", "year"),
    Unit("mo", "month"),
    Unit("wk", "week"),
    Unit("d", "day"),
    Unit("h", "hour"),
    Unit("min", "minute"),
    Unit("s", "second"),
    Unit("ms", "millisecond"),
    Unit("cm", "centimeter"),
    Unit("mm", "millimeter"),
    Unit("um", "micrometer"),
    Unit("mm2", "square millimeter"),
    Unit("cm2", "square centimeter"),
    Unit("m2", "square meter"),
    Unit("mm3", "cubic millimeter"),
    Unit("cm3", "cubic centimeter"),
    Unit("L", "liter"),
    Unit("dL", "deciliter"),
    Unit("mL", "milliliter"),
    Unit("kg", "kilogram"),
    Unit("g", "gram"),
    Unit("mg", "milligram"),
    Unit("ug", "microgram"),
    Unit("kg/m2", "kilogram per square meter"),
    Unit("g/cm3", "gram per cubic centimeter"),
    Unit("mg/cm3", "milligram per cubic centimeter"),
    Unit("g/dL", "gram per deciliter"),
    Unit("mg/dL", "milligram per deciliter"),
    Unit("g/L", "gram per liter"),
    Unit("mg/L", "milligram per liter"),
    Unit("mmol/L", "millimole per liter"),
    Unit("umol/L", "micromole per liter"),
    Unit("L/min", "liter per minute"),
    Unit("mL/min", "milliliter per minute"),
    Unit("mL/s", "milliliter per second"),
    Unit("/min", "per minute"),
    Unit("Hz", "hertz"),
    Unit("mm[Hg]", "millimeter of mercury"),
    Unit("kPa", "kilopascal"),
    Unit("Cel", "degree Celsius"),
    Unit("[hnsf'U]", "Hounsfield unit"),
)
_BY_CODE = {unit.code: unit for unit in _UNITS}
_BY_NAME = {
    **{name: unit for unit in _UNITS for name in (unit.meaning, f"{unit.meaning}s")},
    **{
        name: _BY_CODE[code]
        for name, code in {
            "yr": "a",
            "yrs": "a",
            "percentage": "%",
            "ml": "mL",
            "l": "L",
            "mmhg": "mm[Hg]",
            "hu": "[hnsf'U]",
            "°c": "Cel",
            "µm": "um",
            "μm": "um",
        }.items()
    },
}
_POWERS = str.maketrans({"²": "2", "³": "3", "^": None})
_ANNOTATED = re.compile(r"[!-z|~]{1,40}")


def ucum(text: str) -> Unit | None:
    """The unit that a text means; None where it is no unit that is known here."""
    plain = text.strip().translate(_POWERS)
    return _BY_CODE.get(plain) or _BY_NAME.get(plain.lower())


def annotated(text: str) -> Unit:
    """A unit of UCUM for what is none: no units, annotated with the text where UCUM can hold it."""
    plain = "_".join(text.split())
    return Unit(f"{{{plain}}}", text.strip()) if _ANNOTATED.fullmatch(plain) else ONE
