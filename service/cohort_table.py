"""A cohort as a CSV file: one row per question, with columns `scan`, `patient`, a target, and covariates.

`scan` is a path (relative to the file's folder) or the id of a volume; `patient` is who it is of: all rows of
a patient stay together when a cohort is split. `fold`, where there is such a column, numbers the parts of a
split of one's own. All other columns are covariates, and numbers.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCAN, PATIENT, FOLD = "scan", "patient", "fold"
FOLD_NUMBER = re.compile(r"[0-9]{1,9}")
VOLUME_ID = re.compile(r"vol_[0-9a-f-]{36}")
LARGEST_BYTES = 64 << 20
LONGEST_CELL = 1000
"""Characters of a cell: a path, a name or a number."""
SHOWN = 12
"""So many problems of a table are told; the others are counted."""


class BadTable(Exception):
    """A table that cannot be used. `problems` name the line, the column, and the cure."""

    def __init__(self, path: Path, problems: Sequence[str]) -> None:
        more = f"; and {len(problems) - SHOWN:,} more" if len(problems) > SHOWN else ""
        super().__init__(f"{path}: {'; '.join(problems[:SHOWN])}{more}")
        self.problems = tuple(problems)


@dataclass(frozen=True)
class TableRow:
    """One line of the file. `target` is a number, or the name of a class."""

    line: int
    scan: str
    patient: str
    target: float | str
    covariates: dict[str, float]
    fold: int | None


@dataclass(frozen=True)
class CohortTable:
    """A whole file, in its order."""

    path: Path
    target: str
    rows: tuple[TableRow, ...]

    @property
    def lines_of_scans(self) -> dict[str, int]:
        """The distinct scans, as they are written, with the line of each that names it first."""
        return {row.scan: row.line for row in reversed(self.rows)}

    def file_of(self, scan: str) -> Path | None:
        """Where a scan lies on this machine; None for the id of a volume."""
        return None if VOLUME_ID.fullmatch(scan) else self.path.parent / scan

    def parameters(self, volume_ids: Mapping[str, str]) -> list[dict[str, Any]]:
        """The rows as a job takes them, once each scan has the id of a volume."""
        return [
            {
                "volume_id": volume_ids[row.scan],
                "patient": row.patient,
                "target": row.target,
                "covariates": row.covariates,
                **({} if row.fold is None else {"fold": row.fold}),
            }
            for row in self.rows
        ]


@dataclass(frozen=True)
class Columns:
    """What the columns of a table mean.

    `covariates` are those to use; None: all that are nothing else. `categories` give the words of columns
    that hold words, the first of two meaning 0. With `classes` the target is the name of a class.
    """

    target: str = "target"
    covariates: tuple[str, ...] | None = None
    categories: Mapping[str, tuple[str, str]] | None = None
    classes: bool = False


def read_table(path: Path, columns: Columns) -> CohortTable:
    """A cohort from a CSV file in UTF-8, its columns parted by comma, semicolon or tab.

    Raises BadTable, naming everything that is wrong with it at once.
    """
    header, lines = _split(path)
    chosen = _covariates(path, header, columns)
    problems: list[str] = []
    rows = []
    for line, cells in lines:
        reader = _Line(line, cells, problems)
        if len(cells) != len(header):
            problems.append(f"line {line}: {len(cells)} cells, but the header has {len(header)}")
            continue
        by_name = dict(zip(header, cells, strict=True))
        if not reader.short(by_name):
            continue
        rows.append(
            TableRow(
                line,
                reader.text(SCAN, by_name),
                reader.text(PATIENT, by_name),
                reader.target(by_name, columns),
                {name: reader.covariate(name, by_name, columns) for name in chosen},
                reader.fold(by_name) if FOLD in header else None,
            )
        )
    table = CohortTable(path, columns.target, tuple(rows))
    problems += _missing_files(table)
    if not rows and not problems:
        problems.append("there are no rows below the header")
    if problems:
        raise BadTable(path, problems)
    return table


class _Line:
    """Reads the cells of one line; what is wrong goes to `problems`."""

    def __init__(self, line: int, cells: Sequence[str], problems: list[str]) -> None:
        self._line, self._cells, self._problems = line, cells, problems

    def short(self, cells: Mapping[str, str]) -> bool:
        """Whether no cell is too long to be read."""
        long = [name for name, cell in cells.items() if len(cell) > LONGEST_CELL]
        for name in long:
            self._complain(name, f"{len(cells[name]):,} characters; {LONGEST_CELL:,} at most")
        return not long

    def text(self, name: str, cells: Mapping[str, str]) -> str:
        """A cell that must not be empty."""
        if not cells[name]:
            self._complain(name, "is empty")
        return cells[name]

    def target(self, cells: Mapping[str, str], columns: Columns) -> float | str:
        """The answer: a number, or the name of a class."""
        name = columns.target
        return self.text(name, cells) if columns.classes else self._number(name, cells[name], "")

    def covariate(self, name: str, cells: Mapping[str, str], columns: Columns) -> float:
        """A number, or 0 or 1 for one of a category's two words."""
        words = (columns.categories or {}).get(name)
        if words is None:
            cure = f"; for words use --category {name}=A,B, to leave the column out --covariates"
            return self._number(name, cells[name], cure)
        if cells[name] not in words:
            self._complain(name, f"{cells[name]!r} is neither {words[0]!r} nor {words[1]!r}")
            return math.nan
        return float(words.index(cells[name]))

    def fold(self, cells: Mapping[str, str]) -> int | None:
        """The number of a part."""
        if not FOLD_NUMBER.fullmatch(cells[FOLD]):
            self._complain(FOLD, f"{cells[FOLD]!r} is no number of a fold (0, 1, 2, ... 999999999)")
            return None
        return int(cells[FOLD])

    def _number(self, name: str, text: str, cure: str) -> float:
        try:
            value = math.nan if "_" in text else float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            what = f"{text!r} is no finite number" if text else "is empty"
            self._complain(name, f"{what}{cure}")
        return value

    def _complain(self, name: str, what: str) -> None:
        self._problems.append(f"line {self._line}, {name}: {what}")


