"""What an error of a layer's kernel does to the model's answers, from inputs without labels.

To second order the answers y of a model change with a layer's kernel by E ||dy||^2, a quadratic form of the
change dW. It is taken as a product of one matrix for each axis (K-FAC: Martens & Grosse 2015; Grosse &
Martens 2016 for convolutions):

    outputs   E sum_p g_p g_p^T    g_p the gradient of v^T y at place p of the layer's outputs, v of random
                                   signs: E over v is the sum over all answers
    inputs    E a_p a_p^T          a_p the channels at place p of the layer's inputs
    spatial   E a_(p+i) a_(p+j)    along an axis: what the kernel's voxels i and j see together, over what a
                                   place has; less than 1 beside a border, for what is padded there

Compressing in this metric (`models.rsdtr.metric`) spends the error where answers do not change, and makes
errors of different layers comparable.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from models.compression.eligible import KINDS
from models.compression.plans import digest_of_tensors
from models.compression.tracing import Example, answered, evaluating
from models.convolutions import Geometry, geometry_of
from models.errors import InvalidConfig, InvalidShape, refuse_non_finite
from models.rsdtr.metric import KernelMetric

Matrices = tuple[Float64[Tensor, "g n n"], ...]


@dataclass(frozen=True, eq=False)
class Curvature:
    """By the first names of layers, the matrices of their kernels' axes: outputs, inputs, spatial."""

    layers: Mapping[str, Matrices]

    @property
    def digest(self) -> str:
        """SHA-256 of all matrices."""
        return digest_of_tensors(
            (f"{name}.{axis}", matrix)
            for name, matrices in self.layers.items()
            for axis, matrix in enumerate(matrices)
        )

    def metric(self, name: str) -> KernelMetric:
        """Of a layer's kernel. Raises InvalidConfig for a layer that was not seen."""
        if name not in self.layers:
            raise InvalidConfig("curvature", f"without {name}", f"of this model: {name} was not called")
        return KernelMetric.of(self.layers[name])


def curvature(model: nn.Module, batches: Iterable[Example], *, seed: int = 0) -> Curvature:
    """The curvature of a model, in evaluation, by some batches of inputs; the model is left as it is.

    Answers are all floating-point tensors that the model gives. Raises InvalidShape, naming the layer, for a
    batch that does not go through, and for none; NonFinite, naming the layer, where a gradient or an input is
    not finite.
    """
    seen = {
        name: _Seen(geometry_of(layer)) for name, layer in model.named_modules() if isinstance(layer, KINDS)
    }
    generator = torch.Generator().manual_seed(seed)
    count = 0
    with evaluating(model), torch.enable_grad(), _watched(model, seen):
        for batch in batches:
            outputs = list(_tensors(answered(model, batch)))
            torch.autograd.backward(outputs, [_signs(output, generator) for output in outputs])
            count += 1
    if not count:
        raise InvalidShape("there is no batch to take the curvature from: give at least one")
    return Curvature({name: each.matrices(name) for name, each in seen.items() if each.places})


@dataclass
class _Seen:
    """Sums over what a layer was called with, of each group."""

    geometry: Geometry
    samples: int = 0
    places: int = 0
    inputs: Any = 0.0
    outputs: Any = 0.0
    energy: float = 0.0
    spatial: dict[int, Tensor] = field(default_factory=dict)

    @torch.no_grad()
    def note_inputs(self, x: Tensor) -> None:
        """Inputs (n, c, *spatial), or (..., c) of a linear layer."""
        channels = self._channels(x)
        self.samples += len(x)
        self.places += channels.shape[2]
        self.inputs = self.inputs + _grams(channels)
        if not self.geometry.transposed and self.geometry.kernel:
            self.energy += float(x.square().sum(dtype=torch.float64)) / prod(x.shape[2:])
            for axis in self.geometry.axes:
                self.spatial[axis] = self.spatial.get(axis, 0) + self._seen_along(x, axis)

    @torch.no_grad()
    def note_gradient(self, gradient: Tensor) -> None:
        """Of the layer's outputs."""
        self.outputs = self.outputs + _grams(self._channels(gradient))

    def matrices(self, name: str) -> Matrices:
        """Of the axes. Raises NonFinite."""
        groups, (outputs, inputs, *_) = self.geometry.groups, self.geometry.block_shape
        none = torch.zeros(groups, outputs, outputs, dtype=torch.float64)
        found = (
            none + self.outputs / self.samples,
            torch.zeros(groups, inputs, inputs, dtype=torch.float64) + self.inputs / self.places,
            *(self._correlations(axis) for axis in self.geometry.axes),
        )
        for what, matrix in zip(("the gradients", "the inputs"), found, strict=False):
            refuse_non_finite(matrix, f"{what} of {name}, squared,")
        return found

    def _seen_along(self, x: Tensor, axis: int) -> Float64[Tensor, "k k"]:
        """Sums of products of what two voxels of the kernel see, over the places along the axis."""
        views = self.geometry.views(x, axis)
        places = views[0].shape[2 + axis] * prod(x.shape[2:]) // x.shape[2 + axis]
        flat = torch.stack([view.flatten() for view in views])
        return _grams(flat[None])[0] / places

    def _correlations(self, axis: int) -> Float64[Tensor, "1 k k"]:
        """The identity of a transposed layer: neighbours of its kernel hardly meet in an output."""
        if not self.energy:
            return torch.eye(self.geometry.kernel[axis], dtype=torch.float64)[None]
        return self.spatial[axis][None] / self.energy

    def _channels(self, x: Tensor) -> Tensor:
        """(groups, channels of a group, places)."""
        last = self.geometry.kernel == ()
        turned = x.movedim(-1, 0) if last else x.movedim(1, 0)
        return turned.reshape(self.geometry.groups, len(turned) // self.geometry.groups, -1)


@contextmanager
def _watched(model: nn.Module, seen: Mapping[str, _Seen]) -> Iterator[None]:
    """While it lasts, layers note their inputs and the gradients of their outputs."""
    handles = [model.get_submodule(name).register_forward_hook(_noting(each)) for name, each in seen.items()]
    gradients = [parameter.grad for parameter in model.parameters()]
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    model.requires_grad_(False)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for parameter, gradient, want in zip(model.parameters(), gradients, wanted, strict=True):
            parameter.requires_grad_(want)
            parameter.grad = gradient


def _noting(seen: _Seen) -> Any:
    def note(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        axes = len(seen.geometry.kernel)
        alone = bool(axes) and args[0].ndim == axes + 1
        seen.note_inputs(args[0][None] if alone else args[0])
        traced = output if output.requires_grad else output.detach().requires_grad_()
        traced.register_hook(  # type: ignore[no-untyped-call]
            lambda gradient: seen.note_gradient(gradient[None] if alone else gradient)
        )
        return traced

    return note


def _tensors(answers: Any) -> Iterator[Tensor]:
    """The floating-point tensors of an answer that depend on a layer."""
    if isinstance(answers, Tensor):
        if answers.is_floating_point() and answers.requires_grad:
            yield answers
    elif isinstance(answers, Mapping):
        for name in sorted(answers):
            yield from _tensors(answers[name])
    elif isinstance(answers, tuple | list):
        for each in answers:
            yield from _tensors(each)


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    drawn = torch.randint(0, 2, tuple(like.shape), generator=generator) * 2 - 1
    return drawn.to(like)


def _grams(channels: Tensor) -> Float64[Tensor, "g n n"]:
    """Sums over places of products of channels, in float64 on the CPU."""
    wide = channels.to(torch.promote_types(channels.dtype, torch.float32))
    return (wide @ wide.mT).to("cpu", torch.float64)
