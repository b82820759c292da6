"""Which representation a client wants: `Accept` with media ranges, parameters and weights (RFC 9110, 12.5.1).

A media range that cannot be read is passed over. Of the ranges that match a representation the most specific
one gives its weight; of representations with the same weight one that was named goes before one that only a
wildcard matched, and else the order of the offers decides.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
_QUOTED = r'"(?:[^"\\]|\\.)*+"'
_PARAMETER = rf"[ \t]*+;[ \t]*+(?:({_TOKEN})=({_TOKEN}|{_QUOTED}))?+"
_ELEMENT = re.compile(r'(?:"(?:[^"\\]|\\.?)*+(?:"|\Z)|[^",])++', re.DOTALL)
"""Up to the next comma that is not quoted; what is quoted and never ends goes to the end."""
_MEDIA_RANGE = re.compile(rf"[ \t]*+({_TOKEN})/({_TOKEN})((?:{_PARAMETER})*+)[ \t]*+")
_WEIGHT = re.compile(r"0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?")
ANY = "*"


@dataclass(frozen=True)
class Offer:
    """A representation: its media type, and parameters that a media range may name, with the values that are
    true of it. All are in small letters.
    """

    media_type: str
    parameters: Mapping[str, frozenset[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class MediaRange:
    """An element of `Accept`: names in small letters, a weight from 0 (not acceptable) to 1."""

    kind: str
    subtype: str
    parameters: tuple[tuple[str, str], ...]
    weight: float

    @property
    def specificity(self) -> tuple[bool, bool, int]:
        """Larger for what says more."""
        return self.kind != ANY, self.subtype != ANY, len(self.parameters)

    def matches(self, offer: Offer) -> bool:
        """Whether the representation is in the range."""
        kind, subtype = offer.media_type.split("/")
        return (
            self.kind in (ANY, kind)
            and self.subtype in (ANY, subtype)
            and all(value in offer.parameters.get(name, ()) for name, value in self.parameters)
        )


Offered = TypeVar("Offered", bound=Offer)


def chosen(accept: str, offers: Sequence[Offered]) -> Offered | None:
    """The representation to send; None where none is acceptable. Without a word on it the first is."""
    if not accept.strip(" \t"):
        return offers[0]
    ranges = list(media_ranges(accept))
    matched = [(found, offer) for offer in offers if (found := _most_specific(ranges, offer)) is not None]
    acceptable = [(found, offer) for found, offer in matched if found.weight > 0]
    if not acceptable:
        return None
    return max(acceptable, key=lambda pair: (pair[0].weight, pair[0].subtype != ANY))[1]


def media_ranges(accept: str) -> Iterator[MediaRange]:
    """The elements of the header that can be read."""
    for element in _ELEMENT.findall(accept):
        found = _MEDIA_RANGE.fullmatch(element)
        if found is None or (found[1] == ANY and found[2] != ANY):
            continue
        named = re.findall(_PARAMETER, found[3])
        parameters = [(name.lower(), _plain(value)) for name, value in named if name]
        names = [name for name, _ in parameters]
        end = names.index("q") if "q" in names else len(names)
        weight = parameters[end][1] if end < len(names) else "1"
        if _WEIGHT.fullmatch(weight):
            yield MediaRange(found[1].lower(), found[2].lower(), tuple(parameters[:end]), float(weight))


def _most_specific(ranges: Sequence[MediaRange], offer: Offer) -> MediaRange | None:
    matching = [each for each in ranges if each.matches(offer)]
    return max(matching, key=lambda each: each.specificity, default=None)


def _plain(value: str) -> str:
    """A parameter's value without its quotes, in small letters."""
    if value.startswith('"'):
        value = re.sub(r"\\(.)", r"\1", value[1:-1])
    return value.lower()
