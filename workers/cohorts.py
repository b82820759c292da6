"""A table of scans, patients and targets becomes a cohort; all that is wrong with it is said at once, first.

Nothing of a scan is read here beside its row in the catalogue.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float64
from pydantic import BaseModel, ConfigDict, Field

from models.learning.cohort import Cohort, Inputs
from models.learning.task import Task
from models.types import Array, CubeSource, Int64
from storage.errors import CohortNotReady, InvalidCohort, MissingVolume
from storage.records import VolumeRecord, VolumeState
from workers.scans import channels_of
from workers.schemas import of_types, pointer

FEWEST_PATIENTS = 6
"""Fewer can be neither learnt from nor judged on."""
MOST_ROWS = 20_000

Problem = tuple[str, str]
"""A JSON pointer into the job's parameters, and what is wrong there."""


class Row(BaseModel):
    """One question and its answer: a scan, what is known beside it, and the target."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    volume_id: str = Field(min_length=1, max_length=100, description="the scan")
    patient: str = Field(
        min_length=1, max_length=200, description="who the scan is of; a patient is never in two folds"
    )
    target: float | str = Field(
        json_schema_extra=of_types,
        description="a number, or the name of a class",
    )
    covariates: dict[str, float] = Field({}, description="numbers beside the scan, by name")
    fold: int | None = Field(
        None,
        ge=0,
        json_schema_extra=of_types,
        description="number of the part that the row is in; null: parts are drawn by patient",
    )


@dataclass(frozen=True, eq=False)
class Table:
    """Rows without a fault, each scan once: row i is about `records[scan_of[i]]`.

    `covariates` (n, t) are in the order of `names`, `targets` (n,) numbers or the numbers of
    `task.classes`. `patients` are the scans', `folds` (n,) the table's own, or None.
    """

    task: Task
    records: tuple[VolumeRecord, ...]
    scan_of: Int64
    patients: tuple[str, ...]
    names: tuple[str, ...]
    covariates: Float64[Array, "n t"]
    targets: Float64[Array, " n"]
    folds: tuple[str, ...] | None
    sha256: str

    def __len__(self) -> int:
        return len(self.targets)

    def cohort(self, scans: Sequence[CubeSource]) -> Cohort:
        """The cohort, once its scans are prepared."""
        return Cohort(Inputs(tuple(scans), self.scan_of, self.covariates), self.patients, self.targets)

    @property
    def row_patients(self) -> list[str]:
        """Who each row is about."""
        return [self.patients[scan] for scan in self.scan_of.tolist()]

    @property
    def digests(self) -> list[str]:
        """Of the scans' voxels."""
        return [record.stored.digest for record in self.records if record.stored is not None]


def training_table(
    rows: Sequence[Row], task: str, classes: Sequence[str], find_volume: Callable[[str], VolumeRecord]
) -> Table:
    """What can be learnt from. Raises InvalidCohort, or CohortNotReady where it is only too early."""
    reading = _Reading(rows, find_volume)
    reading.check_classes(task, classes)
    found = (tuple(classes) or reading.classes) if task == "classes" else ()
    reading.check_targets(found)
    reading.check_covariates(reading.names)
    reading.check_folds()
    reading.check_learnable(found)
    reading.refuse()
    return reading.table(Task(task, found), reading.names)


def truth_table(
    rows: Sequence[Row], task: Task, names: Sequence[str], find_volume: Callable[[str], VolumeRecord]
) -> Table:
    """What a model of this task, which takes these covariates, can be judged on. Raises as above."""
    reading = _Reading(rows, find_volume)
    reading.check_targets(task.classes)
    reading.check_covariates(names)
    reading.refuse()
    return reading.table(task, names)


