"""A table of scans, patients and targets becomes a cohort; all that is wrong with it is said at once, first.

Nothing of a scan is read here beside its row in the catalogue.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Annotated, Any

import numpy as np
from jaxtyping import Float64
from pydantic import BaseModel, ConfigDict, Field, field_validator

from models.learning.cohort import Cohort, Inputs
from models.learning.task import Task
from models.types import Array, CubeSource, Int64
from storage.errors import MOST_PROBLEMS, CohortNotReady, InvalidCohort, MissingVolume
from storage.records import VolumeRecord, VolumeState
from workers.scans import channels_of
from workers.schemas import of_types, pointer

FEWEST_PATIENTS = 6
"""Fewer can be neither learnt from nor judged on."""
MOST_ROWS = 20_000
MOST_COVARIATES = 100
MOST_CLASSES = 100
SHOWN = 10
"""So many names of a list are told."""
LARGEST = 1e100
"""Squares of larger numbers, and sums of them, are soon no numbers any more."""

Problem = tuple[str, str]
"""A JSON pointer into the job's parameters, and what is wrong there."""


class Row(BaseModel):
    """One question and its answer: a scan, what is known beside it, and the target."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    volume_id: str = Field(min_length=1, max_length=100, description="the scan")
    patient: str = Field(
        min_length=1, max_length=200, description="who the scan is of; a patient is never in two folds"
    )
    target: float | Annotated[str, Field(max_length=200)] = Field(
        json_schema_extra=of_types,
        description="a number, or the name of a class",
    )
    covariates: dict[Annotated[str, Field(max_length=100)], float] = Field(
        {}, max_length=MOST_COVARIATES, description="numbers beside the scan, by name"
    )
    fold: int | None = Field(
        None,
        ge=0,
        le=999_999_999,
        json_schema_extra=of_types,
        description="number of the part that the row is in; null: parts are drawn by patient",
    )

    @field_validator("patient")
    @classmethod
    def _one_spelling(cls, patient: str) -> str:
        """Composed (NFC) and without outer blanks: one patient must not count as two."""
        if not (name := unicodedata.normalize("NFC", patient).strip()):
            raise ValueError("must not be blank")
        return name


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
    reading.refuse_many(found)
    reading.check_targets(found)
    reading.check_covariates(reading.names)
    reading.check_folds(found)
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
        self._problems, self._too_early = _Problems(), _Problems()
        self._records = self._found(find_volume)
        self._check_scans()
        self._check_patients()
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
        if self._problems.first:
            raise InvalidCohort(self._problems.first, self._problems.more)
        if self._too_early.first:
            raise CohortNotReady(self._too_early.first, self._too_early.more)

    def refuse_many(self, classes: Sequence[str]) -> None:
        """Raise for more classes than are told apart: what is wrong with single rows is not worth telling."""
        if len(classes) > MOST_CLASSES:
            told = (
                f"target has {len(classes):,} different values, and {MOST_CLASSES} classes are the most; for "
                "numbers ask for the task mean or quantiles"
            )
            raise InvalidCohort([("/rows", told)])

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
            self._problems.add("/classes", f"given, but the task is {task}; leave them out")
        elif classes and len(set(classes)) < max(2, len(classes)):
            self._problems.add("/classes", "name two at least, each once")

    def check_targets(self, classes: Sequence[str]) -> None:
        """Numbers where there are no classes, else names of them."""
        for i, row in enumerate(self._rows):
            if classes:
                if _class_name(row.target) not in classes:
                    told = f"{row.target!r} is none of the classes {_some(classes)}"
                    self._complain(i, told, "target")
            elif isinstance(row.target, str):
                self._complain(i, f"{row.target!r} is no number; for names use the task classes", "target")
            elif abs(row.target) > LARGEST:
                self._complain(i, _too_large(row.target), "target")

    def check_covariates(self, names: Sequence[str]) -> None:
        """The same in all rows, and not too large. A name that is wrong in many rows is told once."""
        given = Counter(name for row in self._rows for name in row.covariates)
        lacking = [name for name in names if given[name] < len(self._rows)]
        self._problems.take(len(lacking), (self._lacks(name, given[name]) for name in lacking))
        strange = sorted(given.keys() - set(names))
        told = f"not among the model's covariates ({_some(names) or 'it has none'})"
        self._problems.take(len(strange), (self._has(name, given[name], told) for name in strange))
        for i, row in enumerate(self._rows):
            for name, value in row.covariates.items():
                if abs(value) > LARGEST:
                    self._complain(i, _too_large(value), "covariates", name)

    def _lacks(self, name: str, given: int) -> Problem:
        """That a covariate is missing, at the first row that has it not."""
        row = next(i for i, row in enumerate(self._rows) if name not in row.covariates)
        more = _and_others(len(self._rows) - given - 1)
        return pointer("rows", row, "covariates", name), f"missing{more}; every row needs it"

    def _has(self, name: str, given: int, told: str) -> Problem:
        """That a covariate must not be there, at the first row that has it."""
        row = next(i for i, row in enumerate(self._rows) if name in row.covariates)
        return pointer("rows", row, "covariates", name), f"{told}{_and_others(given - 1)}"

    def check_folds(self, classes: Sequence[str]) -> None:
        """All rows in a fold or none, a patient in one only, two folds at least, and each class in two."""
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
            self._problems.add("/rows", told)
        else:
            self._check_classes_of_folds(classes)

    def _check_classes_of_folds(self, classes: Sequence[str]) -> None:
        """What is learnt from all folds but one has to know every class."""
        folds = defaultdict(set)
        for row in self._rows:
            if row.fold is not None:
                folds[_class_name(row.target)].add(row.fold)
        for name in classes:
            if len(folds[name]) == 1:
                told = f"class {name!r} is in fold {min(folds[name])} alone, and unknown to all other folds"
                self._problems.add("/rows", f"{told}; give rows of it to two folds, or leave it out")

    def check_learnable(self, classes: Sequence[str]) -> None:
        """Enough patients, and targets that differ; of each class two patients."""
        patients = {row.patient for row in self._rows}
        if len(patients) < FEWEST_PATIENTS:
            told = f"{len(patients)} patients; a model needs at least {FEWEST_PATIENTS}, better many more"
            self._problems.add("/rows", told)
        if len(self._rows) > 1 and len({row.target for row in self._rows}) == 1:
            told = f"all targets are {self._rows[0].target}: there is nothing to learn"
            self._problems.add("/rows", told)
        members = defaultdict(set)
        for row in self._rows:
            members[_class_name(row.target)].add(row.patient)
        for name in classes:
            if len(members[name]) < 2:
                told = f"class {name!r} has {len(members[name])} patients; it needs two, or leave it out"
                self._problems.add("/rows", told)

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
        """There, read, sound, and of one number of channels."""
        channels = {
            id_: channels_of(record.stored)
            for id_, record in self._records.items()
            if record and record.stored
        }
        usual = Counter(channels.values()).most_common(1)[0][0] if channels else 0
        for i, row in enumerate(self._rows):
            record = self._records[row.volume_id]
            if record is None:
                self._complain(i, f"there is no volume {row.volume_id!r}; send the scan first", "volume_id")
            elif record.state is VolumeState.VALIDATING:
                told = f"volume {row.volume_id!r} is still being read"
                self._too_early.add(f"/rows/{i}/volume_id", told)
            elif record.state is not VolumeState.READY:
                why = f": {record.error['detail']}" if record.error else ""
                self._complain(i, f"volume {row.volume_id!r} is {record.state}{why}", "volume_id")
            elif channels[row.volume_id] != usual:
                told = f"{channels[row.volume_id]} values per voxel, most of the others have {usual}"
                self._complain(i, told, "volume_id")

    def _check_patients(self) -> None:
        """Each scan of one patient, under whatever ids its voxels were sent."""
        seen: dict[str, int] = {}
        for i, row in enumerate(self._rows):
            before = seen.setdefault(self._voxels(row), i)
            other = self._rows[before]
            if other.patient != row.patient:
                same = "scan" if other.volume_id == row.volume_id else "voxels"
                told = f"the same {same} as in row {before}, which is of patient {other.patient!r}"
                self._complain(i, told, "patient")

    def _check_repetitions(self) -> None:
        """No question twice."""
        asked: dict[tuple[Any, ...], int] = {}
        for i, row in enumerate(self._rows):
            question = (self._voxels(row), row.patient, *sorted(row.covariates.items()))
            if (before := asked.setdefault(question, i)) != i:
                same = "scan" if self._rows[before].volume_id == row.volume_id else "voxels"
                self._complain(i, f"the same {same} and covariates as in row {before}")

    def _voxels(self, row: Row) -> str:
        """What tells a row's voxels from all others; its scan's id where they have not been read."""
        record = self._records[row.volume_id]
        return record.stored.digest if record and record.stored else row.volume_id

    def _complain(self, row: int, what: str, *where: str) -> None:
        self._problems.add(pointer("rows", row, *where), what)


class _Problems:
    """What is wrong: the `first` so many, and how many `more`."""

    def __init__(self) -> None:
        self.first: list[Problem] = []
        self.more = 0

    def add(self, where: str, what: str) -> None:
        """One problem."""
        self.take(1, [(where, what)])

    def take(self, count: int, problems: Iterable[Problem]) -> None:
        """So many problems, of which no more are looked at than are kept."""
        kept = list(islice(problems, MOST_PROBLEMS - len(self.first)))
        self.first += kept
        self.more += count - len(kept)


def _some(names: Sequence[str]) -> str:
    """The first names of perhaps many."""
    more = f", and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _and_others(rows: int) -> str:
    """That other rows are like the one that is named."""
    return f" here and in {rows:,} other row{'s' if rows > 1 else ''}" if rows else ""


def _too_large(number: float) -> str:
    return f"{number:g} is beyond {LARGEST:g}, the largest number that is taken; use another unit"


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