def _split(path: Path) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """The header, and the other lines that are not empty with their numbers; cells without outer blanks."""
    if not path.is_file():
        raise BadTable(path, ["no such file; give the path of a CSV table"])
    if path.stat().st_size > LARGEST_BYTES:
        raise BadTable(path, [f"larger than {LARGEST_BYTES >> 20} MiB; is this a table?"])
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError:
        raise BadTable(path, ["not UTF-8; save it as CSV in UTF-8"]) from None
    first = re.split("[\r\n]", text, maxsplit=1)[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=first.count), strict=True)
    try:
        lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader]
    except csv.Error as error:
        raise BadTable(path, [f"line {reader.line_num}: {error}"]) from None
    header = lines[0][1] if lines else []
    if len(set(header)) < len(header) or "" in header:
        raise BadTable(path, ["line 1: two columns have one name, or one has none"])
    return header, ((number, cells) for number, cells in lines[1:] if any(cells))


def _covariates(path: Path, header: Sequence[str], columns: Columns) -> tuple[str, ...]:
    """The columns that are covariates. Raises BadTable for names that the table has not."""
    own = {SCAN, PATIENT, FOLD, columns.target}
    free = tuple(name for name in header if name not in own)
    chosen = free if columns.covariates is None else columns.covariates
    needed = [SCAN, PATIENT, columns.target, *chosen, *(columns.categories or {})]
    missing = [name for name in dict.fromkeys(needed) if name not in header]
    if missing:
        told = f"line 1: no column {', '.join(map(repr, missing))}; there are {', '.join(map(repr, header))}"
        raise BadTable(path, [told])
    if taken := [name for name in chosen if name in own]:
        raise BadTable(path, [f"{', '.join(taken)}: no covariate, since it has another meaning"])
    return chosen


def _missing_files(table: CohortTable) -> list[str]:
    """One problem for each scan that is not there."""
    return [
        f"line {line}, {SCAN}: there is no {file}"
        for scan, line in sorted(table.lines_of_scans.items(), key=lambda item: item[1])
        if scan and (file := table.file_of(scan)) is not None and not _is_there(file)
    ]


def _is_there(file: Path) -> bool:
    """Whether there is such a file; none has a name that is too long for the system."""
    try:
        return file.exists()
    except OSError:
        return False
