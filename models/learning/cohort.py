"""A cohort: prepared scans, who they are of, and the rows that ask something about them.

A row is one question with one answer: a scan, covariates (weeks since, age, ...) and a target. A scan may
have many rows and a patient many scans; what is expensive is done per scan, what must not leak is split by
patient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64

from models.errors import InvalidShape
from models.types import Array, CubeSource, Int64


@dataclass(frozen=True, eq=False)
class Inputs:
    """What a model is asked about: row i is about the scan `scans[scan_of[i]]`, with `covariates[i]`.

    Scans are prepared: of one shape, and of one number of channels. `covariates` (n, t) are finite; t may be
    0. Raises InvalidShape, naming the scan or the row.
    """

    scans: tuple[CubeSource, ...]
    scan_of: Int64
    covariates: Float64[Array, "n t"]

    def __post_init__(self) -> None:
        if not self.scans:
            raise InvalidShape("there are no scans")
        kinds = [(scan.shape, scan.channels) for scan in self.scans]
        for number, kind in enumerate(kinds):
            if kind != kinds[0]:
                raise InvalidShape(
                    f"scan {number} is {kind[0]} with {kind[1]} channels, scan 0 {kinds[0][0]} with "
                    f"{kinds[0][1]}: prepare them on one grid"
                )
        if self.covariates.ndim != 2 or len(self.covariates) != len(self.scan_of):
            raise InvalidShape(f"covariates {self.covariates.shape} of {len(self.scan_of)} rows")
        if self.scan_of.ndim != 1 or not np.issubdtype(self.scan_of.dtype, np.integer):
            raise InvalidShape(f"rows name scans by whole numbers (n,), not {self.scan_of.dtype} numbers")
        if (others := (self.scan_of < 0) | (self.scan_of >= len(self.scans))).any():
            row = int(others.argmax())
            raise InvalidShape(f"row {row} names scan {self.scan_of[row]}, not one of the {len(self.scans)}")
        if not (finite := np.isfinite(self.covariates)).all():
            row, column = np.argwhere(~finite)[0].tolist()
            raise InvalidShape(f"covariate {column} of row {row} is {self.covariates[row, column]}")

    def __len__(self) -> int:
        return len(self.scan_of)

    @classmethod
    def of(cls, scans: Sequence[CubeSource], covariates: Float64[Array, "n t"] | None = None) -> Inputs:
        """One row for each scan."""
        rows = np.arange(len(scans))
        return cls(tuple(scans), rows, np.zeros((len(rows), 0)) if covariates is None else covariates)

    def only(self, scans: Int64) -> Inputs:
        """The inputs of these scans, (s,) distinct, and their rows, in the order that they have here.

        Raises InvalidShape, naming the scan, for one that there is not, and one that is named twice.
        """
        self._refuse_no_part(scans)
        rows = self.rows_of(scans)
        number = np.full(len(self.scans), -1)
        number[scans] = np.arange(len(scans))
        return Inputs(
            tuple(self.scans[scan] for scan in scans.tolist()),
            number[self.scan_of[rows]],
            self.covariates[rows],
        )

    def rows_of(self, scans: Int64) -> Int64:
        """The numbers of all rows about these scans, ascending."""
        return np.flatnonzero(np.isin(self.scan_of, scans))

    def _refuse_no_part(self, scans: Int64) -> None:
        names, counts = np.unique(scans, return_counts=True)
        if len(others := names[(names < 0) | (names >= len(self.scans))]):
            raise InvalidShape(f"scan {others[0]} is not one of the {len(self.scans)}")
        if (counts > 1).any():
            raise InvalidShape(f"scan {names[counts.argmax()]} twice: name each scan once")


@dataclass(frozen=True, eq=False)
class Cohort:
    """Inputs with answers. `patients[s]` is who scan s is of, `targets` (n,) are finite, one per row.

    For a task of classes, targets are the classes' numbers. There is a row at least. Raises InvalidShape,
    naming the row.
    """

    inputs: Inputs
    patients: tuple[str, ...]
    targets: Float64[Array, " n"]

    def __post_init__(self) -> None:
        if not len(self.inputs):
            raise InvalidShape("a cohort without rows has no answers: no row is about one of its scans")
        if len(self.patients) != len(self.inputs.scans):
            raise InvalidShape(f"{len(self.patients)} patients for {len(self.inputs.scans)} scans")
        if self.targets.shape != (len(self.inputs),):
            raise InvalidShape(f"targets {self.targets.shape} for {len(self.inputs)} rows")
        if not (finite := np.isfinite(self.targets)).all():
            row = int(np.argmin(finite))
            raise InvalidShape(f"the target of row {row} is {self.targets[row]}")

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def row_patients(self) -> tuple[str, ...]:
        """Who each row is about."""
        return tuple(self.patients[scan] for scan in self.inputs.scan_of.tolist())

    def only(self, scans: Int64) -> Cohort:
        """The cohort of these scans (s,), distinct, with all their rows, in the order that they have here."""
        return replace(
            self,
            inputs=self.inputs.only(scans),
            patients=tuple(self.patients[scan] for scan in scans.tolist()),
            targets=self.targets[self.inputs.rows_of(scans)],
        )
