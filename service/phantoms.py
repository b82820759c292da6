"""A cohort of made heads whose target is known exactly, for trying things out where there is no real one.

Each head has a skull, a brain of uneven brightness, and ventricles, all of its own size. A share of the left
half of the brain, the target, carries a texture of grains whose mean is zero: neither brightness nor shape
tell it. All is drawn from seeds. Nothing that is learnt here holds for people.
"""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float64]

SEED = 20261
SIZE = 32
"""Voxels per axis, of 5.5 mm."""
SPACING_MM = 5.5
AMPLITUDE, NOISE = 30.0, 5.0
GRAIN = 2
"""Voxels that a grain of the texture is wide."""


def write_cohort(folder: Path, patients: int) -> tuple[Path, Path, float]:
    """A table of as many heads as patients, one more head that is not in it, and that one's target.

    Heads are `.nii.gz` files beside the table, whose columns are scan, patient and share.
    """
    shares = np.random.default_rng(SEED).permutation(np.linspace(0, 1, patients + 1)).tolist()
    names = [f"head-{number:02}.nii.gz" for number in range(patients + 1)]
    for number, (name, share) in enumerate(zip(names, shares, strict=True)):
        _write(folder / name, head(number, share))
    table = folder / "cohort.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["scan", "patient", "share"])
        rows = zip(names[:-1], shares[:-1], strict=True)
        writer.writerows([name, name[:7], f"{share:.6f}"] for name, share in rows)
    return table, folder / names[-1], shares[-1]


def head(number: int, share: float, size: int = SIZE) -> Field:
    """Intensities (x, y, z) of the head of this number; x grows to the right, so that low x is left.

    The same number gives the same head, whatever share of its left half is involved.
    """
    generator = np.random.default_rng([SEED, number])
    radii = 0.9 * generator.uniform(0.92, 1.0, 3)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, size) / radius for radius in radii), indexing="ij")
    from_centre = np.sqrt(x**2 + y**2 + z**2)
    brain = from_centre < 0.85
    values = np.where(brain, 100 + 12 * _smooth(generator, size), 0.0)
    values[np.square(x / 0.3) + np.square(y / 0.45) + np.square(z / 0.2) < 1] = 45.0
    values[(from_centre >= 0.85) & (from_centre < 1)] = 180.0
    values += AMPLITUDE * _grains(generator, size) * _involved(generator, brain & (x < 0), share)
    return values + generator.normal(0, NOISE, values.shape)


def _smooth(generator: np.random.Generator, size: int) -> Field:
    """A field that varies slowly, of deviation 1."""
    waves = np.fft.rfftn(generator.normal(size=(size,) * 3))
    frequencies = np.meshgrid(
        np.fft.fftfreq(size), np.fft.fftfreq(size), np.fft.rfftfreq(size), indexing="ij"
    )
    squares = np.square(np.stack(frequencies)).sum(axis=0)
    field = np.fft.irfftn(waves * np.exp(-squares * size**2 / 8), (size,) * 3, axes=(0, 1, 2))
    return np.asarray((field - field.mean()) / field.std())


def _grains(generator: np.random.Generator, size: int) -> Field:
    """Plus and minus one, at random from grain to grain."""
    signs = generator.choice([-1.0, 1.0], (-(-size // GRAIN),) * 3)
    grown = signs.repeat(GRAIN, 0).repeat(GRAIN, 1).repeat(GRAIN, 2)
    return np.asarray(grown[:size, :size, :size])


def _involved(generator: np.random.Generator, region: NDArray[np.bool_], share: float) -> NDArray[np.bool_]:
    """A share of a region, in patches."""
    patches = _smooth(generator, len(region))
    threshold = np.quantile(patches[region], 1 - share)
    return region & (patches > threshold)


def _write(path: Path, values: Field) -> None:
    import nibabel  # noqa: PLC0415 - slow to import, and only needed here

    image = nibabel.Nifti1Image(values.round().astype(np.int16), np.diag([SPACING_MM] * 3 + [1]))
    path.write_bytes(gzip.compress(image.to_bytes(), compresslevel=1, mtime=0))
