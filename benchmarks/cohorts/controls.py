"""What simple readers find in the made cohorts: `python -m benchmarks cohorts.controls`.

R2 on the volumes of people who were not learned from. All but the oracles should find nothing; the oracles,
which know how the volumes are made, show that the target is there to be found. Ridge regression in closed
form, its strength chosen by 5 folds of people among those learned from.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float64

from benchmarks.cohorts.made import Kept, MadeCohort, folds
from benchmarks.cohorts.textures import Spread, spread
from models.types import Array

STRENGTHS = 10.0 ** np.arange(-3, 8)
Features = Callable[[Any, Array], Array]
"""A source and its voxels (Z, Y, X), float32, to numbers (k,)."""


def run(*, size: int = 32, seed: int = 0) -> dict[str, Any]:
    """R2 of every control."""
    cohort = spread(size, seed=seed)
    return {"size": size, "seed": seed, "spread": scores(cohort, SPREAD)}


def show(result: dict[str, Any]) -> None:
    """Print the table."""
    for name in ("spread",):
        print(f"\n{name} at {result['size']}^3, seed {result['seed']}: R2 on other people")
        for control, score in result[name].items():
            print(f"  {control:<44}{score:7.3f}")


def scores(cohort: MadeCohort, controls: dict[str, Features]) -> dict[str, float]:
    """R2 of ridge regression on each control's features, learned and tested by the cohort's split."""
    rows: dict[str, list[Array]] = {name: [] for name in controls}
    for source in cohort.sources:
        voxels = (source if isinstance(source, Kept) else source.dense()).array  # type: ignore[attr-defined]
        for name, features in controls.items():
            rows[name].append(features(source, voxels))
    return {name: ridge_score(np.array(found, np.float64), cohort) for name, found in rows.items()}


def ridge_score(features: Float64[Array, "n k"], cohort: MadeCohort) -> float:
    """R2 on the test volumes."""
    train, test, y = cohort.split.train, cohort.split.test, cohort.targets
    people = [cohort.patients[row] for row in train.tolist()]
    inner = folds(people, min(5, len(set(people))), 0)
    errors = np.zeros(len(STRENGTHS))
    for part in inner:
        found = ridge(
            features[train[part.train]], y[train[part.train]], features[train[part.test]], STRENGTHS
        )
        errors += ((found - y[train[part.test]]) ** 2).sum(axis=1)
    found = ridge(features[train], y[train], features[test], STRENGTHS[[errors.argmin()]])[0]
    return float(1 - ((found - y[test]) ** 2).sum() / ((y[train].mean() - y[test]) ** 2).sum())


def ridge(
    known: Float64[Array, "n k"],
    targets: Float64[Array, " n"],
    asked: Float64[Array, "m k"],
    strengths: Array,
) -> Float64[Array, "s m"]:
    """Predictions for each strength, times the number of features, of standardised features."""
    mean, std = known.mean(axis=0), known.std(axis=0)
    use = std > 1e-9 * np.abs(mean).max(initial=1e-9)
    a, b = ((rows[:, use] - mean[use]) / std[use] for rows in (known, asked))
    values, vectors = np.linalg.eigh(a @ a.T / max(1, a.shape[1]))
    across, centred = b @ a.T @ vectors / max(1, a.shape[1]), vectors.T @ (targets - targets.mean())
    return np.stack([across @ (centred / (np.maximum(values, 0) + s)) for s in strengths]) + targets.mean()


def averaged(voxels: Array, by: int) -> Array:
    """Means of aligned blocks."""
    z, y, x = (n // by for n in voxels.shape)
    means: Array = voxels.reshape(z, by, y, by, x, by).mean(axis=(1, 3, 5))
    return means


def intensities(voxels: Array) -> Array:
    """Mean, deviation, skewness, kurtosis and percentiles."""
    values = voxels.astype(np.float64).ravel()
    mean, std = values.mean(), values.std()
    z = (values - mean) / std
    return np.r_[mean, std, (z**3).mean(), (z**4).mean(), np.percentile(values, [5, 25, 50, 75, 95])]


def halves(voxels: Array) -> tuple[Array, Array]:
    """Left and right."""
    middle = voxels.shape[2] // 2
    return voxels[..., :middle], voxels[..., middle:]


def roughness(voxels: Array) -> Array:
    """Mean square differences of neighbours along each axis."""
    return np.array([np.square(np.diff(voxels, axis=k)).mean() for k in range(3)])


def rough_halves(voxels: Array) -> Array:
    """The roughness of left and right."""
    return np.concatenate([roughness(half) for half in halves(voxels)])


def texture_energy(source: Spread, voxels: Array) -> Array:
    """How much the checkerboard finds in 3^3 windows, its mean size over each half of the brain."""
    signs = (1 - 2 * (np.indices(voxels.shape).sum(axis=0) % 2)).astype(np.float32)
    windows = np.lib.stride_tricks.sliding_window_view
    found = np.pad(voxels * signs, 1)
    for k in range(3):
        found = windows(found, 3, axis=k).mean(axis=-1)
    blocks = np.arange(source.scene.blocks)[None]
    brain = source.scene.brain((blocks, blocks, blocks))[0].repeat(2, 0).repeat(2, 1).repeat(2, 2)
    return np.array(
        [half[inside].mean() for half, inside in zip(halves(np.abs(found)), halves(brain), strict=True)]
    )


def _averaged_ridge(by: int) -> Features:
    return lambda source, voxels: averaged(voxels, by).ravel()


SPREAD: dict[str, Features] = {
    "intensity statistics, whole": lambda source, voxels: intensities(voxels),
    "intensity statistics, per half": lambda source, voxels: np.concatenate(
        [intensities(half) for half in halves(voxels)]
    ),
    "ridge on voxels at 1/8": _averaged_ridge(8),
    "ridge on voxels at 1/4": _averaged_ridge(4),
    "ridge on voxels at 1/2": _averaged_ridge(2),
    "ridge on voxels at full resolution": _averaged_ridge(1),
    "roughness per half at 1/2": lambda source, voxels: rough_halves(averaged(voxels, 2)),
    "roughness per half of every second voxel": lambda source, voxels: rough_halves(voxels[::2, ::2, ::2]),
    "roughness per half at full resolution": lambda source, voxels: rough_halves(voxels),
    "oracle: texture energy, whole": lambda source, voxels: texture_energy(source, voxels).mean(
        keepdims=True
    ),
    "oracle: texture energy, left and right": texture_energy,
}
