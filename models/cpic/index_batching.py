"""Exact gradients of the encoder with the memory of one chunk of voxels, however many are sampled.

The loss depends on the weights phi through the features E_u(phi) of the sampled voxels u alone. So, in two
stages,

    dL/dphi = sum over chunks c of (dE_c/dphi)^T dL/dE_c:

the features are made without a graph, all that follows is differentiated with respect to them, and then each
chunk is encoded once more, with a graph, and pulled back. The chain rule is linear: nothing is approximated,
and no more than one chunk's graph is ever alive, through all volumes of a loss.

That needs an encoder whose voxels do not depend on each other, nor on chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from models.cpic.encoding import ENCODE_BATCH, batches, check, naming, shares
from models.cpic.field import EncodedVoxels, encode_together
from models.errors import InvalidConfig
from models.types import Int64

TOGETHER = (
    "free of what ties voxels to each other or to chance (BatchNorm, InstanceNorm, GroupNorm, active Dropout)"
)


def index_batched(
    volumes: Sequence[EncodedVoxels], voxels: Sequence[Int64], *, chunk: int = ENCODE_BATCH
) -> list[Float64[Tensor, "m f"]]:
    """The features of distinct voxels (m,) of each volume, differentiable by the encoders' weights.

    They are those of `EncodedVoxels.features`, bit by bit. Where they fit into one chunk they are encoded
    with their graph; else without it, if unknown, and a backward pass encodes them once more, with the memory
    of the graph of `chunk` points at most, or of two boxes where those take more; weights must stand still
    until then. Raises what `encode_together` raises, and InvalidConfig, naming the layer, for a network whose
    features of one voxel depend on other voxels or on chance, and for a chunk below 1.
    """
    if chunk < 1:
        raise InvalidConfig("chunk", chunk, "at least 1")
    for volume in volumes:
        refuse_ties(volume.scan.encoder.network)
    weights = _trained(volumes)
    sizes = [len(wanted) for wanted in voxels]
    if weights and torch.is_grad_enabled() and min(sizes) > 0 and sum(sizes) <= chunk:
        return _at_once(volumes, voxels, chunk)
    encode_together(volumes, voxels)
    features = [volume.features(wanted) for volume, wanted in zip(volumes, voxels, strict=True)]
    if not weights or not torch.is_grad_enabled():
        return features
    return list(cast(Any, _TwoStages).apply(volumes, voxels, chunk, features, *weights))


def refuse_ties(network: nn.Module | None) -> None:
    """Raise InvalidConfig, naming the layer, where features depend on other voxels or on chance."""
    for name, layer in [] if network is None else network.named_modules():
        chance = isinstance(layer, _DropoutNd) and layer.training and layer.p > 0
        if chance or isinstance(layer, _NormBase | nn.GroupNorm):
            raise InvalidConfig(f"encoder.{name}", type(layer).__name__, TOGETHER)


def _at_once(volumes: Sequence[EncodedVoxels], voxels: Sequence[Int64], chunk: int) -> list[Tensor]:
    """The features with their graph: what fits into one chunk need not be encoded twice."""
    scans, sizes = [volume.scan for volume in volumes], [len(wanted) for wanted in voxels]
    parts: list[list[Tensor]] = [[] for _ in volumes]
    places: list[list[Int64]] = [[] for _ in volumes]
    for batch in batches(scans, voxels, min(chunk, ENCODE_BATCH)):
        features = batch.features().double()
        for owner, own, numbers in shares(batch.rows, sizes):
            with naming(owner, scans):
                check(features[own].detach(), voxels[owner][numbers], scans[owner])
            parts[owner].append(features[own])
            places[owner].append(numbers)
            volumes[owner].stepped()
    return [_in_order(part, at) for part, at in zip(parts, places, strict=True)]


def _in_order(parts: Sequence[Tensor], places: Sequence[Int64]) -> Tensor:
    """Rows of several batches, each where it belongs."""
    order = torch.from_numpy(np.argsort(np.concatenate(places)))
    return torch.cat(list(parts))[order.to(parts[0].device)]


class _TwoStages(torch.autograd.Function):
    """Features in; in the backward pass, their gradients pulled back to the weights chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any,
        volumes: Sequence[EncodedVoxels],
        voxels: Sequence[Int64],
        chunk: int,
        features: Sequence[Tensor],
        *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        """The features as they are."""
        ctx.volumes, ctx.voxels, ctx.chunk = volumes, voxels, chunk
        ctx.save_for_backward(*weights)
        return tuple(features)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """(dE/dphi)^T dL/dE, one chunk after the other."""
        weights = ctx.saved_tensors  # raises where a weight was written to since
        sums = [torch.zeros_like(weight) for weight in weights]
        sizes = [len(wanted) for wanted in ctx.voxels]
        scans, points = [volume.scan for volume in ctx.volumes], min(ctx.chunk, ENCODE_BATCH)
        for batch in batches(scans, ctx.voxels, points):
            with torch.enable_grad():
                features = batch.features().double()
            gradient = torch.cat(
                [
                    gradients[owner][torch.from_numpy(numbers).to(features.device)]
                    for owner, _, numbers in shares(batch.rows, sizes)
                ]
            )
            parts = torch.autograd.grad(features, weights, gradient, allow_unused=True)
            sums = [total if part is None else total + part for total, part in zip(sums, parts, strict=True)]
        return None, None, None, None, *sums


def _trained(volumes: Sequence[EncodedVoxels]) -> list[nn.Parameter]:
    """The weights of all networks that take a gradient, each once."""
    networks = [volume.scan.encoder.network for volume in volumes]
    found = {id(p): p for network in networks if network is not None for p in network.parameters()}
    return [weight for weight in found.values() if weight.requires_grad]
