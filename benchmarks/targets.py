"""What a benchmark must show: limits on its keys, and whether they hold in a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from decimal import ROUND_HALF_UP, Decimal
from typing import Any


@dataclass(frozen=True)
class Target:
    """At most `limit` for a key of the result, or at least so much."""

    key: str
    limit: float
    at_least: bool = False

    def holds(self, measured: float | None) -> bool:
        """Whether it is met. What has no finite value meets nothing."""
        if measured is None:
            return False
        return measured >= self.limit if self.at_least else measured <= self.limit


def judged(values: Mapping[str, Any], targets: Iterable[Target]) -> list[dict[str, Any]]:
    """The targets about keys that were measured, with what was measured."""
    return [
        {**asdict(target), "measured": values[target.key], "holds": target.holds(values[target.key])}
        for target in targets
        if target.key in values
    ]


def show_targets(answers: Sequence[Mapping[str, Any]]) -> None:
    """One line per target."""
    print()
    width = max((len(answer["key"]) for answer in answers), default=0) + 2
    for answer in answers:
        limit = f"{'>=' if answer['at_least'] else '<='} {number(answer['limit'])}"
        held = "holds" if answer["holds"] else "DOES NOT HOLD"
        print(f"{answer['key']:<{width}}{number(answer['measured']):>10} {limit:<12}{held}")


def number(value: float | None) -> str:
    """A number as people read it: three digits, or all of a whole number; half goes up."""
    if value is None:
        return "none"
    exact = Decimal(repr(float(value)))
    if isinstance(value, int) or not exact.is_finite():
        return f"{value:,}"
    shown = exact.quantize(Decimal(1).scaleb(min(exact.adjusted() - 2, 0)), ROUND_HALF_UP)
    return f"{shown:,.0f}" if abs(shown) >= 100 else f"{float(shown):.3g}"
