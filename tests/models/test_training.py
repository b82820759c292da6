"""The training loop: RAdam by the book, seeded, resumable to the same bits, with early stopping."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_fields import Array
from small_cohorts import Killed, KilledAt, Memory
from torch import Tensor, nn

from models.errors import InvalidConfig, InvalidShape, NonFinite
from models.training import HeldOut, History, Step, TrainingConfig, Watch, ignore, train
from storage.checkpoints import Checkpoints

CONFIG = TrainingConfig(epochs=4, batch=3, rate=1e-2, weight_decay=1e-3, clip=3.0, checkpoint_steps=1)
ITEMS = 11
STEPS = 4 * (ITEMS // 3)


class Affine(nn.Module):
    """Weights in a layout that is not C's, one that never has a gradient, and a buffer that moves."""

    def __init__(self, width: int) -> None:
        super().__init__()
        drawn = torch.randn(4, width, generator=torch.Generator().manual_seed(1))
        self.weight = nn.Parameter(drawn.T)
        self.bias = nn.Parameter(torch.zeros(width))
        self.unused = nn.Parameter(torch.ones(2))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, rows: Tensor) -> Tensor:
        """Rows (n, 4) to (n, width)."""
        self.seen += 1
        return rows @ self.weight.T + self.bias


class Toy:
    """Least squares of noisy rows; what it carries from step to step (a running mean) is in its loss too."""

    def __init__(
        self, validations: Sequence[float | None] = (), width: int = 2, identity: str = "a toy"
    ) -> None:
        self.weights: Affine = Affine(width)
        self.identity = identity
        self.items = ITEMS
        self.asked: list[tuple[Step, list[int]]] = []
        self._rows = torch.randn(ITEMS, 4, generator=torch.Generator().manual_seed(2))
        self._validations = validations
        self._mean = torch.zeros(())

    def loss(self, items: Array, step: Step) -> Tensor:
        """The loss of some rows, with noise from the step's seed."""
        self.asked.append((step, items.tolist()))
        rows = self._rows[torch.from_numpy(items)]
        noise = torch.randn(rows.shape, generator=torch.Generator().manual_seed(step.seed))
        told = self.weights(rows + 0.1 * noise)
        loss = (told - rows[:, :1] + 0.1 * self._mean).square().mean()
        self._mean = 0.9 * self._mean + 0.1 * told.detach().mean()
        return loss

    def validation(self, epoch: int) -> float | None:
        """What was planted."""
        return self._validations[epoch] if self._validations else None

    def state(self) -> dict[str, Array]:
        """The running mean."""
        return {"mean": self._mean.numpy()}

    def restore(self, state: Mapping[str, Array]) -> None:
        """Go on with it."""
        self._mean = torch.from_numpy(np.array(state["mean"]))


def bits_of(kept: Memory) -> dict[str, bytes]:
    assert kept.saved is not None
    return {name: array.tobytes() for name, array in kept.saved[0].items()}


@dataclass
class Trained:
    """A training's end: history, weights, and the last checkpoint with the optimiser's state."""

    learner: Toy
    history: History
    kept: Memory = field(default_factory=Memory)

    @property
    def bits(self) -> dict[str, bytes]:
        """All arrays."""
        weights = {name: t.detach().numpy() for name, t in self.learner.weights.state_dict().items()}
        return bits_of(self.kept) | {name: array.tobytes() for name, array in weights.items()}


def trained(
    config: TrainingConfig = CONFIG, *, seed: int = 0, kept: Memory | None = None, **toy: Any
) -> Trained:
    learner, kept = Toy(**toy), Memory() if kept is None else kept
    history = train(learner, config, seed=seed, watch=Watch(checkpoints=kept))
    return Trained(learner, history, kept)


def stopped(step: int, config: TrainingConfig = CONFIG, *, kept: Memory | None = None, **toy: Any) -> Memory:
    """What is left of a training that broke off before a step."""
    kept = Memory() if kept is None else kept
    with pytest.raises(Killed):
        train(Toy(**toy), config, seed=0, watch=Watch(KilledAt(step), kept))
    return kept


def test_a_step_is_that_of_radam_with_the_gradient_clipped_at_the_rate_of_the_schedule() -> None:
    made, learner = trained(), Toy()
    optimiser = torch.optim.RAdam(
        learner.weights.parameters(),
        betas=CONFIG.betas,
        weight_decay=CONFIG.weight_decay,
        decoupled_weight_decay=True,
    )
    norms = []
    for number, (step, items) in enumerate(made.learner.asked):
        optimiser.param_groups[0]["lr"] = 1e-2 * (0.01 + 0.99 * math.cos(math.pi * number / STEPS / 2) ** 2)
        optimiser.zero_grad()
        learner.loss(np.array(items), step).backward()  # type: ignore[no-untyped-call]
        gradients = [weight.grad for weight in learner.weights.parameters() if weight.grad is not None]
        norms.append(float(torch.stack([g.square().sum() for g in gradients]).sum().sqrt()))
        for gradient in gradients:
            gradient.mul_(min(1, CONFIG.clip / (norms[-1] + 1e-6)))
        optimiser.step()
    assert min(norms) < CONFIG.clip < max(norms)
    for own, other in zip(learner.weights.parameters(), made.learner.weights.parameters(), strict=True):
        assert torch.allclose(own, other, rtol=1e-5, atol=1e-7)


