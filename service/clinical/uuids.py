"""Names that follow from a job's, a volume's or a model's own: the same job gives the same documents.

Ids of jobs and volumes are UUIDs with a prefix (storage/ids.py). A UUID makes a UID of DICOM without a
registered root: `2.25.` and the UUID as a decimal number (PS3.5 B.2). What is part of a job or a volume is
named by a UUID of version 5 (RFC 9562) below it.
"""

from __future__ import annotations

import uuid

NAMESPACE = uuid.UUID("66cd01e6-8e58-5ab4-8475-392407f35cce")
"""Of what is named by a digest; and the scheme of codes that both forms use."""


def own(identifier: str) -> uuid.UUID:
    """The UUID in the id of a job or a volume."""
    return uuid.UUID(identifier.partition("_")[2])


def part(whole: uuid.UUID, name: str) -> uuid.UUID:
    """Of a named part."""
    return uuid.uuid5(whole, name)


def uid(identity: uuid.UUID) -> str:
    """The UUID as a UID of DICOM, at most 44 characters."""
    return f"2.25.{identity.int}"


def urn(identity: uuid.UUID) -> str:
    """The UUID as a URN."""
    return f"urn:uuid:{identity}"
