"""Tensor rings: contraction by definition, the paper's TR-SVD, its error and its search."""

from __future__ import annotations

from math import sqrt
from pathlib import Path

import pytest
import torch

from models.errors import InvalidConfig, InvalidShape, NonFinite
from models.rsdtr.cuts import cut, divisors
from models.rsdtr.reference import reference_ring, tr_svd
from models.rsdtr.ring import RingShape, TensorRing, contracted

RESNETS = Path(__file__).resolve().parents[3] / "shared" / "data" / "cifar10"
OFFICIAL: dict[
    str, tuple[dict[float, float], int]
] = {  # whole-network compression by the paper's code, and parameters of the network
    "resnet20": ({0.3: 1.257, 0.5: 2.030, 0.7: 3.568}, 269_722),
    "resnet32": ({0.5: 2.095}, 464_154),
}


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def decaying(*shape: int, seed: int = 0) -> torch.Tensor:
    """A batch of arrays whose entries fall with every index: ranks to be found."""
    arrays = normal(*shape, seed=seed)
    for axis, size in enumerate(shape[1:], start=1):
        fall = torch.arange(1, size + 1, dtype=torch.float64) ** -0.8
        arrays = arrays * fall.reshape(*(size if k == axis else 1 for k in range(len(shape))))
    return arrays


def ring(sizes: tuple[int, ...], modes: tuple[tuple[int, ...], ...], ranks: tuple[int, ...]) -> TensorRing:
    shape = RingShape(sizes, modes, ranks)
    pairs = zip(shape.lengths, shape.bonds, strict=True)
    return TensorRing(shape, tuple(normal(2, left, n, right, seed=n) for n, (left, right) in pairs))


@pytest.mark.parametrize(
    ("modes", "ranks"),
    [
        (((0,), (1,), (2,), (3,)), (2, 3, 4, 5)),
        (((2,), (0,), (3,), (1,)), (5, 1, 4, 2)),
        (((1,), (3, 2), (0,)), (3, 4, 2)),
        (((0, 3), (2, 1)), (2, 3)),
    ],
)
def test_a_ring_is_the_trace_of_its_slices(
    modes: tuple[tuple[int, ...], ...], ranks: tuple[int, ...]
) -> None:
    sizes = (3, 4, 2, 5)
    made = ring(sizes, modes, ranks)
    full = made.full()
    assert made.storage == sum(core.numel() for core in made.cores) == 2 * made.shape.storage
    for at in [(0, 0, 0, 0), (2, 3, 1, 4), (1, 2, 0, 3)]:
        for batch in range(2):
            product = torch.eye(ranks[0], dtype=torch.float64)
            for mode, core in zip(modes, made.cores, strict=True):
                place = 0
                for axis in mode:
                    place = place * sizes[axis] + at[axis]
                product = product @ core[batch, :, place]
            assert float(full[(batch, *at)]) == pytest.approx(float(product.trace()), rel=1e-12)


def test_a_balanced_ring_is_the_same_array_by_cores_of_equal_norm() -> None:
    made = ring((3, 4, 2, 5), ((0,), (1,), (2,), (3,)), (2, 3, 4, 5))
    even = made.balanced()
    torch.testing.assert_close(even.full(), made.full(), rtol=1e-12, atol=1e-12)
    norms = torch.stack([core.flatten(1).norm(dim=1) for core in even.cores])
    torch.testing.assert_close(norms, norms[:1].expand_as(norms), rtol=1e-12, atol=0)
    zero = TensorRing(made.shape, tuple(0 * core for core in made.cores))
    assert torch.equal(zero.balanced().full(), torch.zeros_like(made.full()))


def test_gradients_go_through_the_contraction() -> None:
    made = ring((3, 2, 2), ((0,), (2,), (1,)), (2, 1, 3))
    cores = tuple(core.requires_grad_() for core in made.cores)
    for pair in [(0, 1), (0, 2), (1, 2)]:
        assert torch.autograd.gradcheck(lambda *given, pair=pair: contracted(made.shape, given, pair), cores)


@pytest.mark.parametrize(
    "shape", [(1, 6, 5, 3, 3), (1, 8, 4, 2, 3, 3), (1, 7, 9, 5), (3, 4, 5, 3, 3), (1, 6, 6)]
)
@pytest.mark.parametrize("eps", [0.1, 0.5, 0.7])
def test_the_papers_ring_is_within_the_error(shape: tuple[int, ...], eps: float) -> None:
    for arrays in (normal(*shape), decaying(*shape)):
        found = reference_ring(arrays, eps)
        assert found.relative_error(arrays) <= eps
        assert found.shape.modes == tuple((axis,) for axis in range(len(shape) - 1))


