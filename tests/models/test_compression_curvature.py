"""A metric of what errors of kernels do to the answers, and plans made in it."""

import pytest
import torch
from torch import Tensor, nn

from models.compression.applying import compress_, compressed
from models.compression.budgets import BudgetConfig
from models.compression.curvature import Curvature, curvature
from models.compression.planning import plan
from models.compression.plans import CompressionPlan
from models.compression.tolerance import plan_within_drop
from models.errors import InvalidConfig, InvalidShape, NonFinite
from models.rsdtr.candidates import RingConfig
from models.rsdtr.low_rank import LowRankShape, low_rank_kernel, low_rank_of
from models.rsdtr.metric import DAMPING, KernelMetric
from models.rsdtr.ring import RingShape
from models.rsdtr.search import ring_of
from models.rsdtr.spectra import Spectra
from models.sttp.apply import SpectralConfig

SIZES = (6, 5, 3, 2)


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def positive(groups: int, n: int, seed: int) -> Tensor:
    root = drawn(groups, n, n, seed=seed)
    return root @ root.mT


def norm2(metric: KernelMetric, arrays: Tensor) -> float:
    return float(metric.weighted(arrays).square().sum())


def test_the_norm_is_the_quadratic_form_of_the_damped_matrices() -> None:
    matrices = [positive(1, n, seed) for seed, n in enumerate(SIZES)]
    kernel = drawn(1, *SIZES, seed=9)
    together = torch.ones(1, 1, dtype=torch.float64)
    for matrix in matrices:
        damping = DAMPING * matrix[0].diagonal().mean() * torch.eye(len(matrix[0]), dtype=torch.float64)
        together = torch.kron(together, matrix[0] + damping)
    flat = kernel.flatten()
    expected = float(flat @ together @ flat)
    assert norm2(KernelMetric.of(matrices), kernel) == pytest.approx(expected, rel=1e-12)


def test_a_ring_of_the_weighted_kernel_is_one_of_the_kernel_with_the_same_error() -> None:
    metric = KernelMetric.of([positive(2, n, seed) for seed, n in enumerate(SIZES)])
    kernel = drawn(2, *SIZES, seed=9)
    spectra = Spectra(metric.weighted(kernel), 0.3)
    for shape in (
        RingShape(SIZES, ((0,), (1,), (2, 3)), (2, 3, 4)),
        RingShape(SIZES, ((2,), (0,), (3,), (1,)), (1, 3, 5, 2)),
    ):
        found = ring_of(spectra, shape)
        made = metric.ring(found)
        assert made.shape == shape
        error = norm2(metric, made.full() - kernel) ** 0.5
        assert error == pytest.approx(float((found.full() - spectra.arrays).norm()), rel=1e-10)


@pytest.mark.parametrize("late", [(), (0,), (1,), (0, 1)])
def test_an_svd_of_the_weighted_kernel_is_the_best_of_its_rank_in_the_metric(late: tuple[int, ...]) -> None:
    metric = KernelMetric.of([positive(2, n, seed) for seed, n in enumerate(SIZES)])
    kernel = drawn(2, *SIZES, seed=9)
    shape = LowRankShape(SIZES, late, 3)

    def error(space: KernelMetric | None) -> float:
        arrays = kernel if space is None else space.weighted(kernel)
        factors = low_rank_of(Spectra(arrays, 0.3), shape)
        made = low_rank_kernel(shape, *(factors if space is None else space.low_rank(shape, factors)))
        return norm2(metric, made - kernel)

    rows = (0, *(2 + axis for axis in late))
    assert error(metric) == pytest.approx(
        Spectra(metric.weighted(kernel), 0.3).tails(rows).left_out(3), rel=1e-9
    )
    assert error(metric) < error(None)


def test_an_axis_that_shows_nothing_is_free_and_nothing_is_divided_by_zero() -> None:
    metric = KernelMetric.of([torch.zeros(1, n, n, dtype=torch.float64) for n in SIZES])
    kernel = drawn(1, *SIZES)
    ring = ring_of(Spectra(metric.weighted(kernel), 0.3), RingShape(SIZES, ((0,), (1,), (2, 3)), (2, 3, 4)))
    assert torch.isfinite(metric.ring(ring).full()).all()
    assert norm2(metric, kernel) < 1e-60


