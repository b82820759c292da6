"""What can go wrong with uploads that arrive in parts, and with what is taken or removed by name.

The tree that these belong to stands in storage/errors.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from storage.errors import Conflict, NotFound, StorageError


class MissingUpload(NotFound):
    """No upload session has this id."""

    code = "upload-not-found"

    def __init__(self, upload_id: str) -> None:
        super().__init__(f"there is no upload {upload_id!r}")
        self.upload_id = upload_id


class UploadGone(StorageError):
    """The session was aborted or has expired; `cause` is the error for which the service gave it up."""

    code = "upload-gone"

    def __init__(self, upload_id: str, state: str, cause: dict[str, Any] | None = None) -> None:
        why = f": {cause['detail']}" if cause else ""
        super().__init__(f"upload {upload_id!r} is {state}{why}; begin a new one")
        self.upload_id, self.state, self.cause = upload_id, state, cause


class UploadFinished(Conflict):
    """All has arrived and become a volume: nothing can be added or taken away."""

    code = "upload-finished"

    def __init__(self, upload_id: str, volume_id: str | None) -> None:
        super().__init__(f"upload {upload_id!r} is complete; it has become volume {volume_id!r}")
        self.upload_id, self.volume_id = upload_id, volume_id


class UploadBusy(Conflict):
    """Somebody else writes to the upload at this moment."""

    code = "upload-busy"
    retryable = True

    def __init__(self, upload_id: str) -> None:
        super().__init__(
            f"another request writes to upload {upload_id!r}; ask for its offset in a moment and go on there"
        )
        self.upload_id = upload_id


class WrongOffset(Conflict):
    """Bytes were sent for another place than the one where the upload goes on."""

    code = "wrong-offset"

    def __init__(self, upload_id: str, sent: int, offset: int) -> None:
        super().__init__(f"upload {upload_id!r} goes on at byte {offset:,}, not {sent:,}")
        self.upload_id, self.sent, self.offset = upload_id, sent, offset


class UploadIncomplete(Conflict):
    """Objects of the manifest have not arrived, or others than it names. The first of each are listed."""

    code = "upload-incomplete"
    MOST_LISTED = 1000

    def __init__(
        self,
        upload_id: str,
        detail: str,
        *,
        missing: Sequence[str] = (),
        different: Sequence[str] = (),
        unexpected: Sequence[str] = (),
    ) -> None:
        super().__init__(f"upload {upload_id!r}: {detail}")
        most = self.MOST_LISTED
        self.upload_id = upload_id
        self.missing_count, self.missing = len(missing), list(missing[:most])
        self.different, self.unexpected = list(different[:most]), list(unexpected[:most])


class ObjectDiffers(Conflict):
    """An object of this key has arrived before, and was another."""

    code = "object-differs"

    def __init__(self, key: str, present: str, sent: str) -> None:
        super().__init__(
            f"object {key!r} has arrived before with the sha-256 {present}, not {sent}; abort this upload "
            "and begin a new one to send other bytes"
        )
        self.key, self.present, self.sent = key, present, sent


class BadKey(StorageError):
    """No object of a Zarr v3 volume has such a key."""

    code = "bad-key"

    def __init__(self, key: str, reason: str) -> None:
        shown = key if len(key) <= 100 else f"{key[:100]}…"
        super().__init__(f"key {shown!r}: {reason}")
        self.reason = reason


class StorageLow(StorageError):
    """So little space would be left on the disk that nothing more is taken in."""

    code = "storage-low"
    retryable = True

    def __init__(self, wanted: int, free: int, kept: int) -> None:
        super().__init__(
            f"{wanted:,} bytes are to be stored and {free:,} are free, of which {kept:,} are kept back: "
            "delete volumes, or give the service a larger disk"
        )
        self.wanted, self.free, self.kept = wanted, free, kept


class VolumeInUse(Conflict):
    """Jobs that have not ended use the volume."""

    code = "volume-in-use"

    def __init__(self, volume_id: str, jobs: Sequence[str]) -> None:
        super().__init__(
            f"{len(jobs)} jobs use volume {volume_id!r}: wait until they have ended, or delete it with "
            "?force=true, which cancels them"
        )
        self.volume_id, self.jobs = volume_id, list(jobs[:100])


class SourceNotAllowed(StorageError):
    """What is to be imported does not lie where imports are allowed from."""

    code = "source-not-allowed"

    def __init__(self) -> None:
        super().__init__(
            "nothing may be imported from there; the setting TOMOTRAIN_IMPORT_ROOTS names the folders that "
            "imports are allowed from"
        )
