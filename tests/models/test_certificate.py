"""The certificate: does its bound hold as often as it says, and does it stay finite?"""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from model_fields import Array, FunctionField, blobs

from models.cpic.certificate import (
    CONSTANT,
    CONSTANT_EXACT,
    TOO_FEW,
    Certificate,
    bernstein_margin,
    certify,
)
from models.cpic.cross import cross
from models.cpic.forward_set import ForwardSet
from models.cpic.index_sets import random_start
from models.cpic.interpolate import interpolate
from models.errors import InvalidConfig
from models.tt.qtt import qtt_layout


def some_voxels(count: int) -> Array:
    return np.arange(3 * count).reshape(count, 3)


def blobs_and_their_train() -> tuple[Array, Array]:
    """All values of a smooth field in [0, 1], and those of a rough QTT of it."""
    layout = qtt_layout((32, 32, 32), 1)
    raw = FunctionField(layout, blobs(32))(np.arange(32**3)).numpy()
    low, span = raw.min(), np.ptp(raw)
    field = FunctionField(layout, lambda entries: (blobs(32)(entries) - low) / span)
    forward = ForwardSet.of(layout, cross(field, layout, random_start(layout, 6, 0)))
    keys = np.arange(32**3)
    train = interpolate(field(forward.keys), forward)
    return field(keys).numpy(), train.at(torch.from_numpy(layout.indices(keys))).numpy()


def covered(repeats: int) -> float:
    """How often the 95 % bound holds. Also asserts that it says something: that it is finite and not huge."""
    truth, approximation = blobs_and_their_train()
    error = np.clip(approximation, 0, 1) - truth
    actual = math.sqrt(np.square(error).mean() / truth.var())
    assert actual > 0.01
    held = 0
    for seed in range(repeats):
        drawn = np.random.default_rng(seed).integers(len(truth), size=1000)
        certificate = certify(
            approximation[drawn, None], truth[drawn, None], some_voxels(1000), (0.0, 1.0), 0.95
        )
        bound = certificate.overall.upper_bound
        assert bound is not None
        assert bound < actual + 1
        held += actual <= bound
    return held / repeats


def test_the_bound_holds_as_often_as_it_says() -> None:
    assert covered(30) >= 0.95


@pytest.mark.slow
def test_the_bound_holds_in_200_repeats() -> None:
    assert covered(200) >= 0.95


def test_the_estimate_is_the_centred_error_per_feature_and_finds_the_worst_voxel() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random((4000, 2)) * (1.0, 0.1) + (0.0, 0.5)
    approximation = truth.copy()
    approximation[:, 0] += 0.02 * rng.normal(size=4000)
    approximation[17, 1] -= 0.3
    certificate = certify(approximation, truth, some_voxels(4000), (0.0, 1.0), 0.9)
    first, second = certificate.features
    assert first.centred_error == pytest.approx(0.02 / math.sqrt(1 / 12), rel=0.05)
    assert second.centred_error == pytest.approx(0.3 / math.sqrt(4000) / (0.1 / math.sqrt(12)), rel=0.05)
    assert (second.worst_voxel, second.worst_feature) == ((51, 52, 53), 1)
    assert second.max_error == pytest.approx(0.3)
    assert certificate.overall.worst_voxel == (51, 52, 53)
    assert first.centred_error < first.upper_bound  # type: ignore[operator]


def test_the_approximation_is_clipped_to_the_range_that_the_bound_rests_on() -> None:
    truth = np.linspace(0, 1, 100)[:, None]
    certificate = certify(truth + np.where(truth == 1, 50.0, 0.0), truth, some_voxels(100), (0.0, 1.0), 0.9)
    assert certificate.overall.max_error == 0


def test_constant_features_have_no_error_or_none_at_all_but_never_nan() -> None:
    truth = np.tile((0.5, 0.5, 0.0), (100, 1))
    approximation = truth + np.array((0.0, 0.1, 0.0))
    certificate = certify(approximation, truth, some_voxels(100), (0.0, 1.0), 0.95)
    exact, wrong, zero = certificate.features
    assert (exact.centred_error, exact.upper_bound, exact.note) == (0.0, None, CONSTANT_EXACT)
    assert (wrong.centred_error, wrong.upper_bound, wrong.note) == (None, None, CONSTANT)
    assert wrong.max_error == pytest.approx(0.1)
    assert (zero.centred_error, zero.std) == (0.0, 0.0)
    assert certificate.overall.centred_error is None
    json.dumps(certificate.to_json(), allow_nan=False)


def test_features_that_vary_by_rounding_alone_count_as_constant() -> None:
    truth = np.zeros((100, 1))
    truth[3] = 1e-200  # its square is zero
    overall = certify(truth, truth, some_voxels(100), (0.0, 1.0), 0.95).overall
    assert (overall.centred_error, overall.std, overall.note) == (0.0, 0.0, CONSTANT_EXACT)
    truth[3] = 1e-150
    wrong = certify(truth + 1.0, truth, some_voxels(100), (0.0, 1.0), 0.95)
    assert wrong.overall.note == CONSTANT
    json.dumps(wrong.to_json(), allow_nan=False)


def test_a_range_of_one_point_is_exact_when_the_approximation_is() -> None:
    zeros = np.zeros((10, 1))
    overall = certify(zeros + 1e-30, zeros, some_voxels(10), (0.0, 0.0), 0.95).overall
    assert (overall.centred_error, overall.note) == (0.0, CONSTANT_EXACT)


def test_too_few_voxels_give_an_estimate_and_say_that_there_is_no_bound() -> None:
    truth = np.random.default_rng(0).random((20, 1))
    overall = certify(truth, truth, some_voxels(20), (0.0, 1.0), 0.95).overall
    assert (overall.centred_error, overall.upper_bound, overall.note) == (0.0, None, TOO_FEW)


def test_certificates_survive_json() -> None:
    truth = np.random.default_rng(0).random((500, 3))
    certificate = certify(truth * 0.9, truth, some_voxels(500), (0.0, 1.0), 0.95)
    assert Certificate.from_json(json.loads(json.dumps(certificate.to_json()))) == certificate


def test_the_margin_is_maurer_and_pontils() -> None:
    samples = np.array([0.0, 1.0, 0.0, 1.0])
    expected = math.sqrt(2 * (1 / 3) * math.log(20) / 4) + 7 * math.log(20) / 9
    assert bernstein_margin(samples, 1.0, 0.1) == pytest.approx(expected)
    assert bernstein_margin(5 * samples, 5.0, 0.1) == pytest.approx(5 * expected)


def test_what_certifies_nothing_is_refused() -> None:
    values = np.zeros((3, 1))
    with pytest.raises(InvalidConfig, match="held_out = 3: must be at least 4"):
        certify(values, values, some_voxels(3), (0.0, 1.0), 0.95)
    with pytest.raises(InvalidConfig, match="confidence"):
        certify(np.zeros((9, 1)), np.zeros((9, 1)), some_voxels(9), (0.0, 1.0), 1.0)
