"""Requests that the job `embed` admits and that are unkind: odd volumes, extreme settings, a late cancel."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from model_fields import ArraySource

from models.cpic.embed import EmbedConfig, embed, estimate
from models.intensities import IntensityStatistics
from models.types import Array

FLAT = EmbedConfig(encoder="identity", layout="tt", rank=512, oversampling=8, held_out=50)


class Cancelled(Exception):
    pass


def statistics(volume: Array) -> IntensityStatistics:
    return IntensityStatistics(
        float(volume.min()), float(volume.max()), float(volume.mean()), float(volume.std())
    )


def noise(shape: tuple[int, ...]) -> Array:
    return np.random.default_rng(0).standard_normal(shape)


@pytest.mark.parametrize("layout", ["tt", "qtt"])
@pytest.mark.parametrize("sampling", ["block", "scalar"])
@pytest.mark.parametrize("tolerance", [None, 0.01])
@pytest.mark.parametrize(
    "volume",
    [
        np.zeros((6, 5, 4)),
        np.full((6, 5, 4), 0.1),
        np.pad(np.ones((1, 1, 1)), ((0, 7), (7, 0), (3, 4))),
        noise((8, 8, 8)),
        noise((30, 2, 1, 5)),
        noise((6, 5, 4)) * 1e150,
        noise((6, 5, 4)) * 1e-150,
    ],
    ids=["empty", "constant", "one voxel", "full rank", "30 channels", "huge", "tiny"],
)
def test_odd_volumes_are_embedded_within_what_was_announced(
    volume: Array, tolerance: float | None, sampling: str, layout: str
) -> None:
    config = replace(FLAT, layout=layout, sampling=sampling, tolerance=tolerance)
    source = ArraySource(volume)
    embedding = embed(source, config, statistics(volume))
    announced = estimate(source.shape, source.channels, config)
    assert all(bool(torch.isfinite(core).all()) for core in embedding.train.cores)
    assert embedding.all_sweeps.samples <= announced.all_sweeps.samples
    assert embedding.all_sweeps.unique_samples <= announced.all_sweeps.unique_samples
    scale = float(statistics(volume).standardised(torch.from_numpy(volume)).abs().max())
    assert embedding.certificate.overall.max_error <= (tolerance or 1e-9) * scale


@pytest.mark.parametrize("settings", [{}, {"tolerance": 0.01}], ids=["ranks given", "ranks found"])
def test_work_may_be_ended_within_the_encoding_of_one_core(settings: dict[str, Any]) -> None:
    volume = noise((40, 40, 40))
    config = EmbedConfig(layout="tt", rank=64, n_dim=4, held_out=50, **settings)
    source, calls = ArraySource(volume), 0

    def cancel(phase: str, done: int, total: int | None) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            assert (phase, done) == ("adapting" if settings else "sampling", 0)
            raise Cancelled

    with pytest.raises(Cancelled):
        embed(source, config, statistics(volume), report=cancel)


def test_every_fitted_bond_is_a_place_where_work_may_be_ended() -> None:
    volume, seen = noise((8, 8, 8)), []
    config = replace(FLAT, layout="qtt", rank=4, oversampling=2)
    embedding = embed(ArraySource(volume), config, statistics(volume), report=lambda *args: seen.append(args))
    bonds = len(embedding.sets.right)
    assert seen.count(("sampling", bonds, bonds)) >= 1 + bonds


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 50), (2, 1, 1)])
@pytest.mark.parametrize("encoder", ["identity", "random_cpic"])
def test_a_tolerance_is_foreseen_for_volumes_of_one_mode(shape: tuple[int, int, int], encoder: str) -> None:
    config = EmbedConfig(encoder=encoder, layout="tt", n_dim=3, tolerance=0.1, held_out=10)
    volume = np.arange(np.prod(shape)).reshape(shape).astype(np.int16)
    statistics = IntensityStatistics(
        float(volume.min()), float(volume.max()), float(volume.mean()), float(volume.std())
    )
    embedding = embed(ArraySource(volume), config, statistics)
    assert embedding.all_sweeps.samples <= estimate(shape, 1, config).all_sweeps.samples
