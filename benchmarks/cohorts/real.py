"""The real labelled cohorts, as they lie: raw scans, who they are of, targets, and what simple readers need.

Scans are neither resampled nor scaled: `grid` says where their voxels are. What each cohort's trap is stands
at its loader. None of them supports a claim about a health indicator; they show whether a regressor beats
simple readers on real data.
"""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from benchmarks.cohorts.made import boxes_of
from benchmarks.fields import DATA
from models.intensities import IntensityStatistics
from models.learning.cohort import Cohort, Inputs
from models.learning.preparation import RawScan
from models.types import Array, CubeSource, Int64, Size
from storage.grid import VoxelGrid

KEPT_SCANS = 64
"""Scans that stay in memory after they were read."""
SEX = {"F": 0.0, "M": 1.0}
Row = Mapping[str, str]


class Scan:
    """A NIfTI file as a source of boxes, read when it is first looked at; 0 beyond its border.

    `grid.affine` takes (x, y, z) to RAS+ mm. Values are as stored where the file has no slope, else float32.
    """

    channels = 1

    def __init__(self, path: Path, modality: str | None = None) -> None:
        import nibabel

        header: Any = nibabel.load(path)
        x, y, z = header.shape
        self.path, self.modality = path, modality
        self.shape: tuple[int, int, int] = (z, y, x)
        self.grid = VoxelGrid.from_affine(self.shape, header.affine)

    @property
    def array(self) -> Array:
        """All voxels, (z, y, x)."""
        return _voxels(self.path)

    def raw(self) -> RawScan:
        """The scan as preparation takes it. Reads all voxels, for their statistics."""
        voxels = self.array.astype(np.float64)
        low, high, mean, std = (
            float(value) for value in (voxels.min(), voxels.max(), voxels.mean(), voxels.std())
        )
        statistics = IntensityStatistics(low, high, mean, std)
        return RawScan(self, statistics, self.grid.spacing, self.grid.matrix, self.modality)

    def cubes(self, origins: Int64, size: Size) -> Array:
        """Boxes with the lowest corners `origins` (n, 3): (n, 1, Z, Y, X)."""
        return boxes_of(self.array, origins, (size,) * 3 if isinstance(size, int) else size)[:, None]


@lru_cache(KEPT_SCANS)
def _voxels(path: Path) -> Array:
    import nibabel

    image: Any = nibabel.load(path)
    plain = (image.dataobj.slope, image.dataobj.inter) == (1, 0)
    voxels = np.asanyarray(image.dataobj) if plain else image.get_fdata(dtype=np.float32)
    voxels = np.ascontiguousarray(voxels.T.astype(voxels.dtype.newbyteorder("="), copy=False))
    voxels.flags.writeable = False
    return voxels


@dataclass(frozen=True, eq=False)
class Entry:
    """One scan with its answer. `covariates` and `baselines` are numbers by name, `labels` words by name."""

    name: str
    patient: str
    scan: Scan
    target: float
    covariates: Mapping[str, float] = field(default_factory=dict)
    baselines: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class RealCohort:
    """Entries with the same covariates and baselines; `dropped` counts rows by the column they lack."""

    name: str
    target: str
    unit: str
    entries: tuple[Entry, ...]
    dropped: Mapping[str, int]

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def patients(self) -> tuple[str, ...]:
        """Who each scan is of."""
        return tuple(entry.patient for entry in self.entries)

    @property
    def targets(self) -> Float64[Array, " n"]:
        """In `unit`."""
        return np.array([entry.target for entry in self.entries])

    @property
    def covariates(self) -> Float64[Array, "n t"]:
        """In the order of the first entry's names."""
        return _table([entry.covariates for entry in self.entries])

    @property
    def baselines(self) -> Float64[Array, "n b"]:
        """What simple readers read instead of the scan, in the order of the first entry's names."""
        return _table([entry.baselines for entry in self.entries])

    def cohort(self, prepared: Sequence[CubeSource] | None = None) -> Cohort:
        """One row per scan, of the scans as prepared. Raises InvalidShape where they differ in shape."""
        scans = [entry.scan for entry in self.entries] if prepared is None else prepared
        return Cohort(Inputs.of(scans, self.covariates), self.patients, self.targets)


