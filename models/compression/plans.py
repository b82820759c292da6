"""What a plan says of a model: for each layer its form and what it costs, or why it is left as it is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn, uint8

from models.compression.costs import LayerCost
from models.compression.forms import Form
from models.errors import InvalidConfig

VERSION = 1
"""Of a plan's document."""


@dataclass(frozen=True)
class LayerPlan:
    """Of one layer, by its first name: `form`, or None and the `reason` why it is left as it is.

    `error` is ||W - W^|| / ||W||, 0 of what is left.
    """

    name: str
    kind: str
    before: LayerCost
    after: LayerCost
    error: float = 0.0
    form: Form | None = None
    reason: str = ""


@dataclass(frozen=True)
class CompressionPlan:
    """The plan of a model with weights of this `digest`, and how it was asked for.

    `curvature` is the digest of the one whose metric it was made in; None for Frobenius'.
    Parameters and bytes are those of the whole model, MACs those of its linear layers and convolutions for
    the example input.
    """

    digest: str
    config: str
    parameters: int
    bytes: int
    bytes_after: int
    layers: tuple[LayerPlan, ...]
    curvature: str | None = None
    version: int = VERSION

    @property
    def parameters_after(self) -> int:
        """Of the whole model when compressed."""
        saved = (layer.before.parameters - layer.after.parameters for layer in self.layers)
        return self.parameters - sum(saved)

    @property
    def pcr(self) -> float:
        """Parameters of the model over those of the compressed one."""
        return self.parameters / self.parameters_after if self.parameters_after else 1.0

    @property
    def macs(self) -> int:
        """Of the model as it is."""
        return sum(layer.before.executed for layer in self.layers)

    @property
    def macs_after(self) -> int:
        """Of the factorised forms."""
        return sum(layer.after.macs for layer in self.layers)

    @property
    def macs_executed(self) -> int:
        """Of what runs: a kernel that is rebuilt costs what the dense one does."""
        return sum(layer.after.executed for layer in self.layers)

    @property
    def forms(self) -> dict[str, Form]:
        """Of the layers that change."""
        return {layer.name: layer.form for layer in self.layers if layer.form is not None}

    def to_json(self) -> str:
        """A document that `from_json` reads; the same plan gives the same text."""
        return json.dumps(asdict(self), sort_keys=True, indent=1)

    @classmethod
    def from_json(cls, text: str) -> CompressionPlan:
        """Raises InvalidConfig for what is no document of this version."""
        try:
            told = json.loads(text)
            if told.get("version") != VERSION:
                raise InvalidConfig("version", told.get("version"), f"{VERSION}: make the plan anew")
            layers = tuple(_layer(layer) for layer in told.pop("layers"))
            made = cls(layers=layers, **told)
            _refuse_unnamed(made)
            return made
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise InvalidConfig("plan", text[:40], f"the JSON of a plan: {error}") from error

    def __str__(self) -> str:
        rows = [_HEAD, *(_row(layer) for layer in self.layers)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        return "\n".join([*lines, self._summary()])

    def _summary(self) -> str:
        return (
            f"parameters {self.parameters:,} -> {self.parameters_after:,} (PCR {self.pcr:.3f}), MACs "
            f"{self.macs:,} -> {self.macs_after:,} (executed {self.macs_executed:,}), bytes {self.bytes:,} "
            f"-> {self.bytes_after:,}; {self.config}"
        )


def _refuse_unnamed(plan: CompressionPlan) -> None:
    names = [layer.name for layer in plan.layers]
    if not all(isinstance(text, str) for text in (plan.digest, plan.config, *names)):
        raise TypeError("the digest, the config and names of layers are text")
    if len(set(names)) != len(names):
        raise ValueError("each layer has one entry")


def digest_of(model: nn.Module) -> str:
    """SHA-256 of all parameters: names, types, shapes and values. Buffers, such as averages, do not count."""
    return digest_of_tensors(model.named_parameters(remove_duplicate=False))


def digest_of_tensors(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 of named tensors, in the order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().to("cpu").contiguous().reshape(-1)
        digest.update(flat.view(uint8).numpy().tobytes())
    return digest.hexdigest()


_HEAD = ("layer", "kind", "form", "parameters", "MACs", "executed", "activation", "error")


def _row(layer: LayerPlan) -> tuple[str, ...]:
    before, after = layer.before, layer.after
    return (
        layer.name,
        layer.kind,
        _formed(layer),
        f"{before.parameters:,} -> {after.parameters:,}",
        f"{before.macs:,} -> {after.macs:,}",
        f"{after.executed:,}",
        f"{before.activation:,} -> {after.activation:,}",
        f"{layer.error:.4f}",
    )


def _formed(layer: LayerPlan) -> str:
    if layer.form is None:
        return f"as it is: {layer.reason}"
    ranks = "-".join(map(str, layer.form.ranks))
    modes = " ".join("".join(map(str, mode)) for mode in layer.form.modes)
    return f"{layer.form.method} {ranks}" + (f" ({modes})" if modes else "") + f", {layer.form.execution}"


def _layer(told: dict[str, Any]) -> LayerPlan:
    form = told.pop("form")
    before, after = LayerCost(**told.pop("before")), LayerCost(**told.pop("after"))
    return LayerPlan(form=None if form is None else _form(form), before=before, after=after, **told)


def _form(told: dict[str, Any]) -> Form:
    modes = tuple(tuple(mode) for mode in told.pop("modes"))
    return Form(modes=modes, ranks=tuple(told.pop("ranks")), late=tuple(told.pop("late")), **told)
