"""Linear heads: closed forms against plain refits, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from models.errors import InvalidConfig, InvalidShape, NonFinite
from models.learning import logistic
from models.learning.folds import patient_folds, patient_numbers
from models.learning.linear import CLASS_PENALTIES, INNER_FOLDS, PENALTIES, LinearHead, leave_one_out
from models.learning.principal import Standard
from models.learning.task import QUANTILE_LEVELS, Task
from models.types import Array

MEAN, QUANTILES = Task("mean"), Task("quantiles")
THREE = Task("classes", ("a", "b", "c"))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def refitted(X: Tensor, y: Tensor, penalty: float) -> Tensor:
    """Each row's residual from the ridge with an intercept that was fitted to the others."""
    residuals = []
    for i in range(len(X)):
        others = np.delete(np.arange(len(X)), i)
        mean, centre = y[others].mean(), X[others].mean(dim=0)
        A = X[others] - centre
        w = torch.linalg.solve(A.T @ A + penalty * torch.eye(X.shape[1]).double(), A.T @ (y[others] - mean))
        residuals.append(y[i] - mean - (X[i] - centre) @ w)
    return torch.stack(residuals)


def drawn(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape)


def rows_of(patients: int, per_patient: int = 2) -> list[str]:
    return [f"p{k}" for k in range(patients) for _ in range(per_patient)]


def cohort(features: int, patients: int = 20, seed: int = 0) -> tuple[Array, Array, Array, list[str]]:
    """Features in odd units, two covariates, targets that depend on both with noise, and patients."""
    F = drawn(2 * patients, features, seed=seed) * np.geomspace(1e-3, 1e3, features) + 7
    C = drawn(2 * patients, 2, seed=seed + 1) * (1.0, 30.0) + (0.0, 60.0)
    w = np.zeros(features)
    w[:3] = (1, -2, 1) / np.geomspace(1e-3, 1e3, features)[:3]
    y = 50 + (F - 7) @ w + C @ (2.0, 0.1) + 0.3 * drawn(2 * patients, seed=seed + 2)
    return F, C, y, rows_of(patients)


def classes_of(y: Array) -> Array:
    """Terciles as the numbers of three classes."""
    return np.searchsorted(np.quantile(y, (1 / 3, 2 / 3)), y).astype(float)


def solved_directly(F: Array, C: Array, y: Array, penalty: float, asked: tuple[Array, Array]) -> Array:
    """Penalised normal equations of standardised features beside covariates and a constant."""
    standard = Standard.of(F)
    both = np.concatenate([standard(F), C, np.ones((len(F), 1))], axis=1)
    penalties = np.r_[np.full(F.shape[1], penalty), np.zeros(C.shape[1] + 1)]
    coefficients = np.linalg.solve(both.T @ both + np.diag(penalties), both.T @ y)
    return np.concatenate([standard(asked[0]), asked[1], np.ones((len(asked[0]), 1))], axis=1) @ coefficients


@pytest.mark.parametrize("features", [5, 39, 200])
def test_a_head_is_ridge_regression_beside_free_covariates(features: int) -> None:
    F, C, y, patients = cohort(features)
    head = LinearHead.fit(F, y, patients, MEAN, free=C)
    asked = drawn(6, features, seed=9) + 7, drawn(6, 2, seed=10) * 50
    expected = solved_directly(F, C, y, head.choice.penalty, asked)
    assert np.allclose(head.predict(*asked)[:, 0], expected, rtol=0, atol=3e-4 * np.ptp(expected))
    assert head.parameters == features + 3


