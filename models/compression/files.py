"""Compressed models as safetensors: the tensors of the state dict, and how layers are made of them.

The metadata has one entry, a JSON document: the version; the model's structure (`structure`), with eps and
the error of each layer where the plan is given; the digest of the dense model's weights; and a digest of the
file's own tensors and document. A file is read into a freshly made dense model, and nothing in it is ever
executed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from models.compression.plans import CompressionPlan, digest_of_tensors
from models.compression.structure import fill_, taken_apart
from models.errors import InvalidShape

VERSION = 1
"""Of the document."""

KEY = "tomotrain.compression"
"""Of the metadata's one entry."""

_PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def to_bytes(model: nn.Module, plan: CompressionPlan | None = None) -> bytes:
    """A safetensors file of a compressed model, or of any; the same model gives the same bytes.

    With its `plan`, the file says which weights it came from and with what error. Raises InvalidShape for a
    spectral layer that the model has under two names.
    """
    tensors, structure = taken_apart(model)
    planned = {} if plan is None else {layer.name: layer for layer in plan.layers}
    layers = {}
    for name, told in structure["layers"].items():
        known = planned.get(name)
        form = None if known is None else known.form
        layers[name] = {
            **told,
            "eps": None if form is None else form.eps,
            "error": None if known is None or form is None else known.error,
        }
    document = {
        "version": VERSION,
        "layers": layers,
        "spectral": structure["spectral"],
        "spectral_errors": {
            name: layer.error for name, layer in planned.items() if layer.form and name not in layers
        },
        "source": None if plan is None else plan.digest,
        "config": None if plan is None else plan.config,
    }
    document["digest"] = _digest(tensors, document)
    return save(tensors, {KEY: json.dumps(document, sort_keys=True)})


def from_bytes_(model: nn.Module, content: bytes) -> dict[str, Any]:
    """Fill a freshly made dense model with what `to_bytes` gave, in place; returned is the file's document.

    Raises InvalidShape for what is no such file (a pickle, another version, a byte that was altered), and,
    naming the layer or the tensor, for another model's; NonFinite for values that are not finite. The model
    is then as it was.
    """
    tensors, document = _read(content)
    fill_(model, tensors, document)
    return document


def _read(content: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if content.startswith(_PICKLES):
        raise InvalidShape("this is a pickle or an archive, which is never read: save the model by to_bytes")
    try:
        tensors = load(content)
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size])
    except (SafetensorError, ValueError, KeyError, RecursionError) as error:
        raise InvalidShape(f"this is no safetensors file: {error}") from error
    try:
        document = dict(json.loads(header["__metadata__"][KEY]))
        version, stated = document["version"], document.pop("digest")
        document["layers"], document["spectral"] = dict(document["layers"]), dict(document["spectral"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise InvalidShape(f"the file's metadata has no {KEY}: it is of no compressed model") from error
    if version != VERSION:
        raise InvalidShape(f"the file is of version {version}, this program reads {VERSION}: save it anew")
    if _digest(tensors, document) != stated:
        raise InvalidShape("the file was altered: its tensors and metadata are not those it was saved with")
    return tensors, document


def _digest(tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> str:
    stated = json.dumps(document, sort_keys=True)
    return hashlib.sha256(f"{digest_of_tensors(tensors.items())} {stated}".encode()).hexdigest()
