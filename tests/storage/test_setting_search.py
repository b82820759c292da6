"""Goals, the search for a setting that meets one, and who is best for it: on functions that are known."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations
from math import floor, inf, log, log10

import pytest

from storage.compressors.base import Setting
from storage.compressors.goals import Goal, goal
from storage.compressors.ranking import Candidate, hopeful, rank
from storage.compressors.sampled import Estimate
from storage.compressors.search import BEYOND, TRIALS, Start, sought

SCALE = Setting("step", 1e-3, 1e5)
RATIO, PSNR = Goal("ratio", 10), Goal("psnr", 40)


class Known:
    """Excesses by a function of the number; remembers what it was asked."""

    def __init__(self, function: Callable[[float], float]) -> None:
        self.function = function
        self.told: dict[float, float] = {}

    def __call__(self, number: float) -> float:
        assert number not in self.told
        self.told[number] = self.function(number)
        return self.told[number]

    @property
    def least(self) -> float:
        """The least excess that was found."""
        return min((excess for excess in self.told.values() if excess >= 0), default=inf)


def saturating(number: float) -> float:
    """A PSNR as quantisers have it: 20 dB a decade, and less where little is left."""
    return 20 * log10(2000 / number) - 36.478 + 0.8 * max(0.0, log10(number) - 1) ** 3


@pytest.mark.parametrize(
    ("goal", "function", "trials"),
    [
        (PSNR, lambda step: 20 * log10(37 / step), 3),
        (RATIO, lambda step: log(step / 37), 3),
        (Goal("bound", 5), lambda step: log(37 / step), 3),
        (PSNR, saturating, 6),
        (RATIO, lambda step: (step / 37) ** 3 - 1, 14),
        (PSNR, lambda step: inf if step < 1 else 20 * log10(37 / step), 6),
    ],
)
def test_a_goal_is_met_and_hardly_exceeded_after_a_few_trials(
    goal: Goal, function: Callable[[float], float], trials: int
) -> None:
    for scale in (SCALE, Setting("quality", 1e-3, 1e5)):
        known = Known(function)
        sought(known, scale, goal, enough=goal.near)
        assert known.least <= goal.near
        assert len(known.told) <= trials


@pytest.mark.parametrize("sense", [1, -1])
def test_a_setting_that_falls_as_it_grows_coarser_is_found_too(sense: int) -> None:
    """A quality, in which 0.1 is coarse: PSNRs rise with it."""
    known = Known(lambda quality: 20 * log10(quality / 3))
    sought(known, Setting("quality", 1e3, 0.1), PSNR, enough=PSNR.near)
    assert known.least <= PSNR.near
    assert len(known.told) <= 3


def test_steps_in_what_can_be_had_end_it_beside_the_goal() -> None:
    """Ranks are whole numbers: the next one that meets the goal exceeds it by far."""
    known = Known(lambda step: 2.0 * floor(log10(37 / step) + 0.3))
    sought(known, SCALE, PSNR, enough=PSNR.near)
    assert known.least == 0
    jump = Known(lambda step: 5.0 if step < 37 else -5.0)
    sought(jump, SCALE, PSNR, enough=PSNR.near)
    below = max(number for number, excess in jump.told.items() if excess > 0)
    above = min(number for number, excess in jump.told.items() if excess < 0)
    assert below < 37 <= above < below * 1.002
    assert len(jump.told) <= TRIALS + len(BEYOND)
    dent = Known(lambda step: -0.1 if 37 <= step < 37.3 else 20 * log10(45 / step))
    sought(dent, SCALE, PSNR, enough=PSNR.near, start=Start(SCALE.share(37.1)))
    assert dent.least < 20 * log10(45 / 37.3)


@pytest.mark.parametrize(("goal", "nearest"), [(RATIO, SCALE.coarsest), (PSNR, SCALE.finest)])
def test_what_cannot_be_met_ends_where_it_comes_nearest(goal: Goal, nearest: float) -> None:
    for told in (-1e3, -1e-3, -inf):
        known = Known(lambda _, told=told: told)  # type: ignore[misc]
        sought(known, SCALE, goal, enough=goal.near)
        assert list(known.told)[-1] == nearest
    known = Known(lambda _: 1e3)
    sought(known, SCALE, goal, enough=goal.near)
    assert len(known.told) == 2


@pytest.mark.parametrize("goal", [RATIO, PSNR])
def test_an_end_of_the_scale_that_is_known_is_known_by_six_digits(goal: Goal) -> None:
    scale = Setting("step", 2 / 3, 2e5 / 3)
    known = Known(lambda _: -1.0)
    sought(known, scale, goal, enough=goal.near)
    again = Known(lambda _: -1.0)
    sought(again, scale, goal, enough=goal.near, known={list(known.told)[-1]: -1.0})
    assert len(again.told) <= 1


def test_what_is_known_is_not_tried_again_and_a_good_start_is_the_last() -> None:
    known = Known(saturating)
    end = sought(known, SCALE, PSNR, enough=PSNR.near)
    assert 37 / 1.3 < SCALE.at(end.share) < 37 * 1.3
    again = Known(saturating)
    assert sought(again, SCALE, PSNR, enough=PSNR.near, start=end).share == end.share
    assert len(again.told) == 1
    more = Known(saturating)
    sought(more, SCALE, PSNR, enough=PSNR.near, known=known.told)
    assert not more.told
    higher = Known(lambda step: saturating(step) - 3)
    sought(
        higher, SCALE, PSNR, enough=PSNR.near, known={number: told - 3 for number, told in known.told.items()}
    )
    assert higher.least <= PSNR.near
    assert len(higher.told) <= 4


def test_a_slope_that_is_known_is_followed() -> None:
    start = Start(0.5, 20.0 / 3 * SCALE.decades)
    known = Known(lambda step: 20 / 3 * log10(37 / step))
    sought(known, SCALE, PSNR, enough=PSNR.near, start=start)
    assert len(known.told) <= 3


# Goals


@pytest.mark.parametrize("goal", [Goal("ratio", 20), Goal("psnr", 40), Goal("bound", 2)])
def test_a_moved_goal_is_met_where_the_first_is_exceeded_by_as_much(goal: Goal) -> None:
    found = Estimate(None, 1.0, 25.0, 45.0, 1.0)
    moved = goal.moved(goal.of(found))
    assert moved.of(found) == pytest.approx(0, abs=1e-12)


def test_the_least_and_the_largest_goals_there_are_can_be_compared() -> None:
    assert Goal("bound", 5e-324).excess(1, 20, 1e4) == pytest.approx(-753.65, abs=0.01)
    assert Goal("ratio", 1.7e308).moved(1).excess(2, 20, 1) == -inf
    assert Goal("ratio", 0).excess(1e-300, 0, 1) == inf


def test_no_error_at_all_meets_every_bound_and_an_error_never_meets_0() -> None:
    assert Goal("bound", 0).excess(1, inf, 0) > 0
    assert Goal("bound", 0).excess(1, 90, 1e-9) < 0
    assert Goal("psnr", 40).excess(1, inf, 0) > 0


def test_one_goal_is_asked_for() -> None:
    assert goal(bound=2.5) == Goal("bound", 2.5)
    with pytest.raises(ValueError, match="one of ratio, psnr and bound is the target, got ratio, psnr"):
        goal(ratio=2, psnr=3)


# Who is best


def estimate(size: float, psnr: float = 40, error: float = 1) -> Estimate:
    return Estimate(None, size, 1000 / size, psnr, error)


@pytest.mark.parametrize(
    ("goal", "best_first"),
    [
        (
            Goal("ratio", 10),
            [estimate(90, 50), estimate(80, 45), estimate(90, 45), estimate(101, 90), estimate(200, 90)],
        ),
        (
            Goal("psnr", 40),
            [estimate(80, 41), estimate(81, 90), estimate(40, 39), estimate(70, 30), estimate(80, 30)],
        ),
        (Goal("bound", 2), [estimate(80, 9, 2), estimate(90, 9, 0), estimate(10, 9, 3), estimate(9, 9, 4)]),
    ],
)
def test_what_meets_a_goal_is_before_what_does_not(goal: Goal, best_first: list[Estimate]) -> None:
    for order in permutations(best_first):
        assert sorted(order, key=lambda one: rank(one, goal)) == best_first


def named(found: dict[str, Estimate], lossless: str = "") -> list[Candidate[str]]:
    return [Candidate(name, name in lossless.split(), one) for name, one in found.items()]


def test_hopeful_is_who_may_still_be_the_best() -> None:
    found = named({"a": estimate(100), "b": estimate(114), "c": estimate(116), "exact": estimate(101, inf)})
    assert [one.who for one in hopeful(found, Goal("psnr", 40), 1.15)] == ["a", "exact", "b"]
    assert [one.who for one in hopeful(found, Goal("psnr", 40), 1.2)] == ["a", "exact", "b"]
    assert [one.who for one in hopeful(found[1:3], Goal("psnr", 40), 1.15)] == ["b", "c"]


def test_sizes_are_compared_by_what_their_quality_would_save() -> None:
    """10 dB more are worth 10^(1/3) of the size at most."""
    two = named({"good": estimate(200, 50), "small": estimate(100, 40), "poor": estimate(99, 30)})
    assert [one.who for one in hopeful(two, Goal("psnr", 30), 1.15)] == ["good", "small"]
    assert [one.who for one in hopeful(two, Goal("bound", 2), 1.15)] == ["poor", "small"]


def test_a_ratio_that_somebody_reaches_without_loss_keeps_him_apart() -> None:
    found = named(
        {"lossless": estimate(105, inf), "far": estimate(300, inf), "lossy": estimate(99, 60)}, "lossless far"
    )
    assert [one.who for one in hopeful(found, Goal("ratio", 10), 1.15)] == ["lossless", "lossy"]
    assert hopeful(found[1:2], Goal("ratio", 10), 1.15) == found[1:2]