@pytest.mark.parametrize("features", [5, 200])
def test_the_penalty_has_the_least_error_of_refits_without_each_inner_fold(features: int) -> None:
    F, _, y, patients = cohort(features)
    head = LinearHead.fit(F, y, patients, MEAN, seed=4)
    folds = patient_folds(patients, INNER_FOLDS, seed=4, targets=y)
    X = Standard.of(F)(F)
    for g in (0, 9, 20):
        told = np.empty(len(y))
        for k in range(INNER_FOLDS):
            out = folds == k
            A, mean, centre = X[~out], y[~out].mean(), X[~out].mean(axis=0)
            A = A - centre
            w = A.T @ np.linalg.solve(A @ A.T + PENALTIES[g] * np.eye(len(A)), y[~out] - mean)
            told[out] = mean + (X[out] - centre) @ w
        rms = np.sqrt(np.square(y - told).mean())
        assert head.choice.errors[g] == pytest.approx(rms, rel=1e-7)
    assert head.choice.error == min(head.choice.errors)
    assert head.choice.penalties[head.choice.at] == head.choice.penalty


def test_units_of_features_do_not_matter() -> None:
    F, C, y, patients = cohort(8)
    scales, shift = np.geomspace(1e-4, 1e5, 8), drawn(8, seed=5) * 100
    head = LinearHead.fit(F, y, patients, MEAN, free=C)
    other = LinearHead.fit(F * scales + shift, y, patients, MEAN, free=C * 7 - 3)
    assert np.allclose(other.predict(F * scales + shift, C * 7 - 3), head.predict(F, C), rtol=1e-9)
    assert np.allclose(other.weights[:, 0] * scales, head.weights[:, 0], rtol=1e-7)


def test_the_edge_of_the_grid_is_told() -> None:
    F, patients = drawn(60, 4), rows_of(30)
    line = LinearHead.fit(F, F @ np.arange(1.0, 5), patients, MEAN).choice
    noise = LinearHead.fit(F, drawn(60, seed=3), patients, MEAN).choice
    flat = LinearHead.fit(np.ones((60, 4)), F[:, 0], patients, MEAN).choice
    assert (line.edge, line.penalty) == ("lower", pytest.approx(1e-4))
    assert noise.penalty > 10
    assert (flat.edge, flat.penalty) == (None, 1e6)
    F, _, y, patients = cohort(60)
    assert LinearHead.fit(F, y, patients, MEAN).choice.edge is None


def test_constant_features_and_dependent_covariates_do_no_harm() -> None:
    F, C, y, patients = cohort(5)
    head = LinearHead.fit(F, y, patients, MEAN, free=C)
    with_constants = np.insert(F, 2, 0.1, axis=1)
    dependent = np.concatenate([C, C[:, :1] - C[:, 1:], np.full((len(C), 1), 3.0)], axis=1)
    other = LinearHead.fit(with_constants, y, patients, MEAN, free=dependent)
    assert other.weights[2, 0] == 0 == other.free_weights[3, 0]
    assert np.allclose(other.predict(with_constants, dependent), head.predict(F, C), rtol=1e-5)


@pytest.mark.parametrize("task", [MEAN, QUANTILES, Task("classes", ("no", "yes"))])
def test_few_rows_with_as_many_covariates_stay_finite(task: Task) -> None:
    y = np.array([0.0, 1.0, 1.0, 0.0])
    head = LinearHead.fit(drawn(4, 50), y, list("abcd"), task, free=drawn(4, 6, seed=1))
    assert np.isfinite(head.predict(drawn(3, 50, seed=2), drawn(3, 6, seed=3))).all()
    assert np.isfinite(head.distances(drawn(3, 50, seed=2))).all()


@pytest.mark.parametrize("free", [0, 2])
def test_without_features_a_head_is_least_squares_on_covariates(free: int) -> None:
    _, C, y, patients = cohort(3)
    C = C[:, :free]
    head = LinearHead.fit(np.zeros((40, 0)), y, patients, MEAN, free=C)
    both = np.concatenate([C, np.ones((40, 1))], axis=1)
    expected = both @ np.linalg.lstsq(both, y, rcond=None)[0]
    assert np.allclose(head.predict(np.zeros((40, 0)), C)[:, 0], expected, rtol=1e-6)
    assert head.choice.edge is None
    assert head.percentiles(head.distances(np.zeros((1, 0)))) == [50]