def test_of_one_output_the_curvature_of_a_linear_layer_is_exact() -> None:
    layer = nn.Linear(7, 1).double()
    x = drawn(40, 7) @ drawn(7, 7, seed=1)
    outputs, inputs = curvature(layer_in(layer), [x[:25], x[25:]]).layers["0"]
    torch.testing.assert_close(outputs, torch.ones(1, 1, 1, dtype=torch.float64))
    torch.testing.assert_close(inputs[0], x.T @ x / 40)
    change = drawn(1, 7, seed=5)
    estimated = torch.einsum("oi,gop,gij,pj->", change, outputs, inputs, change)
    torch.testing.assert_close(estimated, (x @ change.T).square().sum() / 40)


def test_of_a_network_gradients_are_those_of_the_answers() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    x = drawn(30, 5)
    found = curvature(net, [x]).layers["0"][0]
    hidden = torch.tanh(net[0](x))
    gradients = (1 - hidden**2) * net[2].weight
    torch.testing.assert_close(found[0], (gradients.T @ gradients / 30).detach())


def test_of_a_convolution_the_matrices_are_those_of_its_places() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 6, (3, 2), padding=1, dilation=(2, 1), groups=2).double()
    x = drawn(3, 4, 9, 8)
    outputs, inputs, rows, columns = curvature(layer_in(layer, nn.Flatten()), [x]).layers["0"]
    assert (outputs.shape, inputs.shape) == ((2, 3, 3), (2, 2, 2))
    groups = x.reshape(3, 2, 2, -1).permute(1, 2, 0, 3).flatten(2)
    torch.testing.assert_close(inputs, groups @ groups.mT / groups.shape[2])
    # rows: one of padding, taps 0, 2, 4: seven places, of which tap 0 sees rows 0 .. 5 and padding
    energy = x.square().sum() / (9 * 8)
    torch.testing.assert_close(rows[0, 0, 0], x[:, :, :6].square().sum() / (7 * 8) / energy)
    torch.testing.assert_close(rows[0, 1, 1], x[:, :, 1:8].square().sum() / (7 * 8) / energy)
    torch.testing.assert_close(rows[0, 0, 1], (x[:, :, :6] * x[:, :, 2:8]).sum() / (7 * 8) / energy)
    torch.testing.assert_close(columns[0, 0, 1], (x[..., :-1] * x[..., 1:]).sum() / (9 * 9) / energy)
    assert (torch.linalg.eigvalsh(rows[0]) > 0).all()
    places = layer(x)[0, 0].numel()
    torch.testing.assert_close(
        outputs.diagonal(dim1=1, dim2=2), torch.full((2, 3), float(places), dtype=torch.float64)
    )


def test_what_sees_nothing_but_padding_is_free() -> None:
    torch.manual_seed(0)
    layer = nn.Conv3d(2, 3, 3, padding=1).double()
    along = curvature(layer_in(layer, nn.Flatten()), [drawn(4, 2, 3, 1, 1)]).layers["0"][2:]
    for seen in along[1:]:
        torch.testing.assert_close(seen[0], torch.diag(torch.tensor([0.0, 1, 0], dtype=torch.float64)))
    assert (along[0][0].diagonal() > 0).all()


def test_strides_are_seen() -> None:
    torch.manual_seed(0)
    layer = nn.Conv1d(1, 1, 2, stride=2, padding_mode="circular").double()
    x = torch.tensor([[[1.0, 0, 2, 0, 3, 0]]], dtype=torch.float64)
    (seen,) = curvature(layer_in(layer, nn.Flatten()), [x]).layers["0"][2:]
    torch.testing.assert_close(seen[0], torch.diag(torch.tensor([2.0, 0], dtype=torch.float64)))


def layer_in(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers)


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 12, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.Conv2d(12, 12, 3, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 2),
    )


def smooth_images(count: int, seed: int = 3) -> Tensor:
    """Channels and neighbours that go together, as in pictures."""
    noise = nn.functional.interpolate(drawn(count, 1, 3, 3, seed=seed, dtype=torch.float32), size=12)
    return noise.expand(-1, 3, -1, -1) + 0.05 * drawn(count, 3, 12, 12, seed=seed + 1, dtype=torch.float32)


def test_the_model_is_left_as_it_is_and_the_same_inputs_give_the_same_curvature() -> None:
    net = network().train()
    net[3].weight.requires_grad_(False)
    net[0].weight.grad = torch.ones_like(net[0].weight)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    batches = smooth_images(8).split(4)
    state = torch.get_rng_state()
    first = curvature(net, batches)
    assert torch.equal(torch.get_rng_state(), state)
    assert curvature(net, batches).digest == first.digest
    assert curvature(net, batches, seed=1).digest != first.digest
    assert all(torch.equal(net.state_dict()[name], value) for name, value in before.items())
    assert net.training
    assert [own.requires_grad for own in net.parameters()].count(False) == 1
    assert torch.equal(net[0].weight.grad, torch.ones_like(net[0].weight))
    assert net[3].weight.grad is None
    assert not any(module._forward_hooks for module in net.modules())
    assert set(first.layers) == {"0", "3", "5", "8"}


