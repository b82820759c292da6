"""Principal components of tensor trains: by the Gram matrix, by the paper's concatenation, densely."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from model_fields import random_train
from torch import Tensor

from models.cpic.projection import AnchorBank, Basis, inverse_root, ridge_features
from models.cpic.tt_projection import TrainBasis, concatenated
from models.errors import InvalidConfig, InvalidShape
from models.tt import gram as gram_module
from models.tt.gram import gram
from models.tt.train import TensorTrain, stacked

CUBE = (8, 8, 8, 4)
BITS = (2,) * 11
DENSE_MEAN = 3.0


def batch(modes: tuple[int, ...], rank: int, seeds: range) -> TensorTrain:
    return stacked([random_train(modes, rank, seed) for seed in seeds])


def combined(trains: TensorTrain, weights: Tensor) -> TensorTrain:
    """Linear combinations (m, K) of a batch (K,), as a batch (m,)."""
    block = concatenated(trains)
    first = torch.einsum("mk,knb->mnb", weights, block.cores[1])[:, None]
    return TensorTrain((first, *(core.expand(len(weights), *core.shape) for core in block.cores[2:])))


def gaussian(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def shifted(count: int, rank: int = 3, seed: int = 0, modes: tuple[int, ...] = CUBE) -> TensorTrain:
    """Random trains with a common part that outweighs them, as scans have."""
    trains = batch(modes, rank, range(seed, seed + count + 1))
    weights = torch.cat([torch.eye(count), DENSE_MEAN * torch.ones(count, 1)], dim=1).double()
    return combined(trains, weights)


def dense_features(trains: TensorTrain, features: int) -> Tensor:
    """U S of the centred dense matrix, (K, features)."""
    matrix = trains.full().flatten(1)
    U, S, _ = torch.linalg.svd(matrix - matrix.mean(dim=0), full_matrices=False)
    return (U * S)[:, :features]


def same_up_to_sign(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference relative to the largest feature, with signs made equal."""
    signs = (ours * theirs).sum(dim=0).sign()
    return float((ours - theirs * signs).abs().max() / theirs.abs().max())