def test_quantiles_are_those_of_the_errors_out_of_inner_folds() -> None:
    F, C, y, patients = cohort(5, patients=200)
    y = y + np.random.default_rng(0).exponential(2, len(y))
    head, mean = (LinearHead.fit(F, y, patients, task, free=C) for task in (QUANTILES, MEAN))
    told = head.predict(F, C)
    assert np.allclose(told - told[:, :1], head.offsets - head.offsets[0])
    assert bool((np.diff(told, axis=1) > 0).all())
    assert np.allclose(told - head.offsets, mean.predict(F, C))
    fresh, free, truth, _ = cohort(5, patients=4000, seed=0)
    truth = truth + np.random.default_rng(1).exponential(2, len(truth))
    below = (truth[:, None] <= head.predict(fresh, free)).mean(axis=0)
    assert below == pytest.approx(QUANTILE_LEVELS, abs=0.06)


@pytest.mark.parametrize("features", [4, 60])
def test_classes_are_at_the_minimum_of_their_objective(features: int) -> None:
    F, C, y, patients = cohort(features)
    classes = classes_of(y)
    head = LinearHead.fit(F, classes, patients, THREE, free=C)
    penalty, standard = head.choice.penalty, Standard.of(F)
    assert penalty in CLASS_PENALTIES
    scaled = head.weights / np.where(standard.inverse_scale, standard.inverse_scale, 1)[:, None]
    w = torch.from_numpy(scaled).requires_grad_()
    v = torch.from_numpy(head.free_weights).requires_grad_()
    a = torch.from_numpy(head.intercept).requires_grad_()
    scores = torch.from_numpy(standard(F)) @ w + torch.from_numpy(C - head.free_centre) @ v + a
    loss = torch.nn.functional.cross_entropy(scores, torch.from_numpy(classes).long(), reduction="sum")
    gradients = torch.autograd.grad(loss + penalty * w.square().sum() / 2, (w, v, a))
    assert max(float(g.abs().max()) for g in gradients[::2]) < 1e-5
    told = head.predict(F, C)
    assert np.allclose(told, torch.softmax(scores, 1).detach().numpy(), rtol=1e-9)
    assert np.allclose(told.sum(axis=1), 1)
    assert (told.argmax(axis=1) == classes).mean() > 0.6


def test_newtons_steps_reach_the_minimum_from_anywhere() -> None:
    X = np.concatenate([drawn(50, 6), np.ones((50, 1))], axis=1)
    classes = np.random.default_rng(1).integers(0, 4, 50)
    penalties = np.r_[np.full(6, 0.01), 1e-6]
    here = logistic.fitted(X, classes, 4, penalties)
    there = logistic.fitted(X, classes, 4, penalties, 5 * drawn(7, 4, seed=2))
    assert np.allclose(here[:6], there[:6], atol=1e-6)
    P = np.exp(logistic.log_softmax(X @ here))
    gradient = X.T @ (P - np.eye(4)[classes]) + penalties[:, None] * here
    assert np.abs(gradient).max() < 1e-6


def test_separable_and_rare_classes_stay_finite() -> None:
    F, patients = drawn(40, 3), rows_of(20)
    classes = (F[:, 0] > 0).astype(float)
    separable = LinearHead.fit(F * 1e3, classes, patients, Task("classes", ("no", "yes")))
    assert (separable.predict(F * 1e3).argmax(axis=1) == classes).all()
    classes[:2] = 2  # a class that one patient alone has
    rare = LinearHead.fit(F, classes, patients, THREE)
    assert np.isfinite(rare.predict(F)).all()
    assert np.isfinite(rare.choice.errors).all()


@pytest.mark.parametrize("features", [4, 60])
def test_training_distances_are_those_of_heads_without_the_patient(features: int) -> None:
    F, _, y, patients = cohort(features)
    head = LinearHead.fit(F, y, patients, MEAN)
    X, penalty, numbers = Standard.of(F)(F), head.choice.penalty, patient_numbers(patients)
    expected = []
    for row in range(len(y)):
        others = X[numbers != numbers[row]]
        A, x = others - others.mean(axis=0), X[row] - others.mean(axis=0)
        expected.append(x @ np.linalg.solve(A.T @ A + penalty * np.eye(features), x))
    assert np.allclose(head.training_distances, np.sort(expected), rtol=1e-8)
    asked = drawn(5, features, seed=8) * 3
    x = Standard.of(F)(asked)
    inverse = np.linalg.inv(X.T @ X + penalty * np.eye(features))
    assert np.allclose(head.distances(asked), np.einsum("ij,jk,ik->i", x, inverse, x), rtol=1e-7)


