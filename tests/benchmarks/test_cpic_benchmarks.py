"""The C-PIC benchmarks at tiny sizes: what they count and compare is what they say."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout

import numpy as np
import pytest
import torch

from benchmarks import (
    approximation,
    cpic_cross,
    cpic_encode,
    cpic_gradient,
    cpic_projection,
    cpic_silent,
    fields,
    peers,
    volumes,
)
from benchmarks.fields import Probe, Remembered
from benchmarks.targets import Target, judged
from models.tt.qtt import qtt_layout, tt_layout


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=["tntorch", "teneva"])
def peer(request):
    if reason := peers.missing(request.param):
        pytest.skip(reason)
    return request.param


def shown(module, result) -> str:
    text = io.StringIO()
    with redirect_stdout(text):
        module.show(result)
    return text.getvalue()


def tiny_case(*methods: cpic_cross.Method, size: int = 8) -> cpic_cross.Case:
    layout = qtt_layout((size,) * 3, 4)
    return cpic_cross.Case("tiny", fields.sigmoid_waves(size, 4), layout, methods)


def test_probes_count_and_all_ways_to_ask_agree() -> None:
    layout = qtt_layout((8, 4, 2), 4)
    field = fields.sigmoid_waves(8, 4)
    probe = Probe(field, layout)
    keys = np.arange(256)
    rows = np.indices((8, 4, 2, 4)).reshape(4, -1).T
    truth = field(rows)
    np.testing.assert_allclose(probe.keys(keys), truth, rtol=1e-12)
    np.testing.assert_allclose(probe.indices(layout.indices(keys).astype(float)), truth, rtol=1e-12)
    np.testing.assert_allclose(probe.voxels(np.array([3, 17])), truth.reshape(64, 4)[[3, 17]], rtol=1e-12)
    assert (probe.evaluated, probe.unique, probe.unique_voxels) == (256 + 256 + 8, 256, 64)


def test_what_is_remembered_is_looked_at_once() -> None:
    layout = tt_layout((6, 6, 6), 2)
    probe = Probe(fields.sigmoid_waves(6, 2), layout)
    scalar, block = Remembered(probe.keys), Remembered(probe.voxels)
    generator = np.random.default_rng(0)
    for _ in range(20):
        keys = generator.integers(0, 432, (3, 5))
        assert np.array_equal(scalar(keys).numpy(), probe.keys(keys.ravel()).reshape(3, 5))
        voxels = generator.integers(0, 216, (2, 3))
        assert np.array_equal(block(voxels).numpy()[1, 2], block(voxels[1:, 2:]).numpy()[0, 0])
    assert scalar.requested == 20 * 15
    counted = Probe(fields.sigmoid_waves(6, 2), layout)
    again = Remembered(counted.keys)
    for _ in range(50):
        again(generator.integers(0, 432, 80))
    assert counted.evaluated == counted.unique == 432


def test_members_of_a_family_are_near_each_other_but_not_the_same() -> None:
    rows = np.random.default_rng(0).integers(0, 8, (100, 4)) % (8, 8, 8, 4)
    base, *others = (fields.sigmoid_waves(8, 4, member=m)(rows) for m in (None, 0, 1))
    assert all(0.001 < np.abs(other - base).max() < 0.9 for other in others)
    assert np.array_equal(fields.sigmoid_waves(8, 4, member=1)(rows), others[1])
    family = fields.sigmoid_family(8, 4, range(2))
    for number, other in enumerate(others):
        assert np.array_equal(family(rows, np.full(100, number)), other)


def test_centred_errors_are_one_for_the_means_and_zero_for_the_truth() -> None:
    generator = np.random.default_rng(0)
    feature = generator.integers(0, 3, 500)
    truth = generator.normal(size=500) + 10 * feature
    mean = np.array([truth[feature == f].mean() for f in range(3)])[feature]
    assert approximation.errors(mean, truth, feature)["centred_error"] == pytest.approx(1)
    assert approximation.errors(mean, truth, feature)["error"] < 0.2
    assert approximation.errors(truth, truth, feature) == {"error": 0, "centred_error": 0}


def test_ours_recovers_a_small_field_by_every_method() -> None:
    block = cpic_cross.Method("block", cpic_cross.ours(16, 2, block=True), block=True)
    methods = (cpic_cross.plain(16, 2), cpic_cross.oversampled(16, 2), block)
    rows = cpic_cross.measured(tiny_case(*methods), (0,))
    assert len(rows) == 3
    for row in rows.values():
        assert row["centred_error"] < 1e-5
        assert row["evaluated"] == row["unique"] <= row["requested"]
        assert row["wall_s"] > 0


def test_peers_look_at_the_same_field(peer: str) -> None:
    method = {"tntorch": cpic_cross.tntorch(16, 2), "teneva": cpic_cross.teneva(16, 2)}[peer]
    rows = cpic_cross.measured(tiny_case(method, size=4), (0, 1))
    (row,) = rows.values()
    assert row["worst_centred"] < 1e-6
    assert row["evaluated"] > row["unique"] == 4**3 * 4


def test_headline_keys_are_there_when_the_peers_are(peer: str) -> None:
    theirs = cpic_cross.TNTORCH_15 if peer == "tntorch" else cpic_cross.TENEVA_2
    case = tiny_case(cpic_cross.OURS, cpic_cross.BLOCK, theirs, size=4)
    result = cpic_cross.run([case], seeds=(0,))
    assert {f"{what}_ratio_{peer}" for what in ("evals", "time", "cpu", "error")} <= set(result)
    assert 0 < result["block_cubes"] <= 64
    json.dumps(result, allow_nan=False)
    assert theirs.name in shown(cpic_cross, result)


def test_targets_are_about_what_is_measured_and_can_be_missed() -> None:
    names = {case.name: {method.name for method in case.methods} for case in cpic_cross.known_cases()}
    for target in cpic_cross.TARGETS:
        if "; " in target.key and not target.key.startswith("T1 head"):
            case, method, column = target.key.split("; ")
            assert method in names[case]
            assert column in cpic_cross.COLUMNS
    most, least = Target("a", 2.0), Target("b", 3.0, at_least=True)
    answers = judged({"a": 2.1, "b": 3.0, "c": 0.0}, (most, least, Target("absent", 1.0)))
    assert [(answer["key"], answer["holds"]) for answer in answers] == [("a", False), ("b", True)]
    assert not judged({"b": None}, (least,))[0]["holds"]
    table = {"case": {"rows": {"method": {"error": 0.5}}}}
    assert cpic_cross.cells(table) == {"case; method; error": 0.5}


@pytest.mark.parametrize("block", [False, True])
def test_a_batch_of_volumes_has_the_trains_of_each(block: bool) -> None:
    layout = qtt_layout((16,) * 3, volumes.FEATURES)
    family = fields.sigmoid_family(16, volumes.FEATURES, range(3))
    together = volumes.of_family(family, layout, range(3), sweeps=1, block=block)
    for number in range(3):
        alone = volumes.of_family(family, layout, [number], sweeps=1, block=block)
        assert torch.allclose(together[number].full(), alone.full(), atol=1e-10)
    encoded = volumes.of_encoded(8, [0, 1])
    assert torch.allclose(encoded[1].full(), volumes.of_encoded(8, [1]).full(), atol=1e-6)
    assert not torch.allclose(encoded[0].full(), encoded[1].full(), atol=1e-2)


def test_speedups_are_of_all_volumes_one_by_one_over_the_batch() -> None:
    asked: list[int] = []
    volumes.speedups(lambda numbers: asked.extend([len(numbers)]), 4)
    assert asked == volumes.ROUNDS * [1, 1, 1, 1, 4]


def test_a_warm_start_looks_at_the_forward_set_alone() -> None:
    warm, cold = volumes.warm_and_cold(32, 0, block=False, before=2)
    assert warm["evaluated"] < cold["evaluated"] / 2
    assert 0 < warm["error"] < 1


def test_boxes_give_the_features_of_single_cubes() -> None:
    result = cpic_encode.run(size=24)
    assert result["worst"] < 1e-6
    row = result["layouts"]["tt"]
    assert any(sides != "1x1x1" for sides in row["boxes"])
    assert row["read_ratio"] < 1
    assert row["work_ratio"] < 1
    json.dumps(result, allow_nan=False)
    assert "encode_speedup" in shown(cpic_encode, result)


def test_the_best_error_is_that_of_a_truncated_svd() -> None:
    volume = np.random.default_rng(0).normal(size=(6, 6, 6))
    s = np.linalg.svd(volume.reshape(6, 36), compute_uv=False)
    lower = np.sqrt((s[4:] ** 2).sum() / (s**2).sum())
    assert lower <= cpic_cross.best_error(volume, (6, 6, 6), 4) <= 2
    assert cpic_cross.best_error(volume, (6, 6, 6), 36) < 1e-12


def test_gradients_are_exact_for_fixed_indices() -> None:
    result = cpic_gradient.run(ranks=(7,), seeds=(0,), volume=8)
    assert result["worst_ours_7_to_10"] < 1e-6
    assert result["worst_fixed_index"] < 1e-9
    assert result["index_batching"] < 1e-12
    assert 0 < result["index_batching_cubes"] <= 8**3
    json.dumps(result, allow_nan=False)
    assert "fixed_index" in shown(cpic_gradient, result)


def test_high_precision_gradients_are_those_of_the_interpolant() -> None:
    layout = tt_layout((cpic_gradient.SIZE,) * 3, 1)
    forward = cpic_gradient.forward_set(layout, 3, seed=0)
    precise = cpic_gradient.precise_gradient(layout, forward)
    exact = cpic_gradient.dense_gradient(layout)
    assert cpic_gradient.gradient(layout, forward, cpic_gradient.interpolate) == pytest.approx(
        precise, rel=1e-9
    )
    assert abs(precise / exact - 1) > 1e-6  # at rank 3 the interpolant is not the function


def test_the_kink_is_judged_by_all_of_its_entries() -> None:
    result = cpic_silent.run(seeds=(0,), repeats=20, size=32)
    assert result["silent_failures"] == 0
    assert result["coverage"] == min(row["coverage"] for row in result["settings"])
    informative = [row["bound_ratio"] for row in result["settings"] if row["bound_ratio"] is not None]
    assert 1 < min(informative) < 2
    json.dumps(result, allow_nan=False)
    assert "silent failure" in shown(cpic_silent, result)
    assert cpic_silent.silent({"reported": 1e-15, "true_error": 1e-4})
    assert not cpic_silent.silent({"reported": 1e-4, "true_error": 1e-4})
    assert not cpic_silent.silent({"reported": 1e-15, "true_error": 1e-9})


def test_the_projection_is_compared_with_the_dense_optimum() -> None:
    result = cpic_projection.run(size=8, count=12, rounds=1)
    assert abs(result["captured_gap"]) < 1e-6
    assert result["gauge"] < 1e-7
    assert result["gauge_floor"] <= 2 * result["gauge_orthogonal"] < 1e-7
    assert 0 < result["optimum_centred"] <= 1
    json.dumps(result, allow_nan=False)
    assert "captured" in shown(cpic_projection, result)


def test_the_rounded_stack_spans_what_its_trains_span_when_nothing_is_cut() -> None:
    if reason := peers.missing("tntorch"):
        pytest.skip(reason)
    trains = [cpic_projection.family_member(8, member) for member in range(3)]
    stack = peers.tntorch_reduce(peers.tntorch_stacks(trains), 40)
    plain, _ = cpic_projection.stack_features(stack, trains)
    gram = cpic_projection.dense_gram(trains)
    assert float(torch.linalg.norm(plain @ plain.T - gram) / torch.linalg.norm(gram)) < 1e-5