def test_the_rate_falls_to_a_hundredth_along_half_a_cosine() -> None:
    rates = [TrainingConfig(rate=2.0).rate_at(step, 100) for step in range(101)]
    assert (rates[0], rates[50], rates[100]) == pytest.approx((2.0, 1.01, 0.02))
    assert all(np.diff(rates) < 0)


def test_every_item_comes_once_in_an_epoch_in_an_order_and_with_draws_of_its_own() -> None:
    asked = trained().learner.asked
    assert [step.number for step, _ in asked] == list(range(STEPS))
    epochs = [[items for step, items in asked if step.epoch == epoch] for epoch in range(4)]
    orders = [[item for items in batches for item in items] for batches in epochs]
    assert [sorted(order) for order in orders] == [list(range(ITEMS))] * 4
    assert {len(items) for batches in epochs for items in batches} == {3, 4}
    assert len({tuple(order) for order in orders}) == 4
    assert len({step.seed for step, _ in asked}) == STEPS


def test_fewer_items_than_a_batch_are_one_batch_and_none_are_refused() -> None:
    asked = trained(replace(CONFIG, batch=50)).learner.asked
    assert [len(items) for _, items in asked] == [ITEMS] * 4
    empty = Toy()
    empty.items = 0
    with pytest.raises(InvalidShape, match="nothing to learn from"):
        train(empty, CONFIG, seed=0, watch=Watch())


def test_the_same_seed_gives_the_same_bits_and_no_global_state_is_read_or_changed() -> None:
    torch.manual_seed(5)
    state, numbers = torch.random.get_rng_state(), np.random.get_state()[1]
    first = trained()
    assert torch.equal(state, torch.random.get_rng_state())
    assert np.array_equal(numbers, np.random.get_state()[1])
    torch.manual_seed(6)
    again, other = trained(), trained(seed=1)
    assert again.bits == first.bits
    assert again.history == first.history
    assert other.bits["weight"] != first.bits["weight"]


