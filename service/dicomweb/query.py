"""QIDO-RS searches (PS3.18 8.3.4, 10.6.1): what is asked for, and what matches (PS3.4 C.2.2.2).

A UID matches where it is the replaced one, or the one that the sender knows. What is never kept is empty, and
matches nothing but the empty key and `*`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from service.dicomweb.json_model import KEYWORDS, NEVER_KEPT, TAGS, Attributes
from service.errors import ApiError

MOST = 1000
"""Largest number of results of one answer."""
CONTROLS = frozenset({"limit", "offset", "includefield", "fuzzymatching", "emptyvaluematching"})
TAG = re.compile(r"[0-9A-Fa-f]{8}")
UID = re.compile(r"[0-9]+(\.[0-9]+)*")
WILD = re.compile(r"[*?]")
EVERYTHING = ("", "*")


@dataclass(frozen=True)
class Query:
    """Keys with the values that may match, and which of the results are asked for."""

    keys: Mapping[str, tuple[str, ...]]
    limit: int = 100
    offset: int = 0

    def with_keys(self, **keys: str) -> Query:
        """The same with further keys: those of the address."""
        return Query(
            {**self.keys, **{name: (value,) for name, value in keys.items()}}, self.limit, self.offset
        )

    def exactly(self, keyword: str) -> str | None:
        """The only value that matches a key; None where several may."""
        values = self.keys.get(keyword, ())
        found = values[0] if len(values) == 1 else ""
        return found if found and not WILD.search(found) else None

    def asks_for_what_is_never_kept(self) -> bool:
        """Whether a key has a value that nothing here has."""
        return any(
            not any(each in EVERYTHING for each in values)
            for keyword, values in self.keys.items()
            if keyword in NEVER_KEPT
        )

    def matches(self, found: Attributes, new_uid: Callable[[str], str]) -> bool:
        """Whether attributes match all keys that they have at their level, and no key asks for what is never
        kept. `new_uid` replaces a sender's UID.
        """
        for keyword, values in self.keys.items():
            tag, vr = TAGS[keyword]
            if tag not in found and keyword not in NEVER_KEPT:
                continue
            if not _matches(vr, values, found.get(tag, {}), new_uid):
                return False
        return True

    def page(self, found: Sequence[Attributes]) -> Sequence[Attributes]:
        """Those of all results that are asked for."""
        return found[self.offset : self.offset + self.limit]


def parse(parameters: Iterable[tuple[str, str]]) -> Query:
    """The search that an address' parameters say. Raises ApiError for one that cannot be understood."""
    keys: dict[str, tuple[str, ...]] = {}
    controls: dict[str, int] = {}
    for name, value in parameters:
        if name in ("limit", "offset"):
            controls[name] = _count(name, value)
        elif name not in CONTROLS:
            keyword = _keyword(name)
            keys[keyword] = _values(keyword, value)
    limit = min(controls.get("limit", 100), MOST)
    return Query(keys, limit, controls.get("offset", 0))


def _keyword(name: str) -> str:
    """An attribute's keyword, by itself or by its tag."""
    keyword = KEYWORDS.get(name.upper(), name) if TAG.fullmatch(name) else name
    if keyword not in TAGS:
        detail = "the attribute is not among those that are searched here; leave it out"
        raise ApiError("invalid-request", detail, errors=[("#attribute", detail)])
    return keyword


def _values(keyword: str, value: str) -> tuple[str, ...]:
    if TAGS[keyword][1] != "UI":
        return (value,)
    uids = tuple(part for part in re.split(r"[,\\]", value) if part)
    if not all(map(UID.fullmatch, uids)):
        raise ApiError("invalid-request", f"{keyword} is no list of UIDs", errors=[(f"#{keyword}", "no UID")])
    return uids or ("",)


def _count(name: str, value: str) -> int:
    if not value.isdecimal() or len(value) > 9:
        raise ApiError(
            "invalid-request", f"{name} has to be a whole number", errors=[(f"#{name}", "no number")]
        )
    return int(value)


def _matches(
    vr: str, wanted: tuple[str, ...], found: Mapping[str, Any], new_uid: Callable[[str], str]
) -> bool:
    values = [str(value) for value in found.get("Value", [])]
    if any(each in EVERYTHING for each in wanted):
        return True
    if vr == "UI":
        return bool({*wanted, *map(new_uid, wanted)} & set(values))
    return any(fnmatchcase(value, _pattern(each)) for value in values for each in wanted)


def _pattern(wildcards: str) -> str:
    """DICOM's wildcards are `*` and `?`; a bracket is a bracket (PS3.4 C.2.2.2.4)."""
    return wildcards.replace("[", "[[]")
