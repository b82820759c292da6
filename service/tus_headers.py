"""The headers of the tus resumable upload protocol 1.0.0 (https://tus.io/protocols/resumable-upload)."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from email.utils import formatdate

from starlette.datastructures import Headers

from service.errors import ApiError
from service.intake import kept_file_name, scan_name
from service.tus_writing import Checksum
from storage.upload_sessions import UploadSession

VERSION = "1.0.0"
EXTENSIONS = "creation,creation-with-upload,checksum,expiration,termination"
ALGORITHMS = ("sha256", "sha-256", "sha1", "sha512", "md5")
MEDIA_TYPE = "application/offset+octet-stream"
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
NUMBER = "^(0|[1-9][0-9]{0,17})$"
POSITIVE = "^[1-9][0-9]{0,17}$"
_CHECKSUMS = ("sha-?256 [A-Za-z0-9+/]{43}=", "sha1 [A-Za-z0-9+/]{27}=", "sha512 [A-Za-z0-9+/]{86}==")
CHECKSUM = f"^({'|'.join(_CHECKSUMS)}|md5 [A-Za-z0-9+/]{{22}}==)$"
_BASE64 = "([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?"
_PAIR = rf"[!-+.-~-]{{1,64}}( {_BASE64})?"
METADATA = f"^({_PAIR}(,{_PAIR})*)?$"
"""Of headers, for the description of the API."""
_METADATA_KEY = re.compile(r"[!-+\--~]{1,64}")
LONGEST_METADATA = 8192


def require_version(headers: Headers) -> None:
    """Raise ApiError `tus-version` for a client that speaks another version, or none."""
    spoken = headers.get("tus-resumable")
    if spoken != VERSION:
        raise ApiError(
            "tus-version",
            f"send Tus-Resumable: {VERSION}; it was {spoken!r}",
            headers={"Tus-Version": VERSION},
        )


def length(headers: Headers) -> int:
    """`Upload-Length`. Raises ApiError."""
    if "upload-defer-length" in headers or "upload-concat" in headers:
        raise ApiError("bad-request", "uploads of unknown length, or in several files, are not offered")
    return _number(headers, "upload-length")


def offset(headers: Headers) -> int:
    """`Upload-Offset`. Raises ApiError."""
    return _number(headers, "upload-offset")


def has_bytes(headers: Headers) -> bool:
    """Whether the body holds bytes of the upload."""
    return headers.get("content-type", "").partition(";")[0].strip().lower() == MEDIA_TYPE


def require_bytes(headers: Headers) -> None:
    """Raise ApiError where the body is said to be something else."""
    if not has_bytes(headers):
        raise ApiError("unsupported-media-type", f"send Content-Type: {MEDIA_TYPE}")


def checksum(headers: Headers) -> Checksum | None:
    """`Upload-Checksum`: what the body's digest is to be. Raises ApiError."""
    given = headers.get("upload-checksum")
    if given is None:
        return None
    algorithm, _, value = given.strip().partition(" ")
    if algorithm not in ALGORITHMS:
        raise ApiError("bad-request", f"Upload-Checksum: use one of {', '.join(ALGORITHMS)}")
    name = algorithm.replace("-", "")
    digest = _decoded(value, "Upload-Checksum")
    if len(digest) != hashlib.new(name).digest_size:
        raise ApiError("invalid-digest", f"Upload-Checksum: {len(digest)} bytes are no digest of {algorithm}")
    return Checksum(name, digest)


def metadata(headers: Headers) -> dict[str, str]:
    """`Upload-Metadata`: the values by name. Raises ApiError."""
    given = headers.get("upload-metadata", "")
    if len(given) > LONGEST_METADATA:
        raise ApiError("bad-request", f"Upload-Metadata: over {LONGEST_METADATA} characters")
    found: dict[str, str] = {}
    for pair in filter(None, (part.strip() for part in given.split(","))):
        name, _, value = pair.partition(" ")
        if name in found or not _METADATA_KEY.fullmatch(name):
            raise ApiError("bad-request", "Upload-Metadata: write <name> <base64>,... with each name once")
        found[name] = _decoded(value.strip(), "Upload-Metadata").decode("utf-8", "replace")
    return found


def called(told: dict[str, str]) -> str:
    """What the scan is called: its `label`, else what may be kept of its `filename`."""
    label = told.get("label")
    return scan_name(label, Headers()) if label else kept_file_name(told.get("filename", ""))


def announced_sha256(told: dict[str, str]) -> str | None:
    """The whole file's sha-256 (hex), where the metadata have it. Raises ApiError."""
    given = told.get("sha256")
    if given is not None and not _SHA256.fullmatch(given):
        raise ApiError("invalid-digest", "Upload-Metadata: sha256 is the digest in 64 hexadecimal digits")
    return None if given is None else given.lower()


def expiry(expires_at: float) -> dict[str, str]:
    """`Upload-Expires`."""
    return {"Upload-Expires": formatdate(expires_at, usegmt=True)}


def state(session: UploadSession) -> dict[str, str]:
    """What HEAD says of an upload. Its metadata are those that are kept: a file's name may be a patient's."""
    name = base64.b64encode(session.name.encode()).decode()
    return {
        "Upload-Offset": str(session.received),
        "Upload-Length": str(session.length),
        "Upload-Metadata": f"filename {name}",
        "Cache-Control": "no-store",
        **expiry(session.expires_at),
    }


def _number(headers: Headers, name: str) -> int:
    given = headers.get(name, "")
    if not re.fullmatch(NUMBER, given):
        raise ApiError("bad-request", f"{name}: a number of bytes is needed")
    return int(given)


def _decoded(value: str, name: str) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise ApiError("bad-request", f"{name}: what should be base64 is not") from None
