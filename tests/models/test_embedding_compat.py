"""Embeddings that were saved before there were blocks, oversampling and tolerances."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from model_fields import Array, ArraySource, body
from safetensors.numpy import load, save

from models.cpic.embed import EmbedConfig, Embedding, embed, features_at
from models.intensities import IntensityStatistics

SHAPE = (20, 17, 14)
OLD_SETTINGS = {
    "encoder",
    "n_dim",
    "layout",
    "order",
    "rank",
    "sweeps",
    "held_out",
    "confidence",
    "seed",
}
"""All that the configuration in an old manifest holds."""


def volume_of(channels: int) -> Array:
    return np.stack([body(SHAPE) // (c + 1) for c in range(channels)])


def embedded(volume: Array, **settings: Any) -> Embedding:
    config = EmbedConfig(n_dim=5, rank=4, held_out=20, sweeps=2, **settings)
    low, high, mean, std = (float(f(volume)) for f in (np.min, np.max, np.mean, np.std))
    return embed(ArraySource(volume), config, IntensityStatistics(low, high, mean, std))


def as_it_was_saved(embedding: Embedding) -> tuple[dict[str, Array], dict[str, Any]]:
    """Tensors and manifest from the bytes of a file, without the settings that are newer."""
    manifest = json.loads(json.dumps(embedding.manifest()))
    manifest["config"] = {name: manifest["config"][name] for name in OLD_SETTINGS}
    return load(save(embedding.tensors())), manifest


@pytest.mark.parametrize(("encoder", "channels"), [("identity", 1), ("identity", 3), ("random_cpic", 1)])
@pytest.mark.parametrize(("layout", "order"), [("tt", "sequential"), ("qtt", "interleaved")])
def test_a_manifest_without_the_newer_settings_means_scalar_interpolation(
    encoder: str, channels: int, layout: str, order: str
) -> None:
    saved = embedded(
        volume_of(channels), encoder=encoder, layout=layout, order=order, sampling="scalar", oversampling=1.0
    )
    loaded = Embedding.from_tensors(*as_it_was_saved(saved))
    assert loaded.config == saved.config
    assert loaded.layout == saved.layout
    for before, now in zip(
        saved.sets.left + saved.sets.right, loaded.sets.left + loaded.sets.right, strict=True
    ):
        np.testing.assert_array_equal(now, before)
    voxels = np.random.default_rng(0).integers(SHAPE, size=(50, 3))
    np.testing.assert_array_equal(
        features_at(loaded.train, loaded.layout, voxels), features_at(saved.train, saved.layout, voxels)
    )


def test_a_manifest_with_the_newer_settings_keeps_them() -> None:
    for settings in ({"sampling": "block", "oversampling": 1.5}, {"tolerance": 0.1}):
        saved = embedded(volume_of(3), encoder="identity", **settings)
        manifest = json.loads(json.dumps(saved.manifest()))
        assert Embedding.from_tensors(saved.tensors(), manifest).config == saved.config
