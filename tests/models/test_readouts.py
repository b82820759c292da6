"""What is read of a scan: the same in training and after, in blocks; distances, saliency, certificates."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from model_fields import Array, ArraySource
from small_cohorts import Killed, KilledAt, smooth_scans

from models.cpic.encoder import LearnedCpic
from models.cpic.fibres import FibreConfig
from models.cpic.field import EncodedVoxels
from models.cpic.moments import Pooling
from models.cpic.random_voxels import draw
from models.errors import InvalidConfig, InvalidShape
from models.learning.linear import LinearHead
from models.learning.task import Task
from models.regressors.encoders import EncoderConfig, calibrated
from models.regressors.readouts import (
    HELD_OUT,
    FibreReadout,
    FibreReadoutConfig,
    Readout,
    VoxelReadout,
    VoxelReadoutConfig,
)
from models.training import ignore
from models.tt.train import TensorTrain
from models.types import CubeSource

CPU = torch.device("cpu")
SHAPE = (8, 10, 12)
FIBRES = {
    "tt": FibreConfig(layout="tt", rank=3),
    "qtt": FibreConfig(layout="qtt", rank=4),
    "scalar": FibreConfig(layout="qtt", sampling="scalar", rank=4, oversampling=1.0),
}
CONFIG = FibreReadoutConfig(FIBRES["tt"], counts=(2, 4), poolings=(1, 2))
WIDTH = 3


def scans_of(count: int, seed: int = 0) -> list[ArraySource]:
    return [ArraySource(scan) for scan in smooth_scans(count, seed, SHAPE)[0]]


SCANS = scans_of(16)
ENCODER = calibrated(EncoderConfig(hidden=(3,), features=2).network(1, 0, CPU), SCANS, 0, CPU)


def encoder_of(scan: CubeSource) -> LearnedCpic:
    return ENCODER


def fitted(
    config: FibreReadoutConfig = CONFIG, scans: Any = SCANS, patients: Any = None, **how: Any
) -> tuple[FibreReadout, Array]:
    patients = [f"p{number}" for number in range(len(scans))] if patients is None else patients
    return FibreReadout.of(
        scans, patients, encoder_of, config, **{"seed": 5, "device": CPU, "report": ignore, **how}
    )


@cache
def of_all() -> tuple[FibreReadout, Array]:
    """The readout of all scans, and their features."""
    return fitted()


def by_voxels(config: VoxelReadoutConfig | None = None) -> VoxelReadout:
    config = VoxelReadoutConfig(count=300, strata=3, poolings=(1, 2)) if config is None else config
    return VoxelReadout(config, encoder_of, WIDTH, 5, CPU)


def saved(readout: FibreReadout) -> FibreReadout:
    """After a file: arrays in C's order, and JSON."""
    tensors = {name: np.array(array, order="C") for name, array in readout.tensors().items()}
    return FibreReadout.from_saved(tensors, json.loads(json.dumps(readout.manifest())), encoder_of, CPU)


@pytest.mark.parametrize("overview", [0, 3])
@pytest.mark.parametrize("name", FIBRES)
def test_training_and_inference_read_the_same_of_a_scan_bit_by_bit(name: str, overview: int) -> None:
    """Whatever is read beside it and in whichever order; and so does a readout that was saved."""
    readout, features = fitted(replace(CONFIG, fibres=FIBRES[name], overview=overview), SCANS[:6])
    again = saved(readout)
    for number in (4, 0, 5, 4):
        alone = readout.see(ArraySource(SCANS[number].volume.copy())).features()
        assert np.array_equal(alone, features[number])
        assert np.array_equal(again.see(SCANS[number]).features(), features[number])


def dense(train: TensorTrain) -> Array:
    """All values of a train, (voxels, features); its modes are Z, Y, X and the features."""
    return np.asarray(train.full().reshape(-1, WIDTH).detach().numpy())


