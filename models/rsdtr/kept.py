"""A dense kernel that is kept while its factors stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class KeptKernel:
    """The last kernel, and what tells that its factors have changed: their versions and where they lie.

    What is written past autograd's versions (`parameter.data`) is seen once the layer has been in training.
    Copies and pickles begin empty.
    """

    def __init__(self) -> None:
        self._mark: tuple[object, ...] = ()
        self._kernel: Tensor | None = None

    def of(self, factors: Sequence[Tensor], make: Callable[[], Tensor], *, keep: bool) -> Tensor:
        """The kernel: made anew where it may be learnt, is traced, or shall not be kept."""
        if not keep or _passing(factors):
            self._mark, self._kernel = (), None
            return make()
        mark = (
            torch.is_inference_mode_enabled(),
            *((id(f), f._version, f.data_ptr(), f.dtype, f.device) for f in factors),
        )
        if self._kernel is None or mark != self._mark:
            self._mark, self._kernel = mark, make().detach()
        return self._kernel

    def __getstate__(self) -> dict[str, object]:
        return {"_mark": (), "_kernel": None}


def _passing(factors: Sequence[Tensor]) -> bool:
    """Whether this kernel is of this call only."""
    learnt = torch.is_grad_enabled() and any(factor.requires_grad for factor in factors)
    cast = torch.is_autocast_enabled(factors[0].device.type)
    inference = any(factor.is_inference() for factor in factors)
    return learnt or cast or inference or torch.compiler.is_compiling()
