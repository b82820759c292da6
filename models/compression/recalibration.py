"""Averages of normalisations anew, from inputs without answers: what compression costs most, for little.

A compressed layer has outputs of other means and variances than those that the normalisation behind it has
learnt. They are measured again, as plain means over the batches, with nothing else changed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from models.compression.tracing import Example, answered, evaluating
from models.errors import InvalidShape, refuse_non_finite

Model = TypeVar("Model", bound=nn.Module)


def recalibrate_(model: Model, batches: Iterable[Example]) -> Model:
    """Running means and variances of all batch normalisations as those of these batches, in place.

    Each batch is a model's input, and counts the same. Modes, momenta and all else stay. Raises InvalidShape,
    naming the layer, for a batch that does not go through, or none; NonFinite for one that is not finite. The
    model is then as it was; so is one without such averages.
    """
    found = [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    ]
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and isinstance(module.running_mean, nn.UninitializedBuffer):
            raise InvalidShape(f"{name} has no averages before its first input: give the model one")
    before = [{name: value.clone() for name, value in norm.named_buffers()} for norm in found]
    momenta = [norm.momentum for norm in found]
    try:
        with evaluating(model):
            _measure_(model, found, batches)
    except BaseException:
        for norm, values in zip(found, before, strict=True):
            for name, value in norm.named_buffers():
                value.copy_(values[name])
        raise
    finally:
        for norm, momentum in zip(found, momenta, strict=True):
            norm.momentum = momentum
    return model


def _measure_(model: nn.Module, norms: list[_BatchNorm], batches: Iterable[Example]) -> None:
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.training = True
    count = 0
    for batch in batches:
        parts = [
            part for part in (batch if isinstance(batch, tuple) else (batch,)) if isinstance(part, Tensor)
        ]
        _refuse_empty(parts, count)
        for part in parts:
            refuse_non_finite(part, f"calibration batch {count}")
        answered(model, batch)
        count += 1
    if not count:
        raise InvalidShape("there is no batch to recalibrate with: give at least one")
    for name, norm in ((name, norm) for name, norm in model.named_modules() if norm in norms):
        for value in (norm.running_mean, norm.running_var):
            assert isinstance(value, Tensor)
            refuse_non_finite(value, f"an average of {name}")


def _refuse_empty(parts: list[Tensor], number: int) -> None:
    """Raise InvalidShape for tensors without a value among them; rows of no columns are no such."""
    if any(part.is_meta for part in parts) or (parts and not any(part.numel() for part in parts)):
        shapes = " and ".join(str(tuple(part.shape)) for part in parts)
        raise InvalidShape(f"calibration batch {number}, of shape {shapes}, holds no values")