def test_a_new_patient_stands_anywhere_and_a_stranger_at_the_end() -> None:
    F, patients = drawn(300, 400) * 5, rows_of(150)
    y = F[:, 0] + drawn(300, seed=1)
    head = LinearHead.fit(F[:200], y[:200], patients[:200], MEAN)
    percentiles = head.percentiles(head.distances(F[200:]))
    assert 35 < percentiles.mean() < 65
    assert percentiles.min() < 15
    assert percentiles.max() > 85
    assert head.percentiles(head.distances(F[200:201] * 4)) == [100]
    assert head.percentiles(head.training_distances[[0, -1]]) == pytest.approx([0.25, 99.75])


def test_rows_of_one_scan_count_once_among_the_distances() -> None:
    scans = drawn(12, 30)
    head = LinearHead.fit(np.repeat(scans, 3, axis=0), drawn(36, seed=1), rows_of(12, 3), MEAN)
    assert head.training_distances.shape == (12,)
    assert head.principal.axes.shape == (30, 11)


@pytest.mark.parametrize("task", [MEAN, QUANTILES, THREE])
def test_the_gradient_is_that_of_the_answer(task: Task) -> None:
    F, C, y, patients = cohort(6)
    head = LinearHead.fit(F, classes_of(y) if task is THREE else y, patients, task, free=C)
    row, told = F[3], head.predict(F[3:4], C[3:4])[0]

    def answer(at: Array) -> float:
        value = head.predict(at[None], C[3:4])[0]
        if task is not THREE:
            return float(value[len(value) // 2])
        p = value[told.argmax()]
        return float(np.log(p / (1 - p)))

    steps = np.diag(1e-5 * F.std(axis=0))
    numeric = [(answer(row + step) - answer(row - step)) / (2 * step.sum()) for step in steps]
    assert np.allclose(head.gradient(row, C[3]), numeric, rtol=1e-5, atol=1e-6 * np.abs(numeric).max())


@pytest.mark.parametrize("task", [MEAN, QUANTILES, THREE])
def test_a_saved_head_answers_with_the_same_bits(task: Task) -> None:
    F, C, y, patients = cohort(6)
    y = classes_of(y) if task is THREE else y
    head, other = (LinearHead.fit(F, y, patients, task, free=C, seed=seed) for seed in (0, 1))
    again = LinearHead.from_saved(head.tensors(), head.manifest())
    assert np.array_equal(again.predict(F, C), head.predict(F, C))
    assert np.array_equal(again.distances(F), head.distances(F))
    assert again.manifest() == head.manifest()
    assert np.array_equal(LinearHead.fit(F, y, patients, task, free=C).weights, head.weights)
    changed = {**head.tensors(), "weights": head.weights * 1.001}
    with pytest.raises(InvalidShape, match="two are mixed"):
        LinearHead.from_saved(changed, head.manifest())
    with pytest.raises(InvalidShape, match="schema 0, not 1"):
        LinearHead.from_saved(head.tensors(), {**other.manifest(), "schema": 0})


def test_heads_refuse_what_they_cannot_take() -> None:
    F, C, y, patients = cohort(3)
    with pytest.raises(InvalidShape, match="1 patients: a linear head needs 2"):
        LinearHead.fit(F, y, ["p"] * 40, MEAN)
    with pytest.raises(InvalidShape, match=r"numbers of rows differ: .*'groups': 39"):
        LinearHead.fit(F, y, patients[1:], MEAN)
    with pytest.raises(NonFinite, match=r"free .* \(4, 1\)"):
        LinearHead.fit(F, y, patients, MEAN, free=np.where(np.arange(80).reshape(40, 2) == 9, np.nan, C))
    with pytest.raises(InvalidShape, match=r"target of row 0 is .*, not the number of one of 3 classes"):
        LinearHead.fit(F, y, patients, THREE)
    with pytest.raises(InvalidShape, match="all 40 rows are of the class 'b'"):
        LinearHead.fit(F, np.ones(40), patients, THREE)
    head = LinearHead.fit(F, y, patients, MEAN, free=C)
    with pytest.raises(InvalidShape, match=r"features must be \(rows, 3\)"):
        head.predict(F[:, :2], C)
    with pytest.raises(InvalidShape, match=r"covariates must be \(rows, 2\)"):
        head.predict(F)
    with pytest.raises(NonFinite):
        head.distances(F * np.inf)


@pytest.mark.parametrize(("rows", "columns"), [(12, 3), (12, 11), (12, 40), (2, 1)])
@pytest.mark.parametrize("penalty", [1e-4, 1.0, 1e6])
def test_leave_one_out_residuals_are_those_of_refits(rows: int, columns: int, penalty: float) -> None:
    X, y = 5 + normal(rows, columns), 100 + normal(rows, seed=1)
    assert torch.allclose(leave_one_out(X, y, penalty), refitted(X, y, penalty), rtol=1e-8, atol=1e-9)


def test_leave_one_out_stays_exact_where_every_row_is_interpolated() -> None:
    X, y, penalty = normal(20, 60), normal(20, seed=1), 1e-7
    residuals = leave_one_out(X, y, penalty)
    assert torch.allclose(residuals, refitted(X, y, penalty), rtol=1e-5)
    assert torch.allclose(leave_one_out(X * 1e3, y, penalty * 1e6), residuals, rtol=1e-6)


def test_leave_one_out_has_the_right_gradient() -> None:
    for columns in (2, 9):
        X, y = normal(6, columns).requires_grad_(), normal(6, seed=1).requires_grad_()
        assert torch.autograd.gradcheck(lambda X, y: leave_one_out(X, y, 0.3), (X, y))


def test_leave_one_out_of_features_that_tell_nothing_is_the_mean_of_the_others() -> None:
    y = normal(7, seed=1)
    X = torch.full((7, 4), 3.0, dtype=torch.float64, requires_grad=True)
    residuals = leave_one_out(X, y, 1e-3)
    assert torch.allclose(residuals, (y - y.mean()) * 7 / 6, rtol=1e-12)
    residuals.square().sum().backward()
    assert X.grad is not None
    assert bool(X.grad.isfinite().all())


def test_leave_one_out_takes_float32_and_answers_in_float64() -> None:
    X, y = normal(8, 3).float().requires_grad_(), normal(8, seed=1).float()
    residuals = leave_one_out(X, y, 1.0)
    assert residuals.dtype == torch.float64
    residuals.square().mean().backward()
    assert X.grad is not None
    assert X.grad.dtype == torch.float32


def test_leave_one_out_refuses_what_it_cannot_take() -> None:
    X, y = normal(5, 2), normal(5, seed=1)
    with pytest.raises(InvalidShape, match=r"at least 2 rows"):
        leave_one_out(X[:1], y[:1], 1.0)
    with pytest.raises(InvalidShape, match=r"targets \(4,\)"):
        leave_one_out(X, y[:4], 1.0)
    with pytest.raises(InvalidConfig, match="penalty = 0"):
        leave_one_out(X, y, 0.0)
    with pytest.raises(NonFinite, match=r"features .* \(2, 1\)"):
        leave_one_out(
            X.index_put((torch.tensor(2), torch.tensor(1)), torch.tensor(torch.nan).double()), y, 1.0
        )


def test_proportional_features_that_do_not_vary_tell_the_mean() -> None:
    y = np.arange(12.0)
    head = LinearHead.fit(np.ones((12, 3)), y, [f"p{k}" for k in range(12)], MEAN, proportional=True)
    assert head.predict(np.ones((2, 3)))[:, 0] == pytest.approx([5.5, 5.5])
