"""What is asked of a regressor: a mean, quantiles, or classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from models.errors import InvalidConfig

TASK_KINDS = ("mean", "quantiles", "classes")
QUANTILE_LEVELS = (0.2, 0.5, 0.8)
"""The quantiles of the paper's lung cohort: the middle one is the prediction, the outer ones its spread."""


@dataclass(frozen=True)
class Task:
    """The kind of answer. Outputs of a row are

    - `mean`: (1,), the expected target;
    - `quantiles`: (3,), its quantiles at `QUANTILE_LEVELS`, in order;
    - `classes`: (classes,), their probabilities, in the order of `classes`.

    Raises InvalidConfig for another kind, and for fewer than two classes.
    """

    kind: str = "mean"
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in TASK_KINDS:
            raise InvalidConfig("task.kind", self.kind, f"one of {', '.join(TASK_KINDS)}")
        if (self.kind == "classes") != (len(self.classes) > 0) or len(self.classes) == 1:
            raise InvalidConfig("task.classes", self.classes, "two or more, for the kind classes alone")

    def to_json(self) -> dict[str, Any]:
        """As plain JSON."""
        return {"kind": self.kind, "classes": list(self.classes)}

    @property
    def outputs(self) -> int:
        """Numbers in an answer."""
        return {"mean": 1, "quantiles": len(QUANTILE_LEVELS), "classes": len(self.classes)}[self.kind]
