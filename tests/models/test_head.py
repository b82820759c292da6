"""The paper's heads, and its parameter counts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models.cpic.encoder import CpicEncoder
from models.cpic.head import Head
from models.errors import InvalidConfig, InvalidShape


def parameters(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    ("n_dim", "rank", "count"), [(32, 10, 37_385), (16, 10, 26_569), (8, 10, 21_161), (8, 15, 21_661)]
)
def test_the_brain_model_has_the_papers_parameters(n_dim: int, rank: int, count: int) -> None:
    assert parameters(CpicEncoder(1, n_dim, 0), Head(rank, 0, batch_norm=True)) == count


def test_the_lung_model_and_both_without_an_encoder_have_the_papers_parameters() -> None:
    assert parameters(CpicEncoder(1, 16, 0), Head(10, 0, covariates=1)) == 87_429
    assert parameters(Head(10, 0, covariates=1)) == 64_283
    assert parameters(Head(10, 0, batch_norm=True)) == 3_423


def test_the_head_is_the_perceptron_that_it_says() -> None:
    head = Head(4, 0, hidden=(6, 5), outputs=2, dtype=torch.float64)
    rows = normal(7, 4)
    expected = rows
    for layer in (head.body[0], head.body[2]):
        expected = (expected @ layer.weight.T + layer.bias).clamp(min=0)
    assert torch.allclose(head(rows), expected @ head.outputs.weight.T + head.outputs.bias)
    assert head(rows).shape == (7, 2)


def test_noise_is_for_training_alone_and_has_the_papers_size() -> None:
    head = Head(2, 0, covariates=1, dtype=torch.float64)
    head.body, head.outputs = nn.Sequential(), nn.Identity()  # to see what the perceptron is given
    features, weeks = normal(400, 2), torch.full((400, 1), 3.0, dtype=torch.float64)
    with torch.no_grad():
        still = head.eval()(features, weeks)
        assert torch.equal(still, head(features, weeks))
        noise = head.train()(features, weeks) - still
        assert not torch.equal(head(features, weeks) - still, noise)
    assert not bool(noise[:, :2].any())
    assert float(noise[:, 2:].std()) == pytest.approx(0.2, rel=0.02)
    assert abs(float(noise[:, 2:].mean())) < 0.005
    assert bool((still[:, 2:] >= 0).all())


def test_training_goes_on_with_the_same_noise_from_a_saved_state() -> None:
    head = Head(2, 5, covariates=1)
    rows, weeks = normal(3, 2), normal(3, 1)
    head(rows, weeks)
    again = Head(2, 6, covariates=1)
    again.load_state_dict(head.state_dict())
    assert torch.equal(again(rows, weeks), head(rows, weeks))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_come_from_the_seed_alone_and_leave_torchs_state_as_it_was(dtype: torch.dtype) -> None:
    state = torch.get_rng_state()
    first = Head(10, 3, covariates=1, batch_norm=True, dtype=dtype)
    first(normal(4, 10), normal(4, 1))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(123)
    again = Head(10, 3, covariates=1, batch_norm=True, dtype=dtype)
    other = Head(10, 4, covariates=1, batch_norm=True, dtype=dtype)
    torch.set_rng_state(state)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert {p.dtype for p in first.parameters()} == {dtype}
    assert not torch.equal(first.outputs.weight, other.outputs.weight)


def test_gradients_are_right() -> None:
    head = Head(4, 0, covariates=2, batch_norm=True, dtype=torch.float64).eval()
    rows, table = normal(3, 4).requires_grad_(), normal(3, 2, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(head, (rows, table))


def test_bad_input_is_refused_with_its_place() -> None:
    head, with_weeks = Head(4, 0), Head(4, 0, covariates=1, batch_norm=True)
    rows, weeks = normal(3, 4), normal(3, 1)
    rows[2, 1] = torch.inf
    with pytest.raises(InvalidShape, match="features: column 1 of row 2 is inf"):
        head(rows)
    with pytest.raises(InvalidShape, match="features: column 0 of row 1 is inf"):
        head(torch.tensor([[0.0, 0, 0, 0], [1e300, 0, 0, 0]], dtype=torch.float64))  # not a float32
    with pytest.raises(InvalidShape, match="covariates: column 0 of row 0 is nan"):
        with_weeks(normal(3, 4), weeks * torch.nan)
    with pytest.raises(InvalidShape, match=r"features must be \(rows, 4\), not \(3, 5\)"):
        head(normal(3, 5))
    with pytest.raises(InvalidShape, match=r"features must be \(rows, 4\), not \(4,\)"):
        head(normal(4))
    with pytest.raises(InvalidShape, match="takes 1 covariates"):
        with_weeks(normal(3, 4))
    with pytest.raises(InvalidShape, match="takes 0 covariates"):
        head(normal(3, 4), weeks)
    with pytest.raises(InvalidShape, match="3 rows of features, but 2 of covariates"):
        with_weeks(normal(3, 4), weeks[:2])
    with pytest.raises(InvalidShape, match="batch normalisation cannot train on one row"):
        with_weeks(normal(1, 4), weeks[:1])
    assert bool(with_weeks.eval()(normal(1, 4), weeks[:1]).isfinite().all())
    for settings, setting in (({"outputs": 0}, "outputs"), ({"hidden": (3, 0)}, "hidden")):
        with pytest.raises(InvalidConfig, match=f"{setting} = 0"):
            Head(4, 0, **settings)
    with pytest.raises(InvalidConfig, match="features = 0"):
        Head(0, 0)
    with pytest.raises(InvalidConfig, match="covariates = -1"):
        Head(4, 0, covariates=-1)