def test_the_papers_search_takes_the_best_of_all_shifts_and_divisors() -> None:
    arrays, eps = decaying(1, 8, 6, 3, 4), 0.4
    storages = []
    for shift in range(4):
        turned = arrays.permute(0, *(1 + (shift + k) % 4 for k in range(4)))
        energies = torch.linalg.svdvals(turned[0].flatten(1)).square()
        left_out = [float(energies[r:].sum()) for r in range(len(energies) + 1)]
        allowed = (eps / sqrt(3)) ** 2 * float(energies.sum())
        rank = next(r for r in range(1, len(left_out)) if left_out[r] < allowed)
        storages += [tr_svd(turned, eps, start).storage for start in divisors(rank)]
    assert reference_ring(arrays, eps).storage == min(storages) < max(storages)


def test_each_cut_of_the_paper_leaves_out_less_than_its_share_and_not_much_less_than_it_could() -> None:
    arrays = decaying(1, 16, 9, 7)
    eps = 0.3
    made = tr_svd(arrays, eps, 1)
    energies = torch.linalg.svdvals(arrays[0].flatten(1)).square()
    rank = made.shape.ranks[1]
    allowed = eps**2 / 2 * float(energies.sum())
    assert float(energies[rank:].sum()) < allowed <= float(energies[rank - 1 :].sum())


@pytest.mark.skipif(not RESNETS.is_dir(), reason="the pretrained networks of ../shared are absent")
@pytest.mark.parametrize("name", ["resnet20", pytest.param("resnet32", marks=pytest.mark.slow)])
def test_compression_of_pretrained_networks_is_that_of_the_papers_code(name: str) -> None:
    from safetensors.torch import load_file

    weights = load_file(RESNETS / f"{name}.safetensors")
    kernels = [w for key, w in weights.items() if key.startswith("layer") and ".conv" in key]
    dense, (ratios, parameters) = sum(kernel.numel() for kernel in kernels), OFFICIAL[name]
    for eps, official in ratios.items():
        storage = sum(reference_ring(kernel[None], eps).storage for kernel in kernels)
        assert parameters / (parameters - dense + storage) == pytest.approx(official, rel=0.01)


@pytest.mark.parametrize("shape", [(1, 5, 40), (1, 40, 5), (3, 6, 6)])
def test_a_cut_is_the_truncated_svd_with_largest_components_positive(shape: tuple[int, ...]) -> None:
    matrices = normal(*shape)
    basis, rest = cut(matrices, 3)
    u, s, vh = torch.linalg.svd(matrices, full_matrices=False)
    best = (u[..., :3] * s[:, None, :3]) @ vh[:, :3]
    torch.testing.assert_close(basis @ rest, best, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        basis.mT @ basis, torch.eye(3, dtype=torch.float64).expand(shape[0], 3, 3), rtol=0, atol=1e-12
    )
    assert bool((basis.gather(1, basis.abs().argmax(1, keepdim=True)) > 0).all())


def test_what_makes_no_ring_is_refused() -> None:
    with pytest.raises(InvalidShape, match="must hold each axis"):
        RingShape((3, 4), ((0,), (0,)), (1, 1))
    with pytest.raises(InvalidShape, match="as many positive ranks"):
        RingShape((3, 4), ((0,), (1,)), (1, 0))
    with pytest.raises(InvalidShape, match="cores of a ring"):
        TensorRing(RingShape((3, 4), ((0,), (1,)), (1, 2)), (normal(1, 1, 3, 2), normal(1, 2, 5, 1)))
    with pytest.raises(InvalidShape, match="no multiple of 7"):
        tr_svd(normal(1, 4, 5, 6), 0.5, 7)
    with pytest.raises(InvalidShape, match="two axes or more"):
        reference_ring(normal(1, 4), 0.5)
    for eps in (0.0, 1.0, 1e-9, float("nan")):
        with pytest.raises(InvalidConfig, match="eps"):
            reference_ring(normal(1, 4, 4), eps)
    with pytest.raises(NonFinite):
        reference_ring(normal(1, 4, 4) * float("inf"), 0.5)