def ixi_age(folder: Path | None = None) -> RealCohort:
    """33 T1 heads at 2 mm; age in years; sex; baselines: six volumes as shares of the skull's.

    The trap: the raw intensity scale tells the youngest (`labels["intensity_scale_group"]`).
    """
    names = ("brain", "grey", "white", "ventricles", "lateral_ventricles", "hippocampus")

    def entry(row: Row, folder: Path) -> Entry:
        skull = _number(row, "icv_mm3")
        return Entry(
            row["subject"],
            row["subject"],
            Scan(folder / row["file"], "MR"),
            _number(row, "age_years"),
            {"sex": _sex(row)},
            {f"baseline_{name}": _number(row, f"{name}_mm3") / skull for name in names},
            {"intensity_scale_group": row["intensity_scale_group"], "segmentation": row["segmentation"]},
        )

    return _loaded("ixi_age", "age", "years", folder or DATA / "dev/cohort_ixi_age", entry)


def hippocampus(folder: Path | None = None) -> RealCohort:
    """140 T1 crops around the hippocampus; its volume in mm3; baselines: the sides of the crop.

    The traps: the crop was made to fit, and tells the volume; scales of intensity differ wildly.
    """

    def entry(row: Row, folder: Path) -> Entry:
        scan = Scan(folder / row["file"], "MR")
        sides = dict(zip(("baseline_z", "baseline_y", "baseline_x"), map(float, scan.shape), strict=True))
        return Entry(row["case"], row["case"], scan, _number(row, "hippocampus_mm3"), baselines=sides)

    return _loaded("hippocampus", "volume", "mm3", folder or DATA / "dev/cohort_msd_hippocampus", entry)


def soop(folder: Path | None = None) -> RealCohort:
    """240 masks of stroke lesions; NIHSS, 0 to 42; age, sex; baselines: log lesion volume, and age.

    Ages above 88 are given as `89+`, taken as 89.
    """

    def entry(row: Row, folder: Path) -> Entry:
        age = row["age_years"]
        years = _number({"age": age.removesuffix("+")}, "age")
        return Entry(
            row["subject"],
            row["subject"],
            Scan(folder / row["file"]),
            _number(row, "nihss"),
            {"age": years, "sex": _sex(row)},
            {"baseline_log_lesion_ml": math.log(_number(row, "lesion_ml")), "baseline_age": years},
            notes=(f"age {age} taken as {years:g}",) if age.endswith("+") else (),
        )

    return _loaded("soop", "nihss", "points", folder or DATA / "dev/cohort_soop_lesion", entry)


REAL: dict[str, Callable[[], RealCohort]] = {"ixi_age": ixi_age, "hippocampus": hippocampus, "soop": soop}


class _Missing(Exception):
    """A row lacks a value; its argument says which."""


def _loaded(
    name: str, target: str, unit: str, folder: Path, entry: Callable[[Row, Path], Entry]
) -> RealCohort:
    """The rows of `labels.tsv` that lack nothing. Raises FileNotFoundError, naming the cohort."""
    labels = folder / "labels.tsv"
    if not labels.is_file():
        raise FileNotFoundError(f"{folder.name}/labels.tsv is not under TOMOTRAIN_DATA or ../shared/data")
    with labels.open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    entries, dropped = list[Entry](), Counter[str]()
    for row in rows:
        try:
            entries.append(entry(row, folder))
        except _Missing as missing:
            dropped[str(missing)] += 1
    return RealCohort(name, target, unit, tuple(entries), dropped)


def _number(row: Row, column: str) -> float:
    if row[column] in ("", "n/a"):
        raise _Missing(column)
    return float(row[column])


def _sex(row: Row) -> float:
    if row["sex"] not in SEX:
        raise _Missing("sex")
    return SEX[row["sex"]]


def _table(rows: Sequence[Mapping[str, float]]) -> Float64[Array, "n k"]:
    names = list(rows[0]) if rows else []
    return np.array([[row[name] for name in names] for row in rows], np.float64).reshape(
        len(rows), len(names)
    )
