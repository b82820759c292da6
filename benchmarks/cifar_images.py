"""CIFAR-10 as JPEG: images and labels of `../shared/data/cifar10`, and what a training does to them."""

from __future__ import annotations

import io
from functools import cache
from zipfile import ZipFile

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional

from benchmarks.cifar_resnet import FOLDER, SIDE

FILES = {"train": "train20k.zip", "test": "test.zip"}
"""By split; the names in them are LABEL/NUMBER.jpg."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's colours in [0, 1], as the pretrained networks take them."""
MARGIN = 4
"""Pixels around an image that a crop may reach into."""

Pixels = UInt8[Tensor, "n 3 32 32"]
Labels = Int64[Tensor, " n"]


def missing() -> str | None:
    """Why there are no images, if there are none."""
    absent = [str(FOLDER / name) for name in FILES.values() if not (FOLDER / name).is_file()]
    return f"no images of CIFAR-10: {', '.join(absent)} not there" if absent else None


@cache
def images(split: str, count: int | None = None, every: int = 1) -> tuple[Pixels, Labels]:
    """Every `every`-th image of a split by label and name, or `count` of those, evenly spread over them.

    The same tensors at each call: copy what is to be changed. Raises SystemExit for files that are not there,
    and ValueError for a count that is not among 1 .. what there are.
    """
    if reason := missing():
        raise SystemExit(reason)
    with ZipFile(FOLDER / FILES[split]) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))
        labels = sorted({_label(name) for name in names})
        chosen = _spread(names[::every], count)
        pixels = np.stack([_decoded(archive.read(name)) for name in chosen])
    targets = torch.tensor([labels.index(_label(name)) for name in chosen])
    return torch.from_numpy(pixels).movedim(-1, 1).contiguous(), targets


def normalised(pixels: Pixels) -> Float[Tensor, "n 3 32 32"]:
    """Less the mean of colours, over their deviation, in float32."""
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (MEAN, STD))
    return (pixels / 255 - mean) / std


def augmented(
    batch: Float[Tensor, "n c 32 32"] | UInt8[Tensor, "n c 32 32"], generator: torch.Generator
) -> Float[Tensor, "n c 32 32"] | UInt8[Tensor, "n c 32 32"]:
    """Images moved by up to MARGIN pixels either way, zeros moving in, and one in two of them mirrored."""
    n = len(batch)
    down, right = torch.randint(0, 2 * MARGIN + 1, (2, n, 1), generator=generator)
    mirrored = torch.randint(0, 2, (n, 1), generator=generator, dtype=torch.bool)
    side = torch.arange(SIDE)
    rows, columns = down + side, right + torch.where(mirrored, side.flip(0), side)
    padded = functional.pad(batch, (MARGIN,) * 4).movedim(1, -1)
    return (
        padded[torch.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]
        .movedim(-1, 1)
        .contiguous()
    )


def _label(name: str) -> str:
    return name.partition("/")[0]


def _spread(names: list[str], count: int | None) -> list[str]:
    """So many of the names in their order."""
    if count is None:
        return names
    if not 1 <= count <= len(names):
        raise ValueError(f"count is {count}: it must be 1 to {len(names)}, as many as there are")
    return [names[k * len(names) // count] for k in range(count)]


def _decoded(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))