@pytest.mark.parametrize("every", [1, 2, 5])
def test_a_training_that_broke_off_at_any_step_goes_on_to_the_same_bits(every: int) -> None:
    """Weights, buffers, the optimiser's state, the learner's own, the best epoch and the history."""
    config, validations = replace(CONFIG, checkpoint_steps=every), (5.0, 3.0, 4.0, 6.0)
    whole = trained(config, validations=validations)
    for step in range(STEPS):
        kept = stopped(step, config, validations=validations)
        assert (kept.saved is not None) == (step >= every)
        resumed = trained(config, kept=kept, validations=validations)
        assert resumed.bits == whole.bits, step
        assert resumed.history == whole.history
        assert resumed.learner.asked == whole.learner.asked[step // every * every :]
    assert {"optimiser.0.exp_avg", "optimiser.1.exp_avg_sq", "learner.mean", "best.seen"} <= whole.bits.keys()


def test_a_training_may_break_off_again_and_again_and_is_not_repeated_when_it_is_over() -> None:
    kept, whole = Memory(), trained()
    for step in range(STEPS):
        stopped(step, kept=kept)
    assert trained(kept=kept).bits == whole.bits
    over = trained(kept=kept)
    assert over.learner.asked == []
    assert (over.bits, over.history) == (whole.bits, whole.history)


def test_early_stopping_keeps_the_best_epoch() -> None:
    validations = (4.0, 2.0, 3.0, 2.0, 1.0)
    config = replace(CONFIG, epochs=5)
    patient = trained(replace(config, patience=2), validations=validations)
    assert patient.history.validations == (4.0, 2.0, 3.0, 2.0)
    assert (patient.history.best_epoch, patient.history.best) == (1, 2.0)
    assert (patient.history.steps, len(patient.history.losses)) == (12, 4)
    assert patient.learner.weights.seen == 6  # of the 12: the best weights are those after two epochs
    endless = trained(config, validations=validations)
    assert (endless.history.best_epoch, len(endless.history.losses)) == (4, 5)


def test_a_training_that_was_stopped_early_is_over_when_it_is_asked_for_again() -> None:
    config, validations = replace(CONFIG, patience=1), (1.0, 2.0, 0.0, 0.0)
    first = trained(config, validations=validations)
    again = trained(config, kept=first.kept, validations=validations)
    assert again.learner.asked == []
    assert again.bits == first.bits
    assert len(again.history.losses) == 2


def test_without_a_validation_the_last_weights_stay() -> None:
    made = trained(replace(CONFIG, patience=1))
    assert made.history.validations == (None,) * 4
    assert (made.history.best_epoch, made.history.best, made.history.steps) == (None, math.inf, STEPS)
    assert made.learner.weights.seen == STEPS
    assert made.history.losses[-1] < made.history.losses[0]


class Judge(Toy):
    """Judges the weights of another on rows of its own."""

    def __init__(self, learner: Toy) -> None:
        super().__init__()
        self.weights, self.items, self._rows = learner.weights, 4, self._rows[:4] + 0.5

    def loss(self, items: Array, step: Step) -> Tensor:
        """Without what the training carries along."""
        self._mean = torch.zeros(())
        return super().loss(items, step)


def held_out(config: TrainingConfig, kept: Memory, report: Any) -> tuple[Toy, Judge, History]:
    learner = Toy()
    judge = Judge(learner)
    history = train(HeldOut(learner, judge, seed=9), config, seed=0, watch=Watch(report, kept))
    return learner, judge, history


def test_what_is_held_out_judges_the_weights_and_moves_nothing() -> None:
    config = replace(CONFIG, epochs=6, rate=0.3, patience=2)
    learner, judge, history = held_out(config, Memory(), ignore)
    assert judge.asked == [(Step(0, epoch, 9), [0, 1, 2, 3]) for epoch in range(len(history.losses))]
    assert history.best_epoch == int(np.argmin([value or 0 for value in history.validations]))
    with torch.no_grad():
        assert float(judge.loss(np.arange(4), Step(0, 0, 9))) == pytest.approx(history.best, rel=1e-6)
    plain = Toy(history.validations)
    assert train(plain, config, seed=0, watch=Watch()) == history
    assert torch.equal(plain.weights.weight, learner.weights.weight)


def test_with_a_judge_a_training_goes_on_to_the_same_bits_too() -> None:
    whole, kept = Memory(), Memory()
    _, _, history = held_out(CONFIG, whole, ignore)
    for step in (2, 3, 7):
        with pytest.raises(Killed):
            held_out(CONFIG, kept, KilledAt(step))
    learner, _, resumed = held_out(CONFIG, kept, ignore)
    assert resumed == history
    assert "learner.mean" in bits_of(kept)
    assert bits_of(kept) == bits_of(whole)
    assert learner.asked[0][0].number == 7


def test_an_epochs_loss_is_the_mean_of_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[float] = []
    loss = Toy.loss

    def watched(toy: Toy, items: Array, step: Step) -> Tensor:
        made = loss(toy, items, step)
        told.append(float(made.detach()))
        return made

    monkeypatch.setattr(Toy, "loss", watched)
    losses = trained().history.losses
    assert losses == pytest.approx(np.array(told).reshape(4, -1).mean(axis=1).tolist())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, r"\(seed 0, not 1\)"),
        ({"config": replace(CONFIG, rate=0.5)}, r"\(rate 0.01, not 0.5\)"),
        ({"config": replace(CONFIG, betas=(0.9, 0.9))}, r"\(betas \[0.9, 0.99\], not \[0.9, 0.9\]\)"),
        ({"config": replace(CONFIG, epochs=9)}, r"\(epochs 4, not 9\)"),
        ({"identity": "another"}, r"\(learner a toy, not another\)"),
        ({"width": 3}, r"\(weight \(2, 4\), not \(3, 4\)\)"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused_and_what_differs_is_named(
    change: dict[str, Any], named: str
) -> None:
    kept = stopped(2)
    with pytest.raises(InvalidShape, match=f"of another training {named}: remove it"):
        trained(**change, kept=kept)


@pytest.mark.parametrize(("entry", "value"), [("schema", 99), ("items", 12)])
def test_a_checkpoint_of_another_kind_is_refused(entry: str, value: int) -> None:
    kept = stopped(2)
    assert kept.saved is not None
    kept.saved = kept.saved[0], {**kept.saved[1], entry: value}
    with pytest.raises(InvalidShape, match=rf"\({entry} {value}, not"):
        trained(kept=kept)


def test_a_checkpoint_with_weights_missing_or_left_over_is_refused() -> None:
    kept = stopped(2)
    assert kept.saved is not None
    arrays, manifest = kept.saved
    lacking = {name: array for name, array in arrays.items() if name != "weights.weight"}
    for found, named in (
        (lacking, r"weight None, not \(2, 4\)"),
        ({**arrays, "weights.more": np.zeros(3)}, r"more \(3,\), not None"),
    ):
        kept.saved = found, manifest
        with pytest.raises(InvalidShape, match=rf"of another training \({named}\)"):
            trained(kept=kept)


class Broken(Toy):
    """Its loss, or its loss's gradient, is not finite at one step."""

    def __init__(self, at: int, what: str) -> None:
        super().__init__()
        self.at, self.what = at, what

    def loss(self, items: Array, step: Step) -> Tensor:
        """As before, but for one step."""
        loss = super().loss(items, step)
        if step.number != self.at:
            return loss
        if self.what == "the loss":
            return loss * math.inf
        zero = (self.weights.bias - self.weights.bias.detach()).sum()
        return loss + zero.square().sqrt()  # 0, with a slope of 0 / 0


@pytest.mark.parametrize("what", ["the loss", "its gradient's norm"])
def test_a_loss_that_is_none_ends_the_training_and_the_step_is_named(what: str) -> None:
    learner, kept = Broken(5, what), Memory()
    with pytest.raises(NonFinite, match=rf"{what} of step 5 \(lower the rate, 0.01\) must be finite"):
        train(learner, CONFIG, seed=0, watch=Watch(checkpoints=kept))
    assert kept.saved is not None
    assert kept.saved[1]["number"] == 5  # what was kept is sound
    assert all(bool(weight.isfinite().all()) for weight in learner.weights.parameters())
    assert all(np.isfinite(array).all() for array in kept.saved[0].values())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_validation_that_is_none_ends_the_training_and_the_epoch_is_named(value: float) -> None:
    with pytest.raises(NonFinite, match="the validation of epoch 1 must be finite"):
        trained(validations=(1.0, value, 0.5, 0.5))


def test_whoever_watches_is_told_of_each_step() -> None:
    told: list[tuple[str, int, int | None]] = []
    train(Toy(), CONFIG, seed=0, watch=Watch(lambda *what: told.append(what)))
    assert told == [("training", step, STEPS) for step in range(STEPS + 1)]


def test_parts_keep_their_checkpoints_apart_and_share_the_report() -> None:
    kept, report = Memory(), KilledAt(7)
    first, second = (Watch(report, kept).part(name) for name in ("first", "second"))
    for watch in (first, second):
        assert watch.report is report
        with pytest.raises(Killed):
            train(Toy(), CONFIG, seed=0, watch=watch)
    assert kept.saved is None
    assert sorted(kept.parts) == ["first", "second"]
    assert Watch().part("first").checkpoints is None


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("epochs", 0),
        ("batch", 0),
        ("checkpoint_steps", 0),
        ("rate", 0.0),
        ("rate", math.inf),
        ("clip", math.nan),
        ("weight_decay", 1.0),
        ("betas", (0.9, 1.0)),
        ("betas", (0.9,)),
        ("patience", 0),
    ],
)
def test_settings_that_make_no_sense_are_named(setting: str, value: object) -> None:
    with pytest.raises(InvalidConfig) as error:
        TrainingConfig(**{setting: value})  # type: ignore[arg-type]
    assert error.value.setting == setting


