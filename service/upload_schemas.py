"""What goes over the wire about uploads that arrive in parts, and about imports."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.schemas import Label, Storable, Wire, timestamp
from storage.sent_objects import MOST_IN_MANIFEST, Objects, SentObject
from storage.upload_errors import UploadIncomplete
from storage.upload_sessions import UploadSession, UploadState

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class ObjectEntry(BaseModel):
    """One object of a Zarr."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: int = Field(ge=1)
    sha256: Sha256 = Field(description="hexadecimal")


Entries = Annotated[dict[str, ObjectEntry], Field(max_length=MOST_IN_MANIFEST)]


class UploadRequest(BaseModel):
    """A Zarr that is to be sent object by object."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"kind": "zarr", "name": "head"}]}
    )

    kind: Literal["zarr"]
    name: Annotated[Label, Field(min_length=1)] | None = Field(None, description="what to call the scan")
    size: int | None = Field(
        None, ge=1, description="bytes of all objects, to be reserved; none above arrive"
    )
    manifest: Entries | None = Field(None, description="what is to arrive, by key; for `missing`")


class CompleteRequest(BaseModel):
    """What should have arrived: a manifest, the digest of one, or neither where the upload began with one."""

    model_config = ConfigDict(extra="forbid")

    manifest: Entries | None = None
    digest: Sha256 | None = Field(
        None, description="sha-256 of the lines `<sha-256>  <size>  <key>`, each with its line feed, by key"
    )


class ImportRequest(BaseModel):
    """A scan that the service can reach by itself."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"source": "file:///srv/scans/1.nii.gz"}]}
    )

    source: Annotated[Storable, Field(min_length=1, max_length=4096)]
    name: Annotated[Label, Field(min_length=1)] | None = Field(None, description="what to call the scan")


class UploadView(Wire):
    """An upload session as it stands."""

    id: str
    kind: str
    name: str
    state: UploadState
    created_at: str
    expires_at: str = Field(description="when it is given up, unless something arrives before")
    length: int | None = Field(description="bytes that were announced")
    received: int = Field(description="bytes that have arrived and are durable")
    objects: int = Field(description="objects that have arrived")
    missing_count: int | None = Field(None, description="objects of the manifest that have not arrived")
    missing: list[str] = Field([], description="the first 1000 of them")
    volume_id: str | None
    links: dict[str, str]


def sent_objects(entries: dict[str, ObjectEntry]) -> dict[str, SentObject]:
    """The manifest that was sent."""
    return {key: SentObject(entry.size, entry.sha256) for key, entry in entries.items()}


def upload_view(
    session: UploadSession, arrived: Objects | None = None, manifest: Objects | None = None
) -> UploadView:
    """A session as it goes over the wire; with what is missing where the manifest is known."""
    address = f"/v1/uploads/{session.id}"
    links = {"self": address}
    if session.volume_id is not None:
        links["volume"] = f"/v1/volumes/{session.volume_id}"
    missing = sorted(manifest.keys() - (arrived or {}).keys()) if manifest is not None else None
    return UploadView(
        id=session.id,
        kind=session.kind,
        name=session.name,
        state=session.state,
        created_at=timestamp(session.created_at) or "",
        expires_at=timestamp(session.expires_at) or "",
        length=session.length,
        received=session.received,
        objects=session.objects,
        missing_count=None if missing is None else len(missing),
        missing=(missing or [])[: UploadIncomplete.MOST_LISTED],
        volume_id=session.volume_id,
        links=links,
    )