def hats(size: int, count: int) -> Array:
    """Hat functions averaged over voxels, by many points; each with mean 1."""
    if count == 1:
        return np.ones((size, 1))
    at = (np.arange(size * 1000) + 0.5) / (size * 1000)
    rising = at.reshape(size, 1000).mean(axis=1)
    return np.stack([1 - rising, rising], axis=1) * 2


def test_blocks_are_principal_features_and_moments_of_the_train() -> None:
    readout, features = of_all()
    assert readout.blocks == {
        "principal 2": slice(0, 2),
        "principal 4": slice(0, 4),
        "kernel": slice(0, 15),
        "moments 1": slice(15, 18),
        "moments 2": slice(18, 42),
    }
    assert features.shape == (16, 42)
    trains = [readout.see(scan).train for scan in SCANS]
    fields = np.stack([dense(train) for train in trains if train is not None])
    _, _, Vh = np.linalg.svd((fields - fields.mean(axis=0)).reshape(16, -1), full_matrices=False)
    principal = (fields - fields.mean(axis=0)).reshape(16, -1) @ Vh[:4].T
    assert np.abs(features[:, :4]) == pytest.approx(np.abs(principal), rel=1e-6, abs=1e-6)
    weights = np.einsum("za,yb,xc->zyxabc", *(hats(size, 2) for size in SHAPE)).reshape(-1, 8)
    moments = np.einsum("vb,nvf->nbf", weights, fields) / len(weights)
    assert features[:, 15:18] == pytest.approx(fields.mean(axis=1), abs=1e-9)
    assert features[:, 18:] == pytest.approx(moments.reshape(16, -1), abs=1e-6)


def test_a_ridge_on_the_kernel_block_is_kernel_ridge_regression_on_trains() -> None:
    """On inner products of the centred fields, with the penalty that the head chose."""
    readout, features = of_all()
    where = readout.blocks["kernel"]
    assert readout.proportional == {"kernel"}
    y = np.random.default_rng(0).normal(size=16)
    head = LinearHead.fit(features[:, where], y, [f"p{k}" for k in range(16)], Task(), proportional=True)
    fresh = scans_of(5, seed=3)
    told = head.predict(np.stack([readout.see(scan).features()[where] for scan in fresh]))
    trains = [readout.see(scan).train for scan in (*SCANS, *fresh)]
    fields = np.stack([dense(train).ravel() for train in trains if train is not None])
    away = fields - fields[:16].mean(axis=0)
    K = away @ away[:16].T
    penalty = head.choice.penalty * np.trace(K[:16]) / 16
    dual = np.linalg.solve(K[:16] + penalty * np.eye(16), y - y.mean())
    assert told[:, 0] == pytest.approx(y.mean() + K[16:] @ dual, rel=1e-5, abs=1e-6)


def test_an_overview_adds_a_kernel_of_block_means_to_that_of_trains() -> None:
    """Each mean has the same variance, and all together that of the train's features."""
    alone, of_trains = of_all()
    readout, features = fitted(replace(CONFIG, overview=2))
    assert readout.blocks["kernel"] == slice(0, 15 + 8)
    assert readout.blocks["moments 1"] == slice(23, 26)
    assert np.array_equal(np.delete(features, np.s_[15:23], axis=1), of_trains)
    blocks = np.stack([scan.volume.reshape(2, 4, 2, 5, 2, 6) for scan in SCANS]).astype(np.float64)
    means = blocks.mean(axis=(2, 4, 6)).reshape(16, 8)
    trains, beside = features[:, :15], features[:, 15:23]
    standard = (means - means.mean(axis=0)) / means.std(axis=0)
    energy = np.square(trains - trains.mean(axis=0)).sum(axis=1).mean()
    assert beside == pytest.approx(standard * np.sqrt(energy / 8), rel=1e-6, abs=1e-9 * np.sqrt(energy))
    seen = readout.see(SCANS[3])
    assert len(seen.voxels) == len(alone.see(SCANS[3]).voxels)
    assert seen.saliency(np.eye(len(features[0]))[20]).weights.tolist() == [0.0] * len(seen.voxels)


