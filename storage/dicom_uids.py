"""DICOM UIDs in the place of those that a scan was sent with (PS3.15 Annex E, action U).

The senders' UIDs lead to patients in the senders' archives, so they are never kept. Each is replaced by
`2.25.<UUID>` (PS3.5 B.2), where the UUID is an HMAC of it under a secret of the data root: the same UID
always becomes the same other one, so that a study stays one study, who knows the old one can ask for it, and
nobody who has the new one comes back to the old one. What was sent without a UID gets one of its digest.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from uuid import UUID

from storage.disk import make_folder, sync, write_whole
from storage.errors import CorruptVolume, StorageError

NewUid = Callable[[str], str]
"""The UID that stands in the place of one that was sent."""
SECRET = "secrets/dicom-uids"
SECRET_BYTES = 32
OF_DICOM = "1.2.840.10008."
"""Begins the UIDs that the standard itself defines (PS3.6 Annex A): they identify nobody and are left."""
INSTANCES = "dicom.json"
VERSION = 1


class UidMap:
    """The replacements of one data root."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    @classmethod
    def of(cls, data_root: Path) -> UidMap:
        """Those of a data root; its secret is made when it is first asked for, readable by its owner alone.

        Losing the secret loses no scan, but UIDs that are sent later fit to none that were sent before.
        Raises StorageError for a secret that is damaged.
        """
        path = data_root / SECRET
        if not path.exists():
            _make_secret(path)
        secret = path.read_bytes()
        if len(secret) != SECRET_BYTES:
            raise StorageError(f"the secret {SECRET!r} of the data root is damaged: restore it from a backup")
        return cls(secret)

    def __call__(self, uid: str) -> str:
        """The UID that stands in the place of `uid`; those that DICOM itself defines stay what they are."""
        if uid.startswith(OF_DICOM):
            return uid
        return _of_uuid(hmac.digest(self._secret, uid.encode(), "sha256"))


def derived_uid(*parts: object) -> str:
    """A UID that the same parts make everywhere: of what was not sent with one."""
    return _of_uuid(hashlib.sha256("\n".join(map(str, parts)).encode()).digest())


@dataclass(frozen=True)
class SentInstances:
    """The replaced UIDs of the planes of a scan, `planes[frame][z]`: each its SOP instance's.

    Planes of a multi-frame instance share one; one that was sent without any has an empty one.
    """

    planes: tuple[tuple[str, ...], ...]

    def write(self, store: Path) -> None:
        """Put them into a volume's folder, before it is sealed."""
        document = {"version": VERSION, **asdict(self)}
        write_whole(store / INSTANCES, json.dumps(document).encode())

    @classmethod
    def parse(cls, content: bytes) -> SentInstances:
        """What was written. Raises CorruptVolume for anything else."""
        try:
            document = json.loads(content)
            if document["version"] != VERSION:
                raise CorruptVolume(INSTANCES, f"it is of version {document['version']}, not {VERSION}")
            return cls(tuple(tuple(map(str, frame)) for frame in document["planes"]))
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptVolume(INSTANCES, f"it cannot be read: {error}") from error


def replaced(new_uid: NewUid, uids: Sequence[Sequence[str]]) -> tuple[tuple[str, ...], ...]:
    """The UIDs of planes, replaced, each once: thousands of planes may share one. Empty ones stay empty."""
    once: Callable[[str], Any] = lru_cache(None)(new_uid)
    return tuple(tuple(once(uid) if uid else "" for uid in frame) for frame in uids)


def _of_uuid(digest: bytes) -> str:
    """`2.25.` and the first 16 bytes as a UUID of version 8 (RFC 9562), which has 122 bits of them."""
    number = bytearray(digest[:16])
    number[6] = number[6] & 0x0F | 0x80
    number[8] = number[8] & 0x3F | 0x80
    return f"2.25.{UUID(bytes=bytes(number)).int}"


def _make_secret(path: Path) -> None:
    """Write a new secret, unless another process comes first: a link never takes the place of a file."""
    make_folder(path.parent)
    path.parent.chmod(0o700)
    own = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    handle = os.open(own, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(secrets.token_bytes(SECRET_BYTES))
            file.flush()
            os.fsync(file.fileno())
        os.link(own, path)
    except FileExistsError:
        pass
    finally:
        own.unlink()
    sync(path.parent)
