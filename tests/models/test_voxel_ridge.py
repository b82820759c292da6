"""Ridge regression on block means: exact means from bounded reads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from model_fields import ArraySource
from small_cohorts import cohort_of, r2, smooth_scans, textured_scans

from models.errors import InvalidConfig, InvalidShape, SourceFailed
from models.learning.cohort import Inputs
from models.learning.task import Task
from models.regressors.blocks import BlockMeans
from models.regressors.voxel_ridge import VoxelRidge
from models.training import Watch

CPU = torch.device("cpu")


def fitted(cohort: Any, task: Task | None = None, grid: int = 4) -> Any:
    return VoxelRidge(grid).fit(cohort, task or Task(), seed=0, device=CPU, watch=Watch())


@pytest.mark.parametrize("shape", [(70, 13, 9), (5, 12, 24), (33, 1, 7)])
def test_features_are_the_means_of_blocks(shape: tuple[int, int, int]) -> None:
    volume = np.random.default_rng(0).normal(3, 1, (2, *shape)).astype(np.float32)
    source = ArraySource(volume)
    means = BlockMeans(6)(source)
    edges = [np.arange(min(6, n) + 1) * n // min(6, n) for n in shape]
    expected = [
        volume[c, z0:z1, y0:y1, x0:x1].mean(dtype=np.float64)
        for c in range(2)
        for z0, z1 in zip(edges[0], edges[0][1:], strict=False)
        for y0, y1 in zip(edges[1], edges[1][1:], strict=False)
        for x0, x1 in zip(edges[2], edges[2][1:], strict=False)
    ]
    assert np.allclose(means, expected, rtol=1e-12)
    assert source.asked.total() == -(-shape[0] // 32)
    assert max(key[0] for key in source.asked) <= 32


def test_it_tells_a_size_and_not_a_texture_that_is_nothing_in_the_mean() -> None:
    scans, sizes = smooth_scans(40, 0)
    model = fitted(cohort_of(scans, 9 * sizes))
    scans, sizes = smooth_scans(40, 1)
    assert r2(model.predict(cohort_of(scans, sizes).inputs)[:, 0], 9 * sizes) > 0.8
    scans, shares = textured_scans(40, 0)
    model = fitted(cohort_of(scans, shares))
    scans, shares = textured_scans(40, 1)
    assert r2(model.predict(cohort_of(scans, shares).inputs)[:, 0], shares) < 0.1


def test_a_look_says_where_the_answer_comes_from_and_how_far_the_scan_is() -> None:
    scans, sizes = smooth_scans(40, 0)
    model = fitted(cohort_of(scans, sizes))
    near, far = ArraySource(smooth_scans(1, 2)[0][0]), ArraySource(1 - scans[0])
    look = model.look(near, np.zeros(0))
    assert look.voxels == near.volume.size
    assert look.distance_percentile < 100 == model.look(far, np.zeros(0)).distance_percentile
    assert look.saliency.voxels.tolist() == sorted(look.saliency.voxels.tolist())
    assert look.saliency.voxels[[0, -1]].tolist() == [[1, 1, 2], [10, 12, 14]]
    black = Inputs.of([ArraySource(np.zeros_like(scans[0]))])
    explained = model.predict(Inputs.of([near])) - model.predict(black)
    assert look.saliency.weights.sum() == pytest.approx(explained.item(), rel=1e-9)


def test_a_model_is_the_same_after_saving_and_refuses_what_does_not_fit() -> None:
    scans, sizes = smooth_scans(30, 0)
    cohort = cohort_of(scans, sizes > 0.5, np.linspace(0, 1, 30)[:, None])
    task = Task("classes", ("small", "large"))
    model = fitted(cohort, task)
    told = model.predict(cohort.inputs)
    assert ((told[:, 1] > 0.5) == (sizes > 0.5)).mean() > 0.9
    again = VoxelRidge().load(model.tensors(), model.manifest(), task, CPU)
    assert np.array_equal(again.predict(cohort.inputs), told)
    with pytest.raises(InvalidShape):
        VoxelRidge().load(model.tensors(), model.manifest(), Task(), CPU)
    with pytest.raises(InvalidShape):
        model.predict(cohort_of(scans[:, :2, :2, :2], sizes, np.zeros((30, 1))).inputs)
    broken = scans[:1].copy()
    broken[0, 3, 3, 3] = np.inf
    with pytest.raises(SourceFailed, match="slices 0 to 11"):
        model.predict(cohort_of(broken, sizes[:1], np.zeros((1, 1))).inputs)
    for settings in ({"grid": 0}, {"grid": 65}, {"grid": "fine"}, {"blocks": 3}):
        with pytest.raises(InvalidConfig) as error:
            VoxelRidge.from_settings(settings)
        assert error.value.setting == next(iter(settings))
