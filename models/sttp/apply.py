"""Spectral weights for the layers of a model, in place: `svdp_(model, rank=16)`, `sttp_(model, rho=0.25)`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn
from torch.nn.utils import parametrize

from models.errors import InvalidConfig, InvalidShape, refuse_non_finite
from models.sttp.lowrank import EXECUTIONS, executing_class
from models.sttp.parametrizations import Spectral
from models.sttp.spectrum import Spectrum
from models.sttp.weights import Layer, WeightShape, rank_of_share, ranks_within, weight_shape

Model = TypeVar("Model", bound=nn.Module)

Filter = Callable[[nn.Module, str], bool]
"""(layer, its name in the model) -> whether it is to be parametrised."""


@dataclass(frozen=True)
class SpectralConfig:
    """How weights are parametrised; the ranks by one of three.

    `rank`: the largest of any bond, in all layers; `rho`: that share of the smaller side of each layer's
    matrix; `parameters`: the largest share that leaves so many degrees of freedom, at most, in all layers
    together. `execution`: "low-rank" computes with r filters and a 1x1 layer, "dense" with the whole weight,
    "auto" as costs fewer multiplications. The others as for `Spectral`. Raises InvalidConfig for none of the
    three or several, and for an execution that is not known.
    """

    method: str = "sttp"
    rank: int | None = None
    rho: float | None = None
    parameters: int | None = None
    spectrum: Spectrum = "learned"
    bound: float | None = None
    flatten_kernel: bool = True
    start: str = "weight"
    execution: str = "auto"

    def __post_init__(self) -> None:
        given = [name for name in ("rank", "rho", "parameters") if getattr(self, name) is not None]
        if len(given) != 1:
            raise InvalidConfig("rank", given or None, "given by one of rank, rho and parameters")
        for name in ("rank", "parameters"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int) and value >= 1):
                raise InvalidConfig(name, value, "a whole number, at least 1")
        if self.rho is not None and not 0 < self.rho <= 1:
            raise InvalidConfig("rho", self.rho, "in (0, 1]")
        if self.execution not in EXECUTIONS:
            raise InvalidConfig("execution", self.execution, f"one of {', '.join(EXECUTIONS)}")

    def ranks(self, weights: list[WeightShape]) -> list[int]:
        """The rank of each weight. Raises InvalidConfig for a budget below that of rank 1."""
        if self.rank is not None:
            return [self.rank] * len(weights)
        if self.rho is not None:
            return [rank_of_share(weight, self.rho) for weight in weights]
        assert self.parameters is not None
        return ranks_within(
            weights,
            self.parameters,
            self.method,
            constant=self.spectrum == "constant",
            flatten_kernel=self.flatten_kernel,
        )


def spectral_(model: Model, config: SpectralConfig, filter_fn: Filter | None = None) -> Model:
    """Parametrise the weights of all linear layers and convolutions, or those that `filter_fn` takes.

    In place, and returned: names of modules stay. Raises NonFinite, naming the layer, for weights that are
    not finite, InvalidConfig for a layer whose weight is parametrised already, and InvalidShape for a model
    without such layers, and for weights without real values; the model is then as it was.
    """
    chosen = {name: layer for name, layer in model.named_modules() if _is_chosen(layer, name, filter_fn)}
    if not chosen:
        raise InvalidShape("the model has no linear layer or convolution to parametrise")
    for name, layer in chosen.items():
        _refuse_unusable(layer, f"the weight of {name}" if name else "the weight")
    shapes = [weight_shape(layer) for layer in chosen.values()]
    made = [
        Spectral(
            shape,
            config.method,
            rank,
            spectrum=config.spectrum,
            bound=config.bound,
            flatten_kernel=config.flatten_kernel,
            start=config.start,
        )
        for shape, rank in zip(shapes, config.ranks(shapes), strict=True)
    ]
    kinds = [
        executing_class(layer, spectral, config.execution)
        for layer, spectral in zip(chosen.values(), made, strict=True)
    ]
    with all_or_none(list(chosen.values())):
        for layer, spectral, kind in zip(chosen.values(), made, kinds, strict=True):
            attach_(layer, spectral, kind)
    return model


def svdp_(model: Model, filter_fn: Filter | None = None, **settings: Any) -> Model:
    """`spectral_` with W = U Sigma V^T; settings are those of `SpectralConfig`."""
    return spectral_(model, SpectralConfig("svdp", **settings), filter_fn)


def sttp_(model: Model, filter_fn: Filter | None = None, **settings: Any) -> Model:
    """`spectral_` with U and V as tensor trains; settings are those of `SpectralConfig`."""
    return spectral_(model, SpectralConfig("sttp", **settings), filter_fn)


def attach_(layer: nn.Module, spectral: Spectral, kind: type[nn.Module]) -> None:
    """Register a parametrization for a layer's weight; the layer is computed as a `kind`."""
    layer.__class__ = kind
    parametrize.register_parametrization(layer, "weight", spectral)


@contextmanager
def all_or_none(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Layers to be parametrised, which are as they were if one of them fails."""
    before = [(type(layer), dict(layer._parameters), dict(layer._modules)) for layer in layers]
    try:
        yield
    except BaseException:
        for layer, (kind, parameters, modules) in zip(layers, before, strict=True):
            layer.__class__ = kind
            layer._parameters, layer._modules = parameters, modules
        raise


def _refuse_unusable(layer: nn.Module, name: str) -> None:
    if parametrize.is_parametrized(layer, "weight"):
        raise InvalidConfig(name, "parametrised", "plain: remove its parametrizations")
    weight = layer.weight
    if not isinstance(weight, nn.Parameter) or isinstance(weight, nn.UninitializedParameter):
        raise InvalidShape(f"{name} is no parameter with values: give the layer one, or its first input")
    if weight.is_meta or not weight.is_floating_point():
        raise InvalidShape(f"{name} is {weight.dtype} on {weight.device}: real values are needed")
    refuse_non_finite(weight.detach(), name)


def _is_chosen(layer: nn.Module, name: str, filter_fn: Filter | None) -> bool:
    return isinstance(layer, Layer) and (filter_fn is None or filter_fn(layer, name))
