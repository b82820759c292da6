"""Compressed models as plain ones: rings, SVDs and spectral weights as the dense layers that they are."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from models.compression.applying import exchange_
from models.rsdtr.layers import FactorisedLayer
from models.sttp.folding import folded as spectral_folded
from models.sttp.parametrizations import spectral_of

Model = TypeVar("Model", bound=nn.Module)


def fold_(model: Model) -> Model:
    """Every layer in a compressed form as PyTorch's own with the whole kernel, in place; names stay.

    The state dict has then the names and shapes of the model before it was compressed. All layers are made
    before the first is exchanged. A compressed layer by itself is folded by its own `folded`.
    """
    found = {name: layer for name, layer in model.named_modules() if name}
    exchange_(model, {name: plain for name, layer in found.items() if (plain := _plain(layer)) is not None})
    return model


def _plain(layer: nn.Module) -> nn.Module | None:
    if isinstance(layer, FactorisedLayer):
        made = layer.folded()
    elif spectral_of(layer) is not None:
        made = spectral_folded(layer, parts=1)
    else:
        return None
    learnt = any(own.requires_grad for own in layer.parameters())
    return made.requires_grad_(learnt)
