"""Embedding a volume from end to end."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from model_fields import Array, ArraySource, body
from safetensors.numpy import load, save

from models.cpic.embed import EmbedConfig, Embedding, embed, estimate, features_at
from models.cpic.encoding import batches
from models.cpic.index_sets import nested_samples
from models.errors import InvalidConfig, InvalidShape
from models.intensities import IntensityStatistics
from models.types import CubeSource

SHAPE = (40, 31, 24)
CONFIGS = {
    f"{encoder}-{layout}-{order}": EmbedConfig(
        encoder=encoder, layout=layout, order=order, n_dim=5, rank=6, held_out=200, seed=1
    )
    for encoder in ("identity", "random_cpic")
    for layout, order in (("tt", "sequential"), ("qtt", "sequential"), ("qtt", "interleaved"))
}


def statistics(volume: Array) -> IntensityStatistics:
    return IntensityStatistics(
        float(volume.min()), float(volume.max()), float(volume.mean()), float(volume.std())
    )


def embedded(volume: Array, config: EmbedConfig) -> tuple[Embedding, ArraySource]:
    source = ArraySource(volume)
    return embed(source, config, statistics(volume)), source


@pytest.mark.parametrize("name", CONFIGS)
def test_what_was_looked_at_is_what_was_estimated(name: str) -> None:
    config = CONFIGS[name]
    embedding, source = embedded(body(SHAPE), config)
    foreseen = estimate(SHAPE, 1, config)
    assert embedding.forward.samples == foreseen.forward.samples
    assert embedding.forward.unique_samples == foreseen.forward.unique_samples
    assert embedding.forward.unique_cubes <= foreseen.forward.unique_cubes
    assert embedding.all_sweeps.samples == foreseen.samples
    assert embedding.all_sweeps.unique_samples <= foreseen.all_sweeps.unique_samples
    assert embedding.all_sweeps.unique_cubes <= foreseen.all_sweeps.unique_cubes
    assert len(source.asked) <= foreseen.cubes
    assert embedding.forward.unique_cubes <= embedding.all_sweeps.unique_cubes


@pytest.mark.parametrize("sampling", ["block", "scalar"])
@pytest.mark.parametrize("name", CONFIGS)
def test_each_voxel_is_encoded_exactly_once(
    name: str, sampling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[Array] = []

    def counting(scans: Any, missing: Any) -> Any:
        encoded.extend(missing)
        return batches(scans, missing)

    monkeypatch.setattr("models.cpic.field.batches", counting)
    config = replace(CONFIGS[name], sampling=sampling, sweeps=2)
    embedding, source = embedded(body(SHAPE), config)
    voxels = np.concatenate(encoded)
    assert len(np.unique(voxels)) == len(voxels)
    held_out = len(voxels) - embedding.all_sweeps.unique_cubes
    assert 0 <= held_out <= config.held_out
    if config.encoder == "identity":  # which reads single voxels: nothing but those is read
        read = {tuple(place) for place in np.stack(np.unravel_index(voxels, SHAPE), axis=-1).tolist()}
        assert {asked[3:] for asked in source.asked} == read
        assert set(source.asked.values()) == {1}


def test_the_papers_mode_is_scalar_without_oversampling() -> None:
    config = EmbedConfig(n_dim=5, rank=6, sampling="scalar", oversampling=1, sweeps=2, held_out=100)
    embedding, _ = embedded(body(SHAPE), config)
    sizes = [(len(J), len(K)) for J, K in zip(embedding.sets.left, embedding.sets.right, strict=True)]
    assert all(p == q <= 6 for p, q in sizes)
    assert len(embedding.sets.left) == len(embedding.layout.modes) - 1
    counted = nested_samples(embedding.layout.modes, embedding.sets.sizes)
    assert (embedding.forward.samples, embedding.forward.unique_samples) == counted


@pytest.mark.parametrize("layout", ["tt", "qtt"])
def test_identity_reproduces_a_smooth_volume_as_well_as_its_certificate_says(layout: str) -> None:
    volume = body(SHAPE)
    config = EmbedConfig(
        encoder="identity", layout=layout, rank=20, oversampling=1.5, sweeps=2, held_out=4000
    )
    embedding, _ = embedded(volume, config)
    voxels = np.indices(SHAPE).reshape(3, -1).T
    facts = statistics(volume)
    truth = (volume.ravel() - facts.mean) / facts.std
    error = features_at(embedding.train, embedding.layout, voxels)[:, 0] - truth
    overall = embedding.certificate.overall
    actual = float(np.sqrt(np.square(error).mean()))
    assert actual < 0.15
    assert overall.centred_error == pytest.approx(actual, rel=0.2)
    assert overall.upper_bound is not None
    assert overall.upper_bound >= actual
    z, y, x = overall.worst_voxel
    assert abs(error.reshape(SHAPE)[z, y, x]) >= overall.max_error * (1 - 1e-9)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_same_seed_gives_the_same_bits(name: str) -> None:
    volume = body(SHAPE)
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.get_rng_state()
    first, _ = embedded(volume, CONFIGS[name])
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    second, _ = embedded(volume, CONFIGS[name])
    assert first.manifest() == second.manifest()
    assert all(np.array_equal(a, second.tensors()[key]) for key, a in first.tensors().items())
    other, _ = embedded(volume, replace(CONFIGS[name], seed=2))
    assert other.manifest() != first.manifest()


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_channels_become_features(channels: int) -> None:
    volume = np.stack([body((20, 18, 16)) // (c + 1) for c in range(channels)])
    identity, _ = embedded(volume, EmbedConfig(encoder="identity", rank=12, held_out=500))
    assert identity.layout.features == len(identity.certificate.features) == channels
    assert identity.certificate.overall.centred_error < 0.3  # type: ignore[operator]
    network, _ = embedded(volume, EmbedConfig(n_dim=7, rank=4, held_out=50))
    assert network.layout.shape == (20, 18, 16, 7)


THIN = [(1, 30, 20), (30, 1, 20), (30, 20, 1), (1, 1, 50), (1, 1, 1), (2, 1, 3)]


@pytest.mark.parametrize("shape", THIN)
@pytest.mark.parametrize("layout", ["tt", "qtt"])
@pytest.mark.parametrize("encoder", ["identity", "random_cpic"])
def test_axes_of_one_voxel_are_no_trouble(shape: tuple[int, int, int], layout: str, encoder: str) -> None:
    volume = np.arange(np.prod(shape)).reshape(shape).astype(np.int16)
    embedding, _ = embedded(
        volume, EmbedConfig(encoder=encoder, n_dim=4, layout=layout, rank=100, held_out=100)
    )
    assert embedding.certificate.overall.max_error <= 1e-4  # at full rank nothing is left out
    assert_finite(embedding)


@pytest.mark.parametrize("value", [0, 7, -1000])
@pytest.mark.parametrize("name", CONFIGS)
def test_constant_volumes_give_finite_exact_embeddings(value: int, name: str) -> None:
    volume = np.full((20, 17, 15), value, np.int16)
    source = ArraySource(volume, padding=value)
    embedding = embed(source, CONFIGS[name], statistics(volume))
    assert_finite(embedding)
    overall = embedding.certificate.overall
    assert overall.max_error <= 1e-6  # float32 features of equal cubes are equal; features differ
    assert embedding.certificate.features[0].centred_error == 0


def test_noise_has_no_low_rank_and_the_certificate_says_so() -> None:
    volume = np.random.default_rng(0).integers(-100, 100, (32, 32, 32)).astype(np.int16)
    embedding, _ = embedded(volume, EmbedConfig(encoder="identity", rank=5))
    assert embedding.certificate.overall.centred_error > 0.9  # type: ignore[operator]
    assert_finite(embedding)


def test_an_empty_volume_with_one_bright_voxel_stays_finite() -> None:
    volume = np.zeros((24, 24, 24), np.int16)
    volume[5, 6, 7] = 3000
    for config in CONFIGS.values():
        embedding, _ = embedded(volume, config)
        assert_finite(embedding)


def assert_finite(embedding: Embedding) -> None:
    assert all(np.isfinite(array).all() for array in embedding.tensors().values())
    json.dumps(embedding.manifest(), allow_nan=False)


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_saved_can_be_loaded(name: str) -> None:
    embedding, _ = embedded(body(SHAPE), CONFIGS[name])
    tensors = load(save(embedding.tensors()))
    loaded = Embedding.from_tensors(tensors, json.loads(json.dumps(embedding.manifest())))
    assert loaded.manifest() == embedding.manifest()
    assert loaded.layout == embedding.layout
    assert loaded.certificate == embedding.certificate
    voxels = np.indices(SHAPE).reshape(3, -1).T[::97]
    assert np.array_equal(
        features_at(loaded.train, loaded.layout, voxels),
        features_at(embedding.train, embedding.layout, voxels),
    )
    changed = {**embedding.manifest(), "strides": embedding.manifest()["strides"][::-1]}
    with pytest.raises(InvalidShape, match="are not the layout's"):
        Embedding.from_tensors(tensors, changed)
    del tensors["left.0"]
    with pytest.raises(InvalidShape, match=r"lacks left\.0"):
        Embedding.from_tensors(tensors, embedding.manifest())


def test_ranks_that_bonds_cannot_carry_are_capped_and_reported() -> None:
    embedding, _ = embedded(body((8, 8, 8)), EmbedConfig(encoder="identity", rank=1000, held_out=20))
    assert embedding.ranks <= (2, 4, 8, 16, 16, 8, 4, 2)
    assert embedding.manifest()["ranks"] == list(embedding.ranks)
    assert embedding.certificate.overall.max_error <= 1e-9


class Cancelled(Exception):
    pass


def test_progress_is_counted_and_may_end_the_work() -> None:
    volume, seen = body(SHAPE), []
    config = CONFIGS["random_cpic-qtt-sequential"]
    embed(ArraySource(volume), config, statistics(volume), report=lambda *args: seen.append(args))
    phases = [phase for phase, _, _ in seen]
    assert phases == sorted(phases, key=["sampling", "certificate"].index)
    for phase in ("sampling", "certificate"):
        done = [(d, total) for p, d, total in seen if p == phase]
        assert done[-1][0] == done[-1][1]
        assert [d for d, _ in done] == sorted(d for d, _ in done)
    source = ArraySource(volume)

    def cancel(phase: str, done: int, total: int | None) -> None:
        if done == 10:
            raise Cancelled

    with pytest.raises(Cancelled):
        embed(source, config, statistics(volume), report=cancel)
    assert len(source.asked) < len(embedded(volume, config)[1].asked)


@pytest.mark.parametrize(
    "settings",
    [
        {"encoder": "resnet"},
        {"layout": "tucker"},
        {"order": "backwards"},
        {"rank": 0},
        {"n_dim": 0},
        {"sweeps": 0},
        {"held_out": 3},
        {"confidence": 1.0},
        {"seed": -1},
    ],
)
def test_settings_that_make_no_sense_are_named(settings: dict[str, Any]) -> None:
    (name,) = settings
    with pytest.raises(InvalidConfig, match=name) as caught:
        EmbedConfig(**settings)
    assert caught.value.facts()["setting"] == name


def test_the_largest_volumes_are_estimated_without_reading() -> None:
    paper = EmbedConfig(sampling="scalar", oversampling=1, sweeps=2)
    forward = estimate((8192, 8192, 8192), 1, paper).forward
    assert (forward.samples, forward.unique_samples) == (7488, 3720)  # papers/cpic.md, section 5
    tt = estimate((256, 256, 256), 1, replace(paper, layout="tt"))
    assert (tt.forward.samples, tt.forward.unique_samples) == (53_920, 53_620)
    small, large = (estimate((n,) * 3, 1, EmbedConfig()).memory_bytes for n in (256, 8192))
    assert large < 1.5 * small
    with pytest.raises(InvalidShape, match=r"2\^63"):
        estimate((2**30, 2**30, 2**30), 1, EmbedConfig())


def test_an_array_is_a_cube_source() -> None:
    source: CubeSource = ArraySource(body((4, 4, 4)))
    assert source.cubes(np.array([[-1, -1, -1]]), 3).shape == (1, 1, 3, 3, 3)
