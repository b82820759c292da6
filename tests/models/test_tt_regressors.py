"""Trains without an encoder: their principal features, how far scans are, and the two heads on them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from model_fields import Array, ArraySource, random_train
from small_cohorts import Killed, KilledAt, Memory, cohort_of, r2, smooth_scans

from models.cpic.fibres import FibreConfig
from models.cpic.projection import Basis
from models.errors import InvalidConfig, InvalidShape
from models.learning.cohort import Cohort, Inputs
from models.learning.task import Task
from models.regressors.distances import left_out
from models.regressors.neural import Scaling
from models.regressors.readouts import HELD_OUT
from models.regressors.trains import TrainFeaturesConfig
from models.regressors.tt_mlp import TtMlp
from models.regressors.tt_ridge import TtRidge
from models.training import TrainingConfig, Watch, ignore
from models.tt.gram import gram
from models.tt.train import TensorTrain, stacked

CPU = torch.device("cpu")
SMALL = TrainFeaturesConfig(count=8, fibres=FibreConfig(layout="tt", rank=4))
RIDGE = TtRidge(SMALL)
MLP = TtMlp(SMALL, training=TrainingConfig(epochs=4, batch=10, rate=1e-2, checkpoint_steps=3))
LONGER = replace(MLP, training=TrainingConfig(epochs=25, batch=20, rate=3e-2))


def fitted(recipe: Any, cohort: Cohort, task: Task | None = None, seed: int = 0, watch: Any = None) -> Any:
    return recipe.fit(cohort, task or Task(), seed=seed, device=CPU, watch=watch or Watch())


def smooth_cohort(count: int, seed: int = 0, *, covariates: bool = False) -> Cohort:
    scans, sizes = smooth_scans(count, seed)
    beside = np.random.default_rng(seed).normal(size=(count, 1)) if covariates else None
    return cohort_of(scans, 50 + 20 * sizes, beside)


def numbered(train: TensorTrain, rows: list[int]) -> TensorTrain:
    return stacked([train[row] for row in rows])


def test_distances_of_anchors_are_those_from_all_other_patients() -> None:
    trains = stacked([random_train((5, 6, 4), 3, seed) for seed in range(9)])
    patients = ["a", "b", "b", "c", "d", "d", "d", "e", "f"]
    outside = left_out(gram(trains, trains).numpy(), patients, 4)
    for patient in sorted(set(patients)):
        own = [k for k, name in enumerate(patients) if name == patient]
        basis = Basis.of(numbered(trains, [k for k in range(9) if k not in own]), 4)
        assert np.allclose(outside[own], basis.outside(numbered(trains, own)).numpy(), rtol=1e-9)
    alone = left_out(gram(trains, trains).numpy(), ["a"] * 9, 20)
    assert alone[8] == pytest.approx(float(Basis.of(trains[:8], 20).outside(trains[8:])[0]))


def test_features_are_the_projections_of_trains_and_the_same_in_training_and_after() -> None:
    cohort = smooth_cohort(12)
    features, known = SMALL.read(cohort, seed=3, report=ignore)
    again = np.stack([features(scan) for scan in cohort.inputs.scans])
    assert known.shape == (12, 8)
    assert np.abs(again - known).max() < 1e-9 * np.abs(known).max()
    assert np.abs(known.mean(axis=0)).max() < 1e-9 * np.abs(known).max()
    products = known.T @ known
    assert np.abs(products - np.diag(np.diag(products))).max() < 1e-9 * products.max()


@pytest.mark.parametrize("recipe", [RIDGE, LONGER], ids=["ridge", "mlp"])
def test_it_tells_the_size_of_new_bodies(recipe: Any) -> None:
    model = fitted(recipe, smooth_cohort(40))
    other = smooth_cohort(30, seed=1)
    assert r2(model.predict(other.inputs)[:, 0], other.targets) > 0.8


@pytest.mark.parametrize("recipe", [RIDGE, MLP], ids=["ridge", "mlp"])
def test_an_answer_does_not_depend_on_what_is_asked_beside_it(recipe: Any) -> None:
    cohort = smooth_cohort(10, covariates=True)
    model = fitted(recipe, cohort)
    rows, covariates = np.array([4, 2, 4, 7]), np.linspace(-1, 1, 4)[:, None]
    sources = [scan for scan in cohort.inputs.scans if isinstance(scan, ArraySource)]
    together = model.predict(Inputs(cohort.inputs.scans, rows, covariates))
    for source in sources:
        source.asked.clear()
    for row, scan in enumerate(rows.tolist()):
        alone = model.predict(Inputs((sources[scan],), np.zeros(1, int), covariates[[row]]))
        assert np.abs(alone[0] - together[row]).max() < 1e-9 * np.abs(together).max()
    assert [bool(source.asked) for source in sources] == [n in (2, 4, 7) for n in range(10)]
    assert max(source.asked.total() for source in sources) > 0


def test_a_scan_is_read_at_a_few_voxels_each_once() -> None:
    scans, sizes = smooth_scans(3, 0, (40, 40, 40))
    cohort = cohort_of(scans, sizes)
    model = fitted(RIDGE, cohort)
    for source in cohort.inputs.scans:
        assert isinstance(source, ArraySource)
        assert max(source.asked.values()) == 1
        assert sum(int(np.prod(key[:3])) for key in source.asked) < 0.1 * 40**3
    look = model.look(cohort.inputs.scans[0], np.zeros(0))
    assert 0 < look.voxels == len(look.saliency.voxels) < 0.1 * 40**3


@pytest.mark.parametrize("recipe", [RIDGE, MLP], ids=["ridge", "mlp"])
def test_a_scan_unlike_the_training_s_is_far_and_one_like_them_is_not(recipe: Any) -> None:
    model = fitted(recipe, smooth_cohort(20))
    percentiles = [
        model.look(scan, np.zeros(0)).distance_percentile for scan in smooth_cohort(15, seed=5).inputs.scans
    ]
    assert 20 < np.mean(percentiles) < 80
    noise = np.random.default_rng(0).normal(0, 1, (12, 14, 16)).astype(np.float32)
    look = model.look(ArraySource(noise), np.zeros(0))
    assert look.distance_percentile == 100
    assert 0.3 < look.distance < noise.std()  # root mean square per voxel
    assert look.certificate is None  # nothing is known of the range of its values


def test_a_certificate_tells_how_far_the_train_is_from_the_scan() -> None:
    class Ranged(ArraySource):
        value_range = (-0.5, 1.5)

    model = fitted(RIDGE, smooth_cohort(6))
    scan = Ranged(smooth_scans(1, 9)[0][0])
    certificate = model.look(scan, np.zeros(0)).certificate
    assert certificate["held_out"] == HELD_OUT
    assert isinstance(certificate["overall"]["upper_bound"], float)
    assert json.loads(json.dumps(certificate)) is not None
    train = model.features.see(scan).train.full().numpy()
    error = np.sqrt(np.square(train - scan.volume[0]).mean()) / scan.volume[0].std()
    assert certificate["overall"]["centred_error"] == pytest.approx(error, rel=0.2)


@pytest.mark.parametrize("recipe", [RIDGE, MLP], ids=["ridge", "mlp"])
def test_saliency_is_gradient_times_value(recipe: Any) -> None:
    """The train is homogeneous in its voxels, so (Euler) their shares sum to the slope along the train."""
    cohort = smooth_cohort(20, covariates=True)
    model = fitted(recipe, cohort)
    scan, covariates = cohort.inputs.scans[3], cohort.inputs.covariates[3]
    trains = model.features if recipe is RIDGE else model.sight.readout
    features = trains(scan)
    basis = trains.basis
    at_zero = -(basis.mean_products @ basis.coefficients).numpy()

    def told(features: Array) -> float:
        if recipe is RIDGE:
            return float(model.head.predict(features[None], covariates[None])[0, 0])
        beside = torch.from_numpy(model.covariates(covariates[None])).float()
        outputs = model.network.outputs_of(model.sight.scaled(features[None]), beside)
        return float(model.answers.from_outputs(outputs)[0, 0])

    along = features - at_zero
    step = 1e-3 if recipe is MLP else 1.0
    slope = (told(features + step * along) - told(features - step * along)) / (2 * step)
    saliency = model.look(scan, covariates).saliency
    assert saliency.weights.sum() == pytest.approx(slope, rel=2e-2 if recipe is MLP else 1e-6)
    linear = np.ravel_multi_index(tuple(saliency.voxels.T), (12, 14, 16))
    assert (np.diff(linear) > 0).all()


@pytest.mark.parametrize("recipe", [RIDGE, LONGER], ids=["ridge", "mlp"])
def test_quantiles_are_in_order_and_classes_are_probabilities(recipe: Any) -> None:
    cohort = smooth_cohort(30, covariates=True)
    quantiles = fitted(recipe, cohort, Task("quantiles")).predict(cohort.inputs)
    assert quantiles.shape == (30, 3)
    assert (np.diff(quantiles, axis=1) >= 0).all()
    large = (cohort.targets > 60).astype(np.float64)
    classed = Cohort(cohort.inputs, cohort.patients, large)
    shares = fitted(recipe, classed, Task("classes", ("small", "large"))).predict(cohort.inputs)
    assert np.allclose(shares.sum(axis=1), 1)
    assert ((shares[:, 1] > 0.5) == large).mean() > 0.8


@pytest.mark.parametrize("recipe", [RIDGE, MLP], ids=["ridge", "mlp"])
def test_models_are_drawn_from_the_seed_and_the_same_after_saving(recipe: Any) -> None:
    cohort = smooth_cohort(9, covariates=True)
    state = torch.random.get_rng_state()
    model, again, other = (fitted(recipe, cohort, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(state, torch.random.get_rng_state())
    tensors, manifest = model.tensors(), json.loads(json.dumps(model.manifest()))
    assert tensors.keys() == again.tensors().keys()
    assert all(np.array_equal(tensor, again.tensors()[name]) for name, tensor in tensors.items())
    told = model.predict(cohort.inputs)
    assert not np.array_equal(told, other.predict(cohort.inputs))
    loaded = recipe.load(tensors, manifest, Task(), CPU)
    assert np.array_equal(loaded.predict(cohort.inputs), told)
    scan, covariates = cohort.inputs.scans[0], cohort.inputs.covariates[0]
    assert loaded.look(scan, covariates).distance == model.look(scan, covariates).distance
    with pytest.raises(InvalidShape, match="mixed"):
        recipe.load({**tensors, **_one_changed(tensors)}, manifest, Task(), CPU)


def _one_changed(tensors: dict[str, Array]) -> dict[str, Array]:
    name = next(name for name in tensors if name.endswith("distances"))
    return {name: tensors[name] + 1}


def test_a_killed_training_of_the_perceptron_goes_on_to_the_same_bits() -> None:
    cohort, kept = smooth_cohort(23, covariates=True), Memory()
    recipe = replace(MLP, batch_norm=True)
    with pytest.raises(Killed):
        fitted(recipe, cohort, watch=Watch(KilledAt(5), kept))
    assert kept.saved is not None
    assert kept.saved[1]["number"] == 3
    resumed = fitted(recipe, cohort, watch=Watch(checkpoints=kept)).tensors()
    for name, tensor in fitted(recipe, cohort).tensors().items():
        assert np.array_equal(resumed[name], tensor), name


def test_a_checkpoint_of_other_trains_is_not_gone_on_from() -> None:
    cohort, kept = smooth_cohort(9), Memory()
    with pytest.raises(Killed):
        fitted(MLP, cohort, watch=Watch(KilledAt(4), kept))
    other = replace(MLP, trains=replace(SMALL, fibres=FibreConfig(layout="tt", rank=3)))
    with pytest.raises(InvalidShape, match="checkpoint is of another training"):
        fitted(other, cohort, watch=Watch(checkpoints=kept))


def test_the_perceptron_is_the_same_whatever_threads_there_are() -> None:
    cohort, threads, digests = smooth_cohort(25, covariates=True), torch.get_num_threads(), set()
    for number in (1, 3):
        torch.set_num_threads(number)
        try:
            digests.add(fitted(MLP, cohort).manifest()["digest"])
        finally:
            torch.set_num_threads(threads)
    assert len(digests) == 1


def test_a_covariate_that_varies_by_rounding_alone_is_constant() -> None:
    tenths = np.full((7, 1), 0.1)
    assert tenths.std() > 0
    scaling = Scaling.of(np.hstack([tenths, np.arange(7.0)[:, None]]))
    assert scaling(np.array([[0.1, 3.0], [5.0, 5.0]])) == pytest.approx(np.array([[0, 0], [0, 1.0]]))


def test_the_perceptron_is_the_paper_s() -> None:
    training = TrainingConfig(epochs=1)
    brain, lung = TtMlp(batch_norm=True, training=training), TtMlp(training=training)
    for recipe, covariates, weights in ((brain, False, 3_423), (lung, True, 64_283)):
        model = fitted(recipe, smooth_cohort(11, covariates=covariates), Task("quantiles"))
        assert model.manifest()["parameters"] == weights


def test_anchors_are_drawn_where_there_are_too_many() -> None:
    cohort = smooth_cohort(12)
    features, known = replace(SMALL, anchors=5).read(cohort, seed=0, report=ignore)
    assert features.basis.anchors.batch == (5,)
    assert features.distances.shape == (5,)
    assert known.shape == (12, 8)
    assert np.abs(known[:, 4:]).max() == 0  # five anchors span four directions


def test_a_lone_scan_and_wrong_settings_are_refused() -> None:
    with pytest.raises(InvalidShape, match="1 scan has no principal axes"):
        fitted(MLP, smooth_cohort(1))
    few = TtMlp.from_settings({"trains": {"anchors": 5, "fibres": {"rank": 3}}, "training": {"epochs": 2}})
    assert few.trains == TrainFeaturesConfig(count=10, anchors=5, fibres=FibreConfig(layout="tt", rank=3))
    assert few.training == replace(TtMlp().training, epochs=2)
    nested = {"trains": {"count": 5, "fibres": {"layout": "qtt", "rank": 3}}}
    assert TtRidge.from_settings(nested).trains.fibres == FibreConfig(layout="qtt", rank=3)
    for recipe, settings, named in (
        (TtRidge, {"trains": {"count": 0}}, "trains.count"),
        (TtRidge, {"trains": {"anchors": 1}}, "trains.anchors"),
        (TtRidge, {"trains": {"fibres": {"rank": 0}}}, "trains.fibres.rank"),
        (TtRidge, {"trains": 3}, "trains"),
        (TtMlp, {"batch_norm": 1}, "batch_norm"),
        (TtMlp, {"hidden": [3]}, "hidden"),
    ):
        with pytest.raises(InvalidConfig) as error:
            recipe.from_settings(settings)  # type: ignore[attr-defined]
        assert error.value.setting == named
