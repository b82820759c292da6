"""What a model was made of: the digests of scans, tables, patients' names and earlier models' files.

Names of patients are salted with their table's digest: whoever has the name can ask whether it is there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from workers.cohorts import Table
from workers.packages import versions


@dataclass(frozen=True)
class Training:
    """What a model was made of: digests of the scans' voxels, of the table and of the patients' names."""

    volumes: tuple[str, ...]
    table: str
    patients: tuple[str, ...]
    rows: int
    seed: int
    packages: dict[str, str]

    @classmethod
    def of(cls, table: Table, seed: int, scans: Sequence[int] | None = None) -> Self:
        """What is known of a training by its table, or by its rows about some scans."""
        used = range(len(table.records)) if scans is None else scans
        patients = tuple(sorted({_salted(table.patients[scan], table.sha256) for scan in used}))
        digests, rows = table.digests, int(np.isin(table.scan_of, list(used)).sum())
        return cls(tuple(digests[scan] for scan in used), table.sha256, patients, rows, seed, versions())

    def knows(self, patient: str) -> bool:
        """Whether a patient of this name was learnt from."""
        return _salted(patient, self.table) in self.patients


@dataclass(frozen=True)
class Compression:
    """How a model was made of another one: `parent` is the sha-256 of that one's file, `plan` that of the
    plan's JSON. `settings` are what was asked for, `made_on` the scans that it was made on; whether by their
    targets too, `labels` says.
    """

    parent: str
    settings: dict[str, Any]
    plan: str
    made_on: Training
    labels: bool


def _salted(patient: str, salt: str) -> str:
    return hashlib.sha256(f"{salt}\0{patient}".encode()).hexdigest()