def test_an_overview_of_other_blocks_than_the_trainings_is_refused() -> None:
    readout, _ = fitted(replace(CONFIG, overview=11), SCANS[:4])
    smaller = ArraySource(np.zeros((8, 10, 9), np.float32))
    with pytest.raises(InvalidShape, match="720 block means, the training's had 880"):
        readout.see(smaller)


@pytest.mark.parametrize(
    ("counts", "block", "poolings", "blocks"),
    [
        ((3,), "principal", (), ["principal 3"]),
        ((3,), "kernel", (), ["principal 3", "kernel"]),
        ((), "best", (2,), ["moments 2"]),
    ],
)
def test_kinds_of_blocks_may_be_left_out(
    counts: tuple[int, ...], block: str, poolings: tuple[int, ...], blocks: list[str]
) -> None:
    readout, features = fitted(replace(CONFIG, counts=counts, block=block, poolings=poolings))
    assert list(readout.blocks) == blocks
    seen = readout.see(SCANS[3])
    assert np.array_equal(seen.features(), features[3])
    assert features.shape[1] == readout.blocks[blocks[-1]].stop
    assert (readout.distance(seen) is None) == (not counts)
    assert np.array_equal(saved(readout).see(SCANS[3]).features(), features[3])


def test_anchors_are_drawn_from_the_seed_where_there_are_more_scans() -> None:
    few = replace(CONFIG, anchors=6)
    readouts = [fitted(few, SCANS[:9], seed=seed)[0] for seed in (0, 0, 1)]
    bases = [readout.basis for readout in readouts if readout.basis is not None]
    assert [len(basis.mean_products) for basis in bases] == [6] * 3
    assert [len(readout.distances) for readout in readouts] == [6] * 3
    assert torch.equal(bases[0].mean_products, bases[1].mean_products)
    assert not torch.equal(bases[0].mean_products, bases[2].mean_products)


def test_fewer_scans_than_features_leave_the_others_zero() -> None:
    readout, features = fitted(scans=SCANS[:3])
    assert np.abs(features[:, :2]).min() > 0
    assert not features[:, 2:4].any()
    assert readout.blocks["kernel"] == slice(0, 4)
    assert readout.distance(readout.see(SCANS[7])) is not None
    two, _ = fitted(scans=SCANS[:2])
    assert two.distance(two.see(SCANS[7])) is None


# Distances