def answers_change(net: nn.Module, made: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float((net.eval()(x) - made.eval()(x)).square().mean())


def test_at_equal_parameters_answers_change_less_than_by_the_kernels_own_norm() -> None:
    net, batches = network(), smooth_images(64).split(16)
    unseen = smooth_images(64, seed=11)
    found = curvature(net, batches)
    plain = plan(net, unseen[:1], BudgetConfig(pcr=2.5))
    told = plan(net, unseen[:1], BudgetConfig(pcr=2.5), curvature=found)
    assert min(plain.pcr, told.pcr) >= 2.5
    assert told.pcr < 2.5 * 1.03
    best = answers_change(net, compressed(net, told, found), unseen)
    assert best < 0.2 * answers_change(net, compressed(net, plain), unseen)


def test_an_error_of_the_answers_is_shared_by_all_layers() -> None:
    net, batches = network(), smooth_images(64).split(16)
    found = curvature(net, batches)
    sizes = [plan(net, batches[0][:1], RingConfig(eps=eps), curvature=found).pcr for eps in (0.01, 0.05, 0.2)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]
    for eps in (0.05, 0.2):
        told = plan(net, batches[0][:1], RingConfig(eps=eps), curvature=found)
        made = compressed(net, told, found)
        energy, error = 0.0, 0.0
        for name in ("3", "5"):
            metric = found.metric(name)
            kernel = net.get_submodule(name).weight.detach().double()[None]
            energy += norm2(metric, kernel)
            if name in told.forms:
                error += norm2(metric, made.get_submodule(name).kernel().detach().double()[None] - kernel)
        assert error <= eps**2 * energy * (1 + 1e-5)


def test_a_plan_knows_its_curvature_and_is_carried_out_with_no_other() -> None:
    net, batches = network(), smooth_images(16).split(8)
    found = curvature(net, batches)
    told = plan(net, batches[0], BudgetConfig(pcr=2), curvature=found)
    assert told.curvature == found.digest
    assert CompressionPlan.from_json(told.to_json()) == told
    for other in (None, curvature(net, batches[:1])):
        with pytest.raises(InvalidConfig, match="the one that the plan was made with"):
            compress_(net, told, other)
    assert not any(name.endswith("core_out") for name, _ in net.named_parameters())
    compress_(net, told, found)
    assert any(name.endswith("core_out") for name, _ in net.named_parameters())


def test_all_of_several_budgets_are_met() -> None:
    net, batches = network(), smooth_images(32).split(16)
    example, found = batches[0][:1], curvature(net, batches)
    for given in (None, found):
        alone = plan(net, example, BudgetConfig(pcr=2), execution="fewest", curvature=given)
        most = int(0.8 * alone.macs_executed)
        both = plan(net, example, BudgetConfig(pcr=2, macs=most), curvature=given)
        assert both.pcr >= 2
        assert both.macs_executed <= most < alone.macs_executed


def test_the_coarsest_plan_within_a_drop_takes_a_curvature() -> None:
    net, x = network(), smooth_images(32)
    found = curvature(net, x.split(16))
    dense = net.eval()(x).detach()

    def score(model: nn.Module) -> float:
        with torch.no_grad():
            return -float((model.eval()(x) - dense).square().mean())

    allowed = 0.05 * float(dense.var())
    told = plan_within_drop(net, x[:1], score, allowed, curvature=found)
    assert told.curvature == found.digest
    assert -score(compressed(net, told, found)) <= allowed
    assert told.pcr > plan_within_drop(net, x[:1], score, allowed).pcr


def test_what_has_no_curvature_says_so() -> None:
    net, x = network(), smooth_images(4)
    with pytest.raises(InvalidShape, match="no batch"):
        curvature(net, [])
    with pytest.raises(InvalidShape, match="0 \\(Conv2d\\)"):
        curvature(net, [x[:, :2]])
    with pytest.raises(NonFinite, match="the inputs of 0"):
        curvature(net, [x * float("nan")])
    with pytest.raises(InvalidConfig, match="3 was not called"):
        plan(net, x, RingConfig(), curvature=Curvature({}))
    found = curvature(net, [x])
    with pytest.raises(InvalidConfig, match="reference"):
        plan(net, x, RingConfig(reference=True), curvature=found)
    with pytest.raises(InvalidConfig, match="spectral"):
        plan(net, x, SpectralConfig("svdp", rank=3), curvature=found)
