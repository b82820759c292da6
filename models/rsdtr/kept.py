"""A dense kernel that is kept while its factors stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class KeptKernel:
    """The last kernel, and what tells that its factors have changed: which they are, and their versions.

    What is written past autograd's versions (`parameter.data`) is not seen before `forget`. Copies and
    pickles begin empty.
    """

    def __init__(self) -> None:
        self._factors: Sequence[Tensor] = ()
        self._mark: list[int] = []
        self._kernel: Tensor | None = None

    def of(self, factors: Sequence[Tensor], make: Callable[[], Tensor]) -> Tensor:
        """The kernel: made anew where it may be learnt, is cast or traced, and where a factor has changed."""
        if _passing(factors):
            return make()
        mark = [torch.is_inference_mode_enabled(), *map(id, factors), *[f._version for f in factors]]
        if self._kernel is None or mark != self._mark:
            self._factors, self._mark, self._kernel = factors, mark, make().detach().contiguous()
        return self._kernel

    def forget(self) -> None:
        """Make the next kernel anew."""
        self._factors, self._mark, self._kernel = (), [], None

    def __getstate__(self) -> dict[str, object]:
        return {"_factors": (), "_mark": [], "_kernel": None}


def _passing(factors: Sequence[Tensor]) -> bool:
    """Whether this kernel is of this call only."""
    if torch.compiler.is_compiling():
        return True
    if torch.is_grad_enabled() and any(factor.requires_grad for factor in factors):
        return True
    kind = factors[0].device.type
    cast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return cast or factors[0].is_inference()
