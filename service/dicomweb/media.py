"""Which media type an Accept header asks for (RFC 9110 12.5.1, PS3.18 8.7)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from email.message import Message

from service.dicomweb.multipart import RELATED

DICOM, DICOM_JSON, OCTETS = "application/dicom", "application/dicom+json", "application/octet-stream"
EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
SYNTAXES = frozenset({"", "*", EXPLICIT_LITTLE})
"""Values of `transfer-syntax` that uncompressed explicit little endian answers."""
WILD = "*/*"


@dataclass(frozen=True)
class Offer:
    """What can be sent: a media type, in parts of a multipart body or by itself."""

    media_type: str
    multipart: bool = False


@dataclass(frozen=True)
class Range:
    """One of the media ranges of an Accept header."""

    media_type: str
    multipart: bool
    quality: float
    syntax: str = ""

    def takes(self, offer: Offer) -> bool:
        """Whether it takes what is offered."""
        if self.syntax not in SYNTAXES or self.quality <= 0:
            return False
        if not self.multipart and self.media_type == WILD:
            return True
        family = self.media_type.removesuffix("*")
        fits = offer.media_type == self.media_type or (
            self.media_type.endswith("/*") and offer.media_type.startswith(family)
        )
        return self.multipart == offer.multipart and (fits or self.media_type == WILD)


def chosen(accept: str | None, offers: Sequence[Offer]) -> Offer | None:
    """The offer that an Accept header likes best, the first of equals or without a header; None for none."""
    if not accept or not accept.strip():
        return offers[0]
    ranges = [_range(part) for part in _split(accept)]
    liked = [
        (max((each.quality for each in ranges if each.takes(offer)), default=0.0), offer) for offer in offers
    ]
    quality, best = max(liked, key=lambda each: each[0])
    return best if quality > 0 else None


def _split(accept: str) -> list[str]:
    """Parts between commas that stand in no quotes."""
    found, quoted, start = [], False, 0
    for at, letter in enumerate(accept):
        if letter == '"':
            quoted = not quoted
        elif letter == "," and not quoted:
            found.append(accept[start:at])
            start = at + 1
    return [part for part in [*found, accept[start:]] if part.strip()]


def _range(text: str) -> Range:
    message = Message()
    message["Content-Type"] = text.strip()
    parameters = {name.lower(): str(value) for name, value in message.get_params(failobj=[])[1:]}
    media_type = text.partition(";")[0].strip().lower()
    multipart = media_type == RELATED
    if multipart:
        media_type = parameters.get("type", WILD).strip().lower()
    try:
        quality = float(parameters.get("q", "1"))
    except ValueError:
        quality = 0.0
    return Range(media_type, multipart, quality, parameters.get("transfer-syntax", "").strip())