class _Reading:
    """Rows, and what was found wrong with them so far."""

    def __init__(self, rows: Sequence[Row], find_volume: Callable[[str], VolumeRecord]) -> None:
        self._rows = rows
        self._problems: list[Problem] = []
        self._too_early: list[Problem] = []
        self._records = self._found(find_volume)
        self._check_scans()
        self._check_repetitions()

    @cached_property
    def names(self) -> tuple[str, ...]:
        """All covariates that any row has."""
        return tuple(sorted({name for row in self._rows for name in row.covariates}))

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """All targets, as names."""
        return tuple(sorted({_class_name(row.target) for row in self._rows}))

    def refuse(self) -> None:
        """Raise what was found wrong, if anything was."""
        if self._problems:
            raise InvalidCohort(self._problems)
        if self._too_early:
            raise CohortNotReady(self._too_early)

    def table(self, task: Task, names: Sequence[str]) -> Table:
        """The rows, once nothing is wrong with them."""
        number = {volume_id: i for i, volume_id in enumerate(self._records)}
        patient = {row.volume_id: row.patient for row in self._rows}
        folds = tuple(str(row.fold) for row in self._rows if row.fold is not None)
        return Table(
            task=task,
            records=tuple(record for record in self._records.values() if record is not None),
            scan_of=np.array([number[row.volume_id] for row in self._rows], np.int64),
            patients=tuple(patient[volume_id] for volume_id in number),
            names=tuple(names),
            covariates=_columns([row.covariates for row in self._rows], names),
            targets=np.array([_number(row.target, task.classes) for row in self._rows], np.float64),
            folds=folds or None,
            sha256=_digest(self._rows),
        )

    def check_classes(self, task: str, classes: Sequence[str]) -> None:
        """Named for a task of classes alone, and then two different ones at least."""
        if classes and task != "classes":
            self._problems.append(("/classes", f"given, but the task is {task}; leave them out"))
        elif classes and len(set(classes)) < max(2, len(classes)):
            self._problems.append(("/classes", "name two at least, each once"))

    def check_targets(self, classes: Sequence[str]) -> None:
        """Numbers where there are no classes, else names of them."""
        for i, row in enumerate(self._rows):
            if not classes and isinstance(row.target, str):
                self._complain(i, f"{row.target!r} is no number; for names use the task classes", "target")
            if classes and _class_name(row.target) not in classes:
                told = f"{row.target!r} is none of the classes {', '.join(classes)}"
                self._complain(i, told, "target")

    def check_covariates(self, names: Sequence[str]) -> None:
        """The same in all rows."""
        for i, row in enumerate(self._rows):
            for name in names:
                if name not in row.covariates:
                    self._complain(i, "missing; every row needs it", "covariates", name)
            for name in sorted(row.covariates.keys() - set(names)):
                told = f"not among the model's covariates ({', '.join(names) or 'it has none'})"
                self._complain(i, told, "covariates", name)

    def check_folds(self) -> None:
        """All rows in a fold or none, a patient in one only, and two folds at least."""
        given = [row.fold for row in self._rows if row.fold is not None]
        fold_of: dict[str, int] = {}
        for i, row in enumerate(self._rows):
            if row.fold is None:
                if given:
                    self._complain(i, "missing; give all rows a fold, or none", "fold")
            elif (other := fold_of.setdefault(row.patient, row.fold)) != row.fold:
                told = f"patient {row.patient!r} is in fold {other} and in fold {row.fold}"
                self._complain(i, f"{told}; give all rows of a patient one fold", "fold")
        if len(set(given)) == 1:
            told = f"all rows are in fold {given[0]}: two folds are needed at least"
            self._problems.append(("/rows", told))

    def check_learnable(self, classes: Sequence[str]) -> None:
        """Enough patients, and targets that differ; of each class two patients."""
        patients = {row.patient for row in self._rows}
        if len(patients) < FEWEST_PATIENTS:
            told = f"{len(patients)} patients; a model needs at least {FEWEST_PATIENTS}, better many more"
            self._problems.append(("/rows", told))
        if len(self._rows) > 1 and len({row.target for row in self._rows}) == 1:
            told = f"all targets are {self._rows[0].target}: there is nothing to learn"
            self._problems.append(("/rows", told))
        members = defaultdict(set)
        for row in self._rows:
            members[_class_name(row.target)].add(row.patient)
        for name in classes:
            if len(members[name]) < 2:
                told = f"class {name!r} has {len(members[name])} patients; it needs two, or leave it out"
                self._problems.append(("/rows", told))

    def _found(self, find_volume: Callable[[str], VolumeRecord]) -> dict[str, VolumeRecord | None]:
        """Every scan that rows name, once, in their order; None for one that is not there."""
        found: dict[str, VolumeRecord | None] = {}
        for row in self._rows:
            if row.volume_id not in found:
                try:
                    found[row.volume_id] = find_volume(row.volume_id)
                except MissingVolume:
                    found[row.volume_id] = None
        return found

    def _check_scans(self) -> None:
        """There, read, sound, of one number of channels, and each of one patient."""
        channels = {
            id_: channels_of(record.stored)
            for id_, record in self._records.items()
            if record and record.stored
        }
        usual = Counter(channels.values()).most_common(1)[0][0] if channels else 0
        patients: dict[str, str] = {}
        for i, row in enumerate(self._rows):
            record = self._records[row.volume_id]
            if record is None:
                self._complain(i, f"there is no volume {row.volume_id!r}; send the scan first", "volume_id")
            elif record.state is VolumeState.VALIDATING:
                told = f"volume {row.volume_id!r} is still being read"
                self._too_early.append((f"/rows/{i}/volume_id", told))
            elif record.state is not VolumeState.READY:
                why = f": {record.error['detail']}" if record.error else ""
                self._complain(i, f"volume {row.volume_id!r} is {record.state}{why}", "volume_id")
            elif channels[row.volume_id] != usual:
                told = f"{channels[row.volume_id]} values per voxel, most of the others have {usual}"
                self._complain(i, told, "volume_id")
            other = patients.setdefault(row.volume_id, row.patient)
            if other != row.patient:
                self._complain(i, f"the same scan is of patient {other!r} in another row", "patient")

    def _check_repetitions(self) -> None:
        """No question twice."""
        asked: dict[tuple[Any, ...], int] = {}
        for i, row in enumerate(self._rows):
            before = asked.setdefault((row.volume_id, *sorted(row.covariates.items())), i)
            if before != i:
                self._problems.append((f"/rows/{i}", f"the same scan and covariates as in row {before}"))

    def _complain(self, row: int, what: str, *where: str) -> None:
        self._problems.append((pointer("rows", row, *where), what))


def _class_name(target: float | str) -> str:
    """A class may be written as a number."""
    return target if isinstance(target, str) else f"{target:.15g}"


def _columns(rows: Sequence[Mapping[str, float]], names: Sequence[str]) -> Float64[Array, "n t"]:
    """Numbers by name as columns."""
    values = [[row[name] for name in names] for row in rows]
    return np.array(values, np.float64).reshape(len(rows), len(names))


def _number(target: float | str, classes: Sequence[str]) -> float:
    """A target as it is learnt."""
    return float(classes.index(_class_name(target)) if classes else target)


def _digest(rows: Sequence[Row]) -> str:
    """sha-256 of the table."""
    text = json.dumps([row.model_dump() for row in rows], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
