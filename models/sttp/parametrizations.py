"""SVDP and STTP as parametrizations of a weight, for `torch.nn.utils.parametrize` (Obukhov et al. 2021).

W = U Sigma V^T for each group of a layer, with U and V frames or products of frames. The parameters are the
degrees of freedom and nothing else: `original0` the packed frames of the outputs, `original1` of the inputs
(each of shape (groups, entries)), `original2` the singular values (groups, r) where they are learnt.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from models.errors import InvalidConfig, refuse_non_finite
from models.sttp.frames import full_precision
from models.sttp.importing import imported
from models.sttp.products import product
from models.sttp.shapes import Layout
from models.sttp.spectrum import Spectrum, refuse_unknown, singular_values
from models.sttp.weights import WeightShape

STARTS = ("weight", "identity")

NEAR = 1e-4
"""How far from the identity's frames those of a fresh start are (alpha of QR(I + alpha N))."""


class Spectral(nn.Module):
    """The parametrization of a weight of shape `shape` by frames and singular values.

    `method` is "svdp" or "sttp", `rank` the largest of any bond. The largest singular value over all groups
    is `bound` exactly; with None it is that of each weight that is imported (with a constant spectrum, the
    mean of those kept). `start` says what registering does: "weight" imports the layer's, "identity" begins
    near the identity's frames, by torch's random numbers, with all singular values at the bound (1 with
    None). Raises InvalidConfig for settings that are none of these.
    """

    bound: Tensor
    signs: Tensor

    def __init__(
        self,
        shape: WeightShape,
        method: str,
        rank: int,
        *,
        spectrum: Spectrum = "learned",
        bound: float | None = None,
        flatten_kernel: bool = True,
        start: str = "weight",
    ) -> None:
        super().__init__()
        refuse_unknown(spectrum)
        if bound is not None and not 0 < bound < float("inf"):
            raise InvalidConfig("bound", bound, "above 0 and finite, or None for that of the weight")
        if start not in STARTS:
            raise InvalidConfig("start", start, f"one of {', '.join(STARTS)}")
        self.shape, self.method, self.spectrum = shape, method, spectrum
        self.rank, self.flatten_kernel, self.held = rank, flatten_kernel, bound is not None
        self.layout: Layout = shape.layout(
            method, rank, constant=spectrum == "constant", flatten_kernel=flatten_kernel
        )
        self._fresh = start == "identity"
        self.register_buffer("bound", torch.tensor(1.0 if bound is None else bound, dtype=torch.float64))
        if self.layout.constant:
            self.register_buffer("signs", torch.ones(shape.groups, self.layout.width))

    @property
    def parameters_count(self) -> int:
        """Degrees of freedom over all groups (eq. 9)."""
        return self.shape.groups * self.layout.parameters

    def forward(self, outputs: Tensor, inputs: Tensor, learned: Tensor | None = None) -> Tensor:
        """The weight, in the parameters' type."""
        left, right = self.factors(outputs, inputs, learned)
        with full_precision(left):
            return self.shape.weight(left @ right.mT).to(outputs.dtype)

    def factors(
        self, outputs: Tensor, inputs: Tensor, learned: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """U Sigma (groups, outputs, r) and V (groups, columns, r); in float32 of half precision."""
        left = product(outputs, self.layout.output_chain)
        right = product(inputs, self.layout.input_chain, backwards=True)
        return left * self.sigma(learned).to(left.dtype)[:, None, :], right

    def sigma(self, learned: Tensor | None) -> Tensor:
        """The singular values (groups, r), with signs, in float32 at least."""
        exact = torch.promote_types((self.signs if learned is None else learned).dtype, torch.float32)
        bound = self.bound.to(exact)
        return self.signs.to(exact) * bound if learned is None else singular_values(learned.to(exact), bound)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, ...]:
        """The parameters of the nearest weight of this layout that TT-SVD finds; the bound, where it is free.

        Raises NonFinite for a weight that holds NaN or infinity.
        """
        refuse_non_finite(weight.detach(), "a weight to be parametrised")
        with torch.no_grad():
            self.bound = self.bound.to(weight)
            return self._near_identity(weight) if self._fresh else self._imported(weight)

    def _imported(self, weight: Tensor) -> tuple[Tensor, ...]:
        groups = [imported(matrix, self.layout) for matrix in self.shape.matrices(weight)]
        sigma = torch.stack([group.sigma for group in groups])
        magnitude = sigma.abs().mean() if self.layout.constant else sigma.abs().amax()
        if not self.held:
            self.bound = magnitude.to(weight)
        frames = (
            torch.stack([group.outputs for group in groups]).to(weight),
            torch.stack([group.inputs for group in groups]).to(weight),
        )
        if self.layout.constant:
            self.signs = torch.where(sigma < 0, -1.0, 1.0).to(weight)
            return frames
        learned = sigma / magnitude if magnitude > 0 else torch.ones_like(sigma)
        return (*frames, learned.to(weight))

    def _near_identity(self, weight: Tensor) -> tuple[Tensor, ...]:
        self._fresh = False
        groups, layout = self.shape.groups, self.layout
        sizes = (layout.output_chain.parameters, layout.input_chain.parameters)
        frames = tuple((torch.randn(groups, size).clamp(-1, 1) * (NEAR / 2)).to(weight) for size in sizes)
        if layout.constant:
            self.signs = self.signs.to(weight)
            return frames
        return (*frames, torch.ones(groups, layout.width).to(weight))


def spectral_of(layer: nn.Module) -> Spectral | None:
    """The layer's spectral parametrization; None where its weight has none, or others as well."""
    if not parametrize.is_parametrized(layer, "weight"):
        return None
    found = cast(nn.ModuleDict, layer.parametrizations)["weight"]
    assert isinstance(found, parametrize.ParametrizationList)
    only = found[0] if len(found) == 1 else None
    return only if isinstance(only, Spectral) else None


def originals(layer: nn.Module) -> tuple[Tensor, ...]:
    """The parameters of a parametrised weight."""
    found = cast(nn.ModuleDict, layer.parametrizations)["weight"]
    return tuple(cast(Tensor, getattr(found, f"original{k}")) for k in range(cast(int, found.ntensors)))


def factors_of(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """`Spectral.factors` of a layer; computed once within `parametrize.cached()`, as a weight is."""
    spectral = spectral_of(layer)
    assert spectral is not None
    if not parametrize._cache_enabled:
        return spectral.factors(*originals(layer))
    key = (id(layer), "weight: factors")
    cache = cast("dict[tuple[int, str], tuple[Tensor, Tensor]]", parametrize._cache)
    if key not in cache:
        cache[key] = spectral.factors(*originals(layer))
    return cache[key]


def regularised(model: nn.Module) -> list[Tensor]:
    """The learned singular values of all layers of a model whose spectrum is to be regularised."""
    layers = ((layer, spectral_of(layer)) for layer in model.modules())
    return [originals(layer)[2] for layer, found in layers if found and found.spectrum == "regularised"]