def test_a_gram_matrix_holds_the_inner_products_of_all_pairs() -> None:
    a, b = batch((4, 1, 5, 3), 3, range(3)), batch((4, 1, 5, 3), 2, range(7, 12))
    expected = a.full().flatten(1) @ b.full().flatten(1).T
    assert torch.allclose(gram(a, b), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("numbers", [1, 100, 400])
def test_a_gram_matrix_in_portions_is_the_same(numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = batch(BITS, 4, range(5)), batch(BITS, 4, range(5, 12))
    whole = gram(a, b)
    monkeypatch.setattr(gram_module, "PORTION_NUMBERS", numbers)
    assert torch.allclose(gram(a, b), whole, rtol=1e-13, atol=0)


def test_a_gram_matrix_has_the_right_gradient_in_both() -> None:
    a, b = batch((2, 3, 2), 2, range(2)), batch((2, 3, 2), 2, range(2, 5))
    cores = [core.clone().requires_grad_() for core in (*a.cores, *b.cores)]
    assert torch.autograd.gradcheck(
        lambda *cores: gram(TensorTrain(cores[:3]), TensorTrain(cores[3:])), cores
    )


def test_what_has_no_gram_matrix_is_refused() -> None:
    with pytest.raises(InvalidShape, match="no inner products"):
        gram(batch((2, 3), 1, range(2)), batch((3, 2), 1, range(2)))
    with pytest.raises(InvalidShape, match=r"batches \(K, ...\), not of batch axes \(\)"):
        gram(random_train((2, 3), 1, 0), batch((2, 3), 1, range(2)))


def test_features_are_those_of_the_dense_svd() -> None:
    trains = shifted(12)
    basis = Basis.of(trains, 5)
    expected = dense_features(trains, 5)
    features = basis.features(trains)
    assert same_up_to_sign(features, expected) < 1e-9
    assert torch.allclose(features @ features.T, expected @ expected.T, rtol=0, atol=1e-8)
    variance = trains.full().flatten(1).var(dim=0, correction=0).sum() * 12
    assert basis.captured == pytest.approx(float(expected.square().sum() / variance), rel=1e-9)
    assert basis.total_energy == pytest.approx(float(variance), rel=1e-9)


def test_features_of_the_anchors_are_the_scaled_eigenvectors() -> None:
    trains = shifted(12, modes=BITS)
    G, H = gram(trains, trains), torch.eye(12, dtype=torch.float64) - 1 / 12
    eigenvalues, U = torch.linalg.eigh(H @ G @ H)
    expected = (U * eigenvalues.clamp(min=0).sqrt()).flip(1)[:, :6]
    basis = Basis.of(trains, 6)
    assert same_up_to_sign(basis.features(trains), expected) < 1e-9
    assert torch.allclose(basis.energies, eigenvalues.flip(0)[:6], rtol=1e-9)


@pytest.mark.parametrize("centred", [True, False])
def test_the_papers_route_gives_the_dense_features(centred: bool) -> None:
    trains = shifted(12)
    matrix = trains.full().flatten(1)
    matrix = matrix - matrix.mean(dim=0) if centred else matrix
    U, S, Vh = torch.linalg.svd(matrix, full_matrices=False)
    basis = TrainBasis.of(trains, 5, centred=centred)
    features = basis.features(trains)
    expected = (U * S)[:, :5]
    assert same_up_to_sign(features, expected) < 1e-10
    assert torch.allclose(features @ features.T, expected @ expected.T, rtol=0, atol=1e-8)
    vectors = basis.trains.full().flatten(1)
    assert torch.allclose((vectors @ Vh[:5].T).abs(), torch.eye(5).double(), rtol=0, atol=1e-8)
    assert basis.captured == pytest.approx(float(S[:5].square().sum() / S.square().sum()), rel=1e-12)


def test_both_routes_agree_on_trains_that_were_no_anchors() -> None:
    anchors, others = shifted(12, modes=BITS), shifted(7, seed=50, modes=BITS)
    by_gram, by_svd = Basis.of(anchors, 6), TrainBasis.of(anchors, 6)
    assert same_up_to_sign(by_gram.features(others), by_svd.features(others)) < 1e-9
    assert by_gram.captured == pytest.approx(by_svd.captured, rel=1e-10)


def test_cutting_every_bond_to_the_number_of_features_loses_energy() -> None:
    anchors = shifted(12, rank=6, modes=BITS)
    best, cut = TrainBasis.of(anchors, 6), TrainBasis.of(anchors, 6, max_rank=6)
    assert max(cut.trains.ranks) <= 6 < max(best.trains.ranks)
    assert cut.captured < best.captured - 0.05
    assert Basis.of(anchors, 6).captured == pytest.approx(best.captured, abs=1e-9)


def test_inference_is_the_same_map_as_training_and_is_linear() -> None:
    anchors = shifted(10)
    basis = Basis.of(anchors, 4)
    features = basis.features(anchors)
    for k in (0, 7):
        alone = basis.features(anchors[k : k + 1])
        assert torch.allclose(alone, features[k], rtol=0, atol=1e-12 * float(features.abs().max()))
    mean = combined(anchors, torch.full((1, 10), 0.1, dtype=torch.float64))
    assert float(basis.features(mean).abs().max()) < 1e-12 * float(features.abs().max())


def test_gradients_reach_the_trains_and_not_the_anchors() -> None:
    cores = [core.clone().requires_grad_() for core in batch((2, 3, 2), 2, range(4)).cores]
    basis = Basis.of(TensorTrain(tuple(cores)), 2)
    assert not any(core.requires_grad for core in basis.anchors.cores)
    assert not basis.coefficients.requires_grad
    assert torch.autograd.gradcheck(lambda *cores: basis.features(TensorTrain(cores)), cores)
    assert torch.autograd.gradcheck(lambda *cores: basis.outside_share(TensorTrain(cores)), cores)


def _zeros() -> TensorTrain:
    return TensorTrain(tuple(torch.zeros_like(core) for core in batch(BITS, 2, range(4)).cores))


def _equal_eigenvalues() -> TensorTrain:
    """Unit trains on different entries: the Gram matrix is the identity."""
    eye = torch.eye(4, dtype=torch.float64).reshape(4, 1, 4, 1)
    return TensorTrain((eye, torch.ones(4, 1, 1, 1, dtype=torch.float64)))


DEGENERATE: dict[str, tuple[Callable[[], TensorTrain], int]] = {
    "fewer anchors than features": (lambda: shifted(3), 2),
    "one anchor": (lambda: shifted(1), 0),
    "duplicates": (lambda: stacked([shifted(4)[k] for k in (0, 1, 0, 1, 2)]), 2),
    "identical": (lambda: stacked([shifted(4)[0]] * 6), 0),
    "zero": (_zeros, 0),
    "equal eigenvalues": (_equal_eigenvalues, 3),
}


@pytest.mark.parametrize("case", DEGENERATE)
def test_the_width_stays_and_directions_without_variance_are_zero(case: str) -> None:
    make, rank = DEGENERATE[case]
    cores = [core.clone().requires_grad_() for core in make().cores]
    anchors = TensorTrain(tuple(cores))
    basis, paper = Basis.of(anchors, 8), TrainBasis.of(anchors, 8)
    assert int((basis.energies > 0).sum()) == int((paper.singular_values > 0).sum()) == rank
    for features in (basis.features(anchors), paper.features(anchors)):
        assert features.shape == (len(anchors.cores[0]), 8)
        assert bool((features[:, :rank].abs().amax(dim=0) > 0).all())
        assert not bool(features[:, rank:].any())
    standardised = basis.features(anchors, standardised=True)
    spread = standardised.square().mean(dim=0)
    assert torch.allclose(spread, (torch.arange(8) < rank).double(), rtol=0, atol=1e-9)
    values = (*standardised.sum(dim=1), *basis.outside(anchors), *basis.outside_share(anchors))
    gradients = torch.autograd.grad(torch.stack(values).sum(), cores)
    assert all(bool(g.isfinite().all()) for g in gradients)
    assert basis.captured == paper.captured == 1.0 or rank
    assert basis.captured == pytest.approx(1.0, abs=1e-9)


def test_gauges_do_not_matter() -> None:
    trains = shifted(12, rank=4, modes=(4, 4, 4, 4, 4))
    cores = list(trains.cores)
    for bond in range(4):
        r = cores[bond].shape[-1]
        q1, q2 = (torch.linalg.qr(gaussian(12, r, r, seed=10 * bond + s))[0] for s in (0, 1))
        scales = torch.logspace(0, 3, r, dtype=torch.float64)
        M, inverse = q1 * scales @ q2, q2.mT / scales @ q1.mT
        cores[bond] = torch.einsum("klns,kst->klnt", cores[bond], M)
        cores[bond + 1] = torch.einsum("kst,ktnr->ksnr", inverse, cores[bond + 1])
    changed = TensorTrain(tuple(cores))
    features = Basis.of(trains, 6).features(trains)
    moved = Basis.of(changed, 6).features(changed) - features
    assert float(moved.abs().max()) <= 1e-9 * float(features.abs().max())


def test_energy_outside_is_the_dense_residual() -> None:
    anchors, others = shifted(9), shifted(5, seed=30)
    basis = Basis.of(anchors, 3)
    matrix = anchors.full().flatten(1)
    Vh = torch.linalg.svd(matrix - matrix.mean(dim=0), full_matrices=False)[2][:3]
    away = others.full().flatten(1) - matrix.mean(dim=0)
    residual = away - away @ Vh.T @ Vh
    assert torch.allclose(basis.outside(others), residual.square().sum(dim=1), rtol=1e-9)
    share = residual.square().sum(dim=1) / away.square().sum(dim=1)
    assert torch.allclose(basis.outside_share(others), share, rtol=1e-9)
    inside = combined(anchors, torch.softmax(gaussian(4, 9, seed=1), dim=1))
    assert float(Basis.of(anchors, 8).outside_share(inside).max()) < 1e-9
    mean_of_anchors = float(basis.outside(anchors).mean())
    assert mean_of_anchors == pytest.approx((1 - basis.captured) * basis.total_energy / 9, rel=1e-9)


def family(count: int, seed: int, noise: float = 1e-3) -> TensorTrain:
    """Draws from one space of four directions with a little noise, about a large mean."""
    space = batch(CUBE, 2, range(100, 105))
    weights = torch.cat([gaussian(count, 4, seed=seed), 20 * torch.ones(count, 1).double()], dim=1)
    own = batch(CUBE, 1, range(1000 * seed, 1000 * seed + count))
    scale = noise * torch.eye(count, dtype=torch.float64)
    both = stacked([*(space[k] for k in range(5)), *(own[k] for k in range(count))])
    return combined(both, torch.cat([weights, scale], dim=1))


def test_aligned_features_hardly_move_when_anchors_are_refreshed() -> None:
    scans = family(6, seed=3)
    old, new = Basis.of(family(15, seed=1), 4), Basis.of(family(15, seed=2), 4)
    before, size = old.features(scans), float(old.features(scans).square().mean().sqrt())
    aligned = new.aligned_to(old)
    assert float((new.features(scans) - before).abs().max()) > 0.5 * size
    assert float((aligned.features(scans) - before).abs().max()) <= 0.01 * size
    assert aligned.captured == pytest.approx(new.captured, rel=1e-12)
    assert torch.allclose(aligned.outside(scans), new.outside(scans), rtol=1e-6)
    again = Basis.of(family(15, seed=4), 4).aligned_to(aligned)
    assert float((again.features(scans) - before).abs().max()) <= 0.01 * size
    centred = new.aligned_to(old, keep_origin=False)
    assert float(centred.features(new.anchors).mean(dim=0).abs().max()) < 1e-9 * size
    spread = centred.features(new.anchors, standardised=True).square().mean(dim=0)
    assert torch.allclose(spread, torch.ones(4).double(), rtol=1e-9)


def test_alignment_undoes_order_sign_and_rotation_exactly() -> None:
    old = Basis.of(shifted(12), 5)
    shuffled = stacked([old.anchors[k] for k in (5, 2, 11, 0, 7, 9, 1, 4, 10, 3, 8, 6)])
    new = Basis.of(shuffled, 5).aligned_to(old)
    others = shifted(4, seed=40)
    assert torch.allclose(new.features(others), old.features(others), rtol=0, atol=1e-9)
    assert float(new.origin.abs().max()) < 1e-9


@pytest.mark.parametrize(("before", "after"), [(3, 6), (6, 3), (1, 4), (4, 1), (1, 1)])
def test_alignment_bears_directions_that_one_basis_lacks(before: int, after: int) -> None:
    anchors = shifted(6)
    old, new = (Basis.of(anchors[:count], 8) for count in (before, after))
    aligned = new.aligned_to(old)
    common = anchors[: min(before, after)]
    distances = torch.cdist(common.full().flatten(1), common.full().flatten(1))
    assert torch.allclose(torch.cdist(*2 * [aligned.features(common)]), distances, rtol=0, atol=1e-6)
    assert not bool(aligned.features(anchors)[:, max(before, after) - 1 :].any())
    assert bool(aligned.features(anchors, standardised=True).isfinite().all())
    assert aligned.captured == pytest.approx(1.0, abs=1e-9)
    with pytest.raises(InvalidShape, match="8 features cannot follow one of 7"):
        new.aligned_to(Basis.of(anchors, 7))


@pytest.mark.parametrize("seed", [0, 1])
def test_a_saved_basis_is_the_same_bits(seed: int) -> None:
    old = Basis.of(shifted(6, seed=9), 4)
    basis = Basis.of(shifted(7, seed=seed), 4).aligned_to(old)
    for saved in (old, basis):
        assert all(array.flags.c_contiguous for array in saved.tensors().values())
    again = Basis.from_tensors(basis.tensors(), basis.manifest())
    others = shifted(3, seed=20)
    for standardised in (False, True):
        ours = again.features(others, standardised=standardised)
        assert torch.equal(ours, basis.features(others, standardised=standardised))
    assert torch.equal(again.outside(others), basis.outside(others))
    assert again.captured == basis.captured
    assert torch.equal(again.aligned_to(old).coefficients, basis.aligned_to(old).coefficients)


def test_what_does_not_belong_together_is_refused() -> None:
    basis, other = Basis.of(shifted(6), 4), Basis.of(shifted(6, seed=9), 4)
    tensors, manifest = basis.tensors(), basis.manifest()

    def refused(message: str, **changes: object) -> None:
        with pytest.raises(InvalidShape, match=message):
            Basis.from_tensors({**tensors, **changes}, manifest)

    lacking = {name: array for name, array in tensors.items() if name != "energy"}
    with pytest.raises(InvalidShape, match="lacks energy"):
        Basis.from_tensors(lacking, manifest)
    with pytest.raises(InvalidShape, match=r"features: the tensors have 4, the manifest 5"):
        Basis.from_tensors(tensors, {**manifest, "features": 5})
    with pytest.raises(InvalidShape, match=r"modes: .* the manifest \[8, 8, 4, 8\]"):
        Basis.from_tensors(tensors, {**manifest, "modes": [8, 8, 4, 8]})
    with pytest.raises(InvalidShape, match="total_energy = nan"):
        Basis.from_tensors(tensors, {**manifest, "total_energy": float("nan")})
    refused("coefficients .* must be finite", coefficients=tensors["coefficients"] * float("nan"))
    refused(r"energy of 6 anchors and 4 features .* \(4, 4\)", energy=tensors["energy"][:3])
    refused("bond 2", **{"anchor.1": tensors["anchor.1"][:, :, :, :-1]})
    refused("two bases are mixed", **{name: array for name, array in other.tensors().items() if "." in name})


def test_what_makes_no_basis_is_refused() -> None:
    trains = shifted(3)
    broken = TensorTrain((trains.cores[0].index_fill(0, torch.tensor([1]), torch.nan), *trains.cores[1:]))
    with pytest.raises(InvalidShape, match=r"numbers 0 and 1 of the anchors is nan: cores must be finite"):
        Basis.of(broken, 2)
    with pytest.raises(InvalidShape, match=r"numbers 1 and 0 of the trains and anchors is nan"):
        Basis.of(trains, 2).features(broken)
    with pytest.raises(InvalidShape, match=r"a batch \(K, ...\), not of batch axes \(\)"):
        Basis.of(trains[0], 2)
    with pytest.raises(InvalidConfig, match="features = 0"):
        Basis.of(trains, 0)
    with pytest.raises(InvalidConfig, match="features = 0"):
        TrainBasis.of(trains, 0)
    with pytest.raises(InvalidShape, match="no inner products between modes"):
        Basis.of(trains, 2).features(batch((8, 8, 8), 2, range(2)))


def test_a_bank_keeps_the_latest_and_replaces_by_name() -> None:
    trains = {name: random_train((2, 3, 2), rank, rank) for rank, name in enumerate("abcd", start=1)}
    bank = AnchorBank(3).updated({name: trains[name] for name in "abc"})
    fresh = TensorTrain(tuple(2 * core.clone().requires_grad_() for core in trains["a"].cores))
    refreshed = bank.updated({"a": fresh})
    assert list(bank.trains) == ["a", "b", "c"]
    assert list(refreshed.trains) == ["b", "c", "a"]
    later = refreshed.updated({"d": trains["d"]})
    assert list(later.trains) == ["c", "a", "d"]
    expected = torch.stack([trains["c"].full(), fresh.full().detach(), trains["d"].full()])
    assert torch.allclose(later.anchors().full(), expected)
    assert not later.anchors().cores[0].requires_grad
    with pytest.raises(InvalidConfig, match="capacity = 0"):
        AnchorBank(0)
    with pytest.raises(InvalidShape, match="at least one train"):
        AnchorBank(2).anchors()


@pytest.mark.parametrize(
    "eigenvalues", [(1, 2, 3, 4), (2, 2, 2, 5), (1, 1, 1, 1), (0, 0, 3, 3), (0, 0, 0, 0)]
)
def test_the_inverse_root_and_its_derivative_bear_equal_eigenvalues(eigenvalues: tuple[int, ...]) -> None:
    rotation = torch.linalg.qr(gaussian(4, 4, seed=2))[0]
    G = rotation * torch.tensor(eigenvalues, dtype=torch.float64) @ rotation.T
    root = inverse_root(G, 0.5)
    eye = torch.eye(4, dtype=torch.float64)
    assert torch.allclose(root @ (G + 0.5 * eye) @ root, eye, rtol=0, atol=1e-12)
    raised = (G + 0.01 * eye).requires_grad_()  # so that no difference quotient leaves the semidefinite
    assert torch.autograd.gradcheck(lambda G: inverse_root((G + G.T) / 2, 0.5), raised)
    at_G = G.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(inverse_root(at_G, 0.5).sum(), at_G)
    assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("centred", [True, False])
def test_ridge_features_are_whitened_principal_components(centred: bool) -> None:
    anchors, others = shifted(5), shifted(3, seed=30)
    matrix, away = anchors.full().flatten(1), others.full().flatten(1)
    if centred:
        away, matrix = away - matrix.mean(dim=0), matrix - matrix.mean(dim=0)
    U, S, Vh = torch.linalg.svd(matrix, full_matrices=False)
    expected = away @ Vh.T * (S / (S.square() + 2.0).sqrt()) @ U.T
    assert torch.allclose(ridge_features(others, anchors, 2.0, centred=centred), expected, rtol=0, atol=1e-9)


def test_the_gradient_through_the_basis_is_the_detached_one_and_what_the_anchors_add() -> None:
    direction = batch((2, 3, 2), 2, range(10, 14))
    start = stacked([*(random_train((2, 3, 2), 2, seed) for seed in range(3)), random_train((2, 3, 2), 2, 0)])

    def at(theta: Tensor | float) -> TensorTrain:
        pairs = zip(start.cores, direction.cores, strict=True)
        return TensorTrain(tuple(core + theta * step for core, step in pairs))

    def loss(trains: TensorTrain, anchors: TensorTrain) -> Tensor:
        return (ridge_features(trains, anchors, 0.1) * gaussian(4, 4, seed=5)).sum()

    theta = torch.zeros((), dtype=torch.float64, requires_grad=True)
    (whole,) = torch.autograd.grad(loss(at(theta), at(theta)), theta)
    (detached,) = torch.autograd.grad(loss(at(theta), at(0.0)), theta)
    h = 1e-5
    basis_term = (loss(at(0.0), at(h)) - loss(at(0.0), at(-h))) / (2 * h)
    assert abs(float(basis_term)) > 0.01 * abs(float(whole))
    assert float(whole) == pytest.approx(float(detached + basis_term), rel=1e-7)


@pytest.mark.parametrize("case", DEGENERATE)
def test_ridge_features_of_degenerate_anchors_are_finite_and_so_are_their_gradients(case: str) -> None:
    cores = [core.clone().requires_grad_() for core in DEGENERATE[case][0]().cores]
    anchors = TensorTrain(tuple(cores))
    features = ridge_features(anchors, anchors, 1e-3)
    assert bool(features.isfinite().all())
    gradients = torch.autograd.grad(features.square().sum(), cores)
    assert all(bool(g.isfinite().all()) for g in gradients)
    with pytest.raises(InvalidConfig, match="mu = 0"):
        ridge_features(anchors, anchors, 0.0)