def in_a_child(folder: Path) -> subprocess.Popen[bytes]:
    """A training of a few seconds in a process of its own, with checkpoints in a folder."""
    program = """
        import sys, time
        sys.path[:0] = sys.argv[2:]
        from pathlib import Path
        from test_training import LONG, Toy
        from models.training import Watch, train
        from storage.checkpoints import Checkpoints
        watch = Watch(lambda *what: time.sleep(0.002), Checkpoints(Path(sys.argv[1]), 1))
        train(Toy(), LONG, seed=0, watch=watch)
    """
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(program), str(folder), *paths])


LONG = replace(CONFIG, epochs=250, checkpoint_steps=3)


def number(folder: Path) -> int:
    """How many steps are kept."""
    saved = Checkpoints(folder, 2).load()
    return 0 if saved is None else int(saved[1]["number"])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_process_that_is_killed_at_any_moment_leaves_a_training_that_goes_on_to_the_same_bits(
    seed: int, tmp_path: Path
) -> None:
    pauses, reached = np.random.default_rng(seed).uniform(0, 0.4, 3), [0]
    for pause in pauses:
        with in_a_child(tmp_path) as child:
            while number(tmp_path) == reached[-1]:
                assert child.poll() is None
                time.sleep(0.01)
            time.sleep(pause)
            child.kill()
        assert child.returncode == -signal.SIGKILL
        reached.append(number(tmp_path))
    resumed, whole = Toy(), Toy()
    history = train(resumed, LONG, seed=0, watch=Watch(checkpoints=Checkpoints(tmp_path, 2)))
    assert history == train(whole, LONG, seed=0, watch=Watch())
    assert resumed.asked == whole.asked[reached[-1] :]
    assert 0 < len(resumed.asked) < len(whole.asked)
    for own, other in zip(resumed.weights.parameters(), whole.weights.parameters(), strict=True):
        assert torch.equal(own, other)
