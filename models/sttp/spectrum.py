"""The singular values of spectral weights, and penalties that keep them apart from zero.

Three kinds (Obukhov et al., arXiv:2103.04217): `constant` (C), all equal to the bound; `learned` (L),
S / |S|_inf times the bound, of which the largest is the bound exactly; `regularised` (R), learned with the
D-optimal penalty in the loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from models.errors import InvalidConfig

Spectrum = Literal["constant", "learned", "regularised"]
KINDS: tuple[str, ...] = get_args(Spectrum)

SMALLEST = 1e-7
"""A share of the largest singular value, or a gap between two, below which logarithms go no further."""

WIDTH = 0.01
"""Of the well around 1 in the divergence penalty."""


def refuse_unknown(kind: str) -> None:
    """Raise InvalidConfig for a spectrum that is none of KINDS."""
    if kind not in KINDS:
        raise InvalidConfig("spectrum", kind, f"one of {', '.join(KINDS)}")


def singular_values(learned: Tensor, bound: Tensor | float) -> Tensor:
    """S / |S|_inf times the bound: of the same shape; the largest magnitude is the bound, signs are kept."""
    return learned / learned.abs().amax() * bound


def d_optimal(spectra: Sequence[Tensor]) -> Tensor:
    """Minus the mean of log(|s| / max |s|) over all singular values of all layers (eq. 10, as a mean).

    Zero where all are equal; each is bounded below by SMALLEST. Raises InvalidConfig for no spectrum.
    """
    return -torch.cat([shares(values).clamp(min=SMALLEST).log() for values in _some(spectra)]).mean()


def divergence(spectra: Sequence[Tensor]) -> Tensor:
    """The mean over layers of (1 - s_i)^2 / WIDTH - log(s_{i-1} - s_i), for descending shares s.

    It wants singular values near the largest, but no two alike: the official code's alternative.
    Raises InvalidConfig for no spectrum.
    """
    return torch.stack([_divergence(shares(values)) for values in _some(spectra)]).mean()


def shares(values: Tensor) -> Tensor:
    """|s| / max |s|, flat."""
    magnitudes = values.abs().flatten()
    return magnitudes / magnitudes.amax()


def _divergence(values: Tensor) -> Tensor:
    ordered = values.sort(descending=True).values
    gaps = (ordered[:-1] - ordered[1:]).clamp(min=SMALLEST)
    return ((1 - ordered) ** 2).mean() / WIDTH - gaps.log().sum() / max(1, gaps.numel())


def _some(spectra: Sequence[Tensor]) -> Sequence[Tensor]:
    if not spectra:
        raise InvalidConfig("spectrum", "of no layer", "learned in at least one layer to have a penalty")
    return spectra
