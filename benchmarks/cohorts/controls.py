"""What simple readers find in the made cohorts: `python -m benchmarks cohorts.controls`.

R2 on the volumes of people who were not learned from. All but the oracles should find nothing; the oracles,
which know how the volumes are made, show that the target is there to be found. Ridge regression in closed
form, its strength chosen by 5 folds of people among those learned from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from benchmarks.cohorts.lattices import Stretched, shrunk
from benchmarks.cohorts.lesions import AMPLITUDE, REACH, SPOT, Spots, spots
from benchmarks.cohorts.made import Kept, MadeCohort
from benchmarks.cohorts.textures import Spread, spread
from benchmarks.targets import Target, judged, show_targets
from models.learning.folds import patient_folds
from models.learning.ridge import RidgePath, out_of_fold
from models.types import Array

PENALTIES = 10.0 ** np.arange(-3, 8)
FARTHEST = 3.0
"""Standard deviations: what is farther away counts as this far (air that is tissue in another head)."""
TARGETS = (Target("spread_intensity_statistics", 0.05), Target("spread_voxel_ridge", 0.05))
"""Of *spread*: neither must find the target."""
Features = Callable[[Any, Array], Array]
"""A source and its voxels (Z, Y, X), float32, to numbers (k,)."""


def run(*, size: int = 32, spots_size: int = 64, seed: int = 0) -> dict[str, Any]:
    """R2 of every control."""
    made = {
        f"spread at {size}^3": scores(spread(size, seed=seed), SPREAD),
        f"spots at {spots_size}^3": scores(spots(spots_size, seed=seed), SPOTS),
    }
    found = next(iter(made.values()))
    keys = {
        "spread_intensity_statistics": most(found, "intensity statistics"),
        "spread_voxel_ridge": most(found, "ridge on voxels"),
    }
    return {"seed": seed, **keys, "targets": judged(keys, TARGETS), "r2": made}


def most(found: Mapping[str, float], kind: str) -> float:
    """The largest R2 of the controls of a kind."""
    return max(score for control, score in found.items() if control.startswith(kind))


def show(result: dict[str, Any]) -> None:
    """Print the tables."""
    for cohort, rows in result["r2"].items():
        print(f"\n{cohort}, seed {result['seed']}: R2 on other people")
        for control, score in rows.items():
            print(f"  {control:<44}{score:7.3f}")
    show_targets(result["targets"])


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
    mean, std = features[train].mean(axis=0), features[train].std(axis=0)
    use = std > 1e-9 * np.abs(mean).max()
    rows = np.clip((features[:, use] - mean[use]) / std[use], -FARTHEST, FARTHEST) / max(1, use.sum()) ** 0.5
    free, people = np.empty((len(y), 0)), [cohort.patients[row] for row in train.tolist()]
    folds = patient_folds(people, min(5, len(set(people))), seed=0)
    told = out_of_fold(rows[train], free[train], y[train], folds, PENALTIES)
    best = PENALTIES[[np.square(told - y[train, None]).sum(axis=0).argmin()]]
    found = RidgePath.of(rows[train], free[train], y[train]).predictions(rows[test], free[test], best)[:, 0]
    return float(1 - np.square(found - y[test]).sum() / np.square(y[train].mean() - y[test]).sum())


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
    shape = [(z**3).mean(), (z**4).mean()]
    return np.array([mean, std, *shape, *np.percentile(values, [5, 25, 50, 75, 95])])


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


def spot_strengths(source: Spots, voxels: Array) -> Array:
    """What a matched filter finds (near dark, near bright, far dark, far bright), above half a spot's height.

    In the deep white matter of the head, brought to the voxels.
    """
    return _strengths(voxels, _zones(source, len(voxels)), 0.5 * AMPLITUDE)


def coarse_strengths(source: Spots, voxels: Array) -> Array:
    """The same at half resolution, above a tenth of a spot's height."""
    coarse = averaged(voxels, 2)
    return _strengths(coarse, _zones(source, len(coarse)), 0.1 * AMPLITUDE)


def _strengths(voxels: Array, zones: Sequence[Array], floor: float) -> Array:
    found = matched(voxels)
    over = {sign: np.maximum(sign * found - floor, 0) for sign in (-1, 1)}
    return np.array([over[sign][zone].sum() for zone in zones for sign in (-1, 1)])


def matched(voxels: Array) -> Array:
    """How high a spot around each voxel would be, by least squares; the volume goes on beyond its border."""
    kernel = np.zeros(voxels.shape, np.float32)
    kernel[: len(SPOT), : len(SPOT), : len(SPOT)] = SPOT
    kernel = np.roll(kernel, [-REACH] * 3, axis=(0, 1, 2))
    product = np.fft.rfftn(voxels) * np.conj(np.fft.rfftn(kernel))
    return np.asarray(np.fft.irfftn(product, voxels.shape, axes=(0, 1, 2)) / np.square(SPOT).sum())


def _zones(source: Spots, size: int) -> list[Array]:
    """Where spots may lie, near and far, at `size`^3."""
    axis = np.arange(size)[None]
    shares = (
        Stretched(shrunk(zone, size), (size,) * 3)((axis, axis, axis))[0] for zone in source.scene.zones
    )
    return [share > 0.25 for share in shares]


def _averaged_ridge(by: int) -> Features:
    return lambda source, voxels: averaged(voxels, by).ravel()


BLIND: dict[str, Features] = {
    "intensity statistics, whole": lambda source, voxels: intensities(voxels),
    "intensity statistics, per half": lambda source, voxels: np.concatenate(
        [intensities(half) for half in halves(voxels)]
    ),
    "ridge on voxels at 1/8": _averaged_ridge(8),
    "ridge on voxels at 1/4": _averaged_ridge(4),
    "ridge on voxels at 1/2": _averaged_ridge(2),
    "ridge on voxels at full resolution": _averaged_ridge(1),
    "roughness per half at 1/2": lambda source, voxels: rough_halves(averaged(voxels, 2)),
}
SPREAD: dict[str, Features] = {
    **BLIND,
    "roughness per half of every second voxel": lambda source, voxels: rough_halves(voxels[::2, ::2, ::2]),
    "roughness per half at full resolution": lambda source, voxels: rough_halves(voxels),
    "oracle: texture energy, whole": lambda source, voxels: texture_energy(source, voxels).mean(
        keepdims=True
    ),
    "oracle: texture energy, left and right": texture_energy,
}
SPOTS: dict[str, Features] = {
    **BLIND,
    "roughness per half at full resolution": lambda source, voxels: rough_halves(voxels),
    "polarity without place": lambda source, voxels: spot_strengths(source, voxels).reshape(2, 2).sum(axis=0),
    "place without polarity": lambda source, voxels: spot_strengths(source, voxels).reshape(2, 2).sum(axis=1),
    "oracle's features at 1/2": coarse_strengths,
    "oracle: polarity and place": spot_strengths,
}