def test_distances_of_the_training_leave_all_scans_of_a_patient_out() -> None:
    patients = [f"p{number // 2}" for number in range(8)]
    readout, _ = fitted(scans=SCANS[:8], patients=patients)
    expected = []
    for pair in range(4):
        others = [number for number in range(8) if number // 2 != pair]
        rest, _ = fitted(scans=[SCANS[number] for number in others])
        for number in (2 * pair, 2 * pair + 1):
            told = rest.distance(rest.see(SCANS[number]))
            assert told is not None
            expected.append(told[0])
    assert readout.distances == pytest.approx(np.sort(expected), rel=1e-6)


def test_a_distance_is_the_root_mean_square_that_the_principal_axes_do_not_span() -> None:
    readout, _ = of_all()
    fields = np.stack([dense(readout.see(scan).train) for scan in SCANS])  # type: ignore[arg-type]
    seen = readout.see(scans_of(1, seed=8)[0])
    assert seen.train is not None
    away = (dense(seen.train) - fields.mean(axis=0)).ravel()
    _, _, Vh = np.linalg.svd((fields - fields.mean(axis=0)).reshape(16, -1), full_matrices=False)
    outside = np.square(away).sum() - np.square(Vh[:4] @ away).sum()
    told = readout.distance(seen)
    assert told is not None
    assert told[0] == pytest.approx(np.sqrt(outside / away.size), rel=1e-6)


def test_percentiles_of_new_scans_are_spread_and_an_outlier_is_above_all() -> None:
    readout, _ = of_all()
    percentiles = np.array([readout.distance(readout.see(scan)) for scan in scans_of(30, seed=1)])[:, 1]
    assert 30 < percentiles.mean() < 75
    assert percentiles.min() < 25
    assert percentiles.max() > 75
    noise = np.random.default_rng(0).normal(0.4, 0.3, SHAPE).astype(np.float32)
    for strange in (noise, 1.5 - SCANS[0].volume[0]):
        told = readout.distance(readout.see(ArraySource(strange)))
        assert told is not None
        assert told[0] > 1.2 * readout.distances.max()
        assert told[1] == 100
    assert saved(readout).distance(readout.see(ArraySource(noise))) == readout.distance(
        readout.see(ArraySource(noise))
    )


def test_equal_distances_count_half() -> None:
    readout, _ = of_all()
    seen = readout.see(SCANS[2])
    told = readout.distance(seen)
    assert told is not None
    known = np.array([0.5, 1.0, 1.0, 2.0]) * told[0]
    assert replace(readout, distances=known).distance(seen) == (told[0], 50.0)
    assert replace(readout, distances=known[:3]).distance(seen) == (told[0], pytest.approx(200 / 3))


def test_a_voxel_readout_leaves_distances_to_the_head() -> None:
    readout = by_voxels()
    assert readout.distance(readout.see(SCANS[0])) is None
    assert readout.certificate(readout.see(SCANS[0])) is None


# Saliency


def readout_by(name: str) -> Readout:
    return by_voxels() if name == "voxels" else fitted(replace(CONFIG, fibres=FIBRES[name]), SCANS[:4])[0]


@pytest.mark.parametrize("name", [*FIBRES, "voxels"])
def test_the_weights_of_a_saliency_sum_to_the_slope_along_the_values(name: str) -> None:
    """Features are linear in a train, which scales with the values that it is made of (Euler)."""
    readout = readout_by(name)
    seen, step = readout.see(SCANS[9]), 1e-4
    slope = np.random.default_rng(0).normal(size=readout.blocks["moments 2"].stop)
    made = seen.saliency(slope)
    with torch.no_grad():
        up, down = (seen.vector(seen.values * (1 + sign * step)).numpy() for sign in (1, -1))
    assert made.weights.sum() == pytest.approx(slope @ (up - down) / (2 * step), rel=1e-6)
    assert made.voxels.shape == (len(seen.voxels), 3)
    assert np.array_equal(np.ravel_multi_index(tuple(made.voxels.T), SHAPE), seen.voxels)
    assert (np.diff(seen.voxels) > 0).all()
    assert 0 <= seen.voxels[0] < seen.voxels[-1] < np.prod(SHAPE)


def test_saliency_is_gradient_times_value_voxel_by_voxel() -> None:
    readout = by_voxels()
    seen = readout.see(SCANS[2])
    slope = np.random.default_rng(1).normal(size=readout.blocks["moments 2"].stop)
    made, values, weights = seen.saliency(slope), seen.values.numpy(), []
    for voxel in range(0, len(seen.voxels), 37):
        without = seen.values
        without[voxel] = 0
        moved = (seen.vector(seen.values) - seen.vector(without)).numpy()
        weights.append(slope @ moved)  # linear: what is missing is what it moved
    assert made.weights[::37] == pytest.approx(np.array(weights), abs=1e-12)
    assert np.abs(values).max() > 0


# The certificate


def test_a_certificate_tells_how_far_the_train_is_from_the_field() -> None:
    readout, _ = of_all()
    seen = readout.see(SCANS[1])
    told = readout.certificate(seen)
    assert told is not None
    json.dumps(told)
    assert told["held_out"] == HELD_OUT
    truth = seen.volume.features(np.arange(int(np.prod(SHAPE)))).numpy()
    assert seen.train is not None
    missed = np.square(dense(seen.train) - truth).sum() / np.square(truth - truth.mean(axis=0)).sum()
    assert told["overall"]["centred_error"] == pytest.approx(np.sqrt(missed), rel=0.1)
    assert readout.certificate(seen) == told
    wide = EncodedVoxels(SCANS[1], LearnedCpic(ENCODER.network), CPU)
    assert readout.certificate(replace(seen, volume=wide)) is None  # values without a range have no bound


# Random voxels


def test_voxels_are_the_same_in_every_scan_and_moments_are_weighted_means_of_them() -> None:
    readout, (first, second) = by_voxels(), (by_voxels().see(scan) for scan in SCANS[:2])
    assert np.array_equal(first.voxels, second.voxels)
    assert readout.blocks == {"moments 1": slice(0, 3), "moments 2": slice(3, 27)}
    voxels, shares = draw(SHAPE, 300, 5, strata=3)
    assert np.array_equal(first.voxels, voxels)
    values, told = first.values.numpy(), []
    for count in (1, 2):
        weights = Pooling("hat", count).at(voxels, SHAPE) * shares[:, None]
        told.append(weights.T @ values / weights.sum(axis=0)[:, None])
    assert first.features() == pytest.approx(np.concatenate(told).ravel(), rel=1e-9)


def test_constant_fields_have_that_constant_in_all_moments() -> None:
    flat = [ArraySource(np.full(SHAPE, 0.7), padding=0.7)]
    seen = by_voxels().see(flat[0])
    value = seen.values.numpy()[0]
    assert seen.features() == pytest.approx(np.tile(value, 9), abs=1e-6)


def test_a_voxel_readout_is_the_same_after_saving() -> None:
    readout = by_voxels()
    again = VoxelReadout.from_saved(json.loads(json.dumps(readout.manifest())), encoder_of, CPU)
    assert again.config == readout.config
    assert np.array_equal(again.see(SCANS[3]).features(), readout.see(SCANS[3]).features())
    assert readout.tensors() == {}


# What is refused


def test_mixed_and_broken_readouts_are_refused() -> None:
    (readout, _), (other, _) = of_all(), fitted(scans=scans_of(16, seed=3))
    tensors, manifest = readout.tensors(), readout.manifest()
    mixed = {**tensors, "basis.anchor.0": other.tensors()["basis.anchor.0"]}
    with pytest.raises(InvalidShape):
        FibreReadout.from_saved(mixed, manifest, encoder_of, CPU)
    missing = {name: array for name, array in tensors.items() if name != "basis.coefficients"}
    with pytest.raises(InvalidShape, match="lacks coefficients"):
        FibreReadout.from_saved(missing, manifest, encoder_of, CPU)


def test_a_scan_of_another_shape_is_refused() -> None:
    readout, _ = fitted(scans=SCANS[:4])
    with pytest.raises(InvalidShape):
        readout.see(ArraySource(np.zeros((9, 9, 9)))).features()


def test_reading_is_told_scan_by_scan_and_may_be_ended() -> None:
    told: list[tuple[str, int, int | None]] = []
    fitted(scans=SCANS[:4], report=lambda *what: told.append(what))
    assert told == [("trains", done, 4) for done in range(4)]
    with pytest.raises(Killed):
        fitted(scans=SCANS[:4], report=KilledAt(2, "trains"))


@pytest.mark.parametrize(
    ("make", "settings", "named"),
    [
        (FibreReadoutConfig, {"counts": (), "poolings": ()}, "counts"),
        (FibreReadoutConfig, {"counts": ()}, "block"),
        (FibreReadoutConfig, {"block": "moments 4"}, "block"),
        (FibreReadoutConfig, {"block": "principal 11"}, "block"),
        (FibreReadoutConfig, {"counts": (0,)}, "counts"),
        (FibreReadoutConfig, {"poolings": (2, 0)}, "poolings"),
        (FibreReadoutConfig, {"anchors": 0}, "anchors"),
        (FibreReadoutConfig, {"overview": 65}, "overview"),
        (FibreReadoutConfig, {"overview": 12, "block": "moments 2"}, "overview"),
        (VoxelReadoutConfig, {"poolings": ()}, "poolings"),
        (VoxelReadoutConfig, {"count": 100, "strata": 5}, "count"),
        (VoxelReadoutConfig, {"strata": 0}, "strata"),
    ],
)
def test_settings_that_make_no_sense_are_named(make: Any, settings: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidConfig) as error:
        make(**settings)
    assert error.value.setting == named
