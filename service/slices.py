"""One plane of a scan as a PNG: windowed to grey, and of the right proportions where a size is asked for."""

from __future__ import annotations

import io
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_LEAST_WIDTH = 1e-30
_BAND_PIXELS = 1 << 20


class Window(NamedTuple):
    """Values that become black and white; linear between, in the scan's own units."""

    low: float
    high: float


def grey(plane: NDArray[Any], window: Window) -> NDArray[np.uint8]:
    """Grey values 0 ... 255 of a plane (h, w). A window without width becomes a step at its value.

    The arithmetic in float64 goes band by band: a large plane would need many times its own memory.
    """
    picture = np.empty(plane.shape, np.uint8)
    rows = max(1, _BAND_PIXELS // plane.shape[1])
    for start in range(0, len(plane), rows):
        picture[start : start + rows] = _grey(plane[start : start + rows], window)
    return picture


def _grey(plane: NDArray[Any], window: Window) -> NDArray[np.float64]:
    width = max(window.high - window.low, _LEAST_WIDTH)
    scaled = np.clip((plane.astype(np.float64) - window.low) / width, 0.0, 1.0)
    return np.asarray(np.rint(scaled * 255.0))


def fitted(shape: tuple[int, int], spacing: tuple[float, float], size: int) -> tuple[int, int]:
    """Pixels (rows, columns) of a picture in true proportions whose longer side has `size` pixels.

    `shape` and `spacing` are of the plane's rows and columns.
    """
    rows, columns = (extent * step for extent, step in zip(shape, spacing, strict=True))
    scale = size / max(rows, columns)
    return max(1, round(rows * scale)), max(1, round(columns * scale))


def png(
    plane: NDArray[Any],
    window: Window,
    *,
    spacing: tuple[float, float] | None = None,
    size: int | None = None,
) -> bytes:
    """A plane (h, w) as an 8-bit PNG: voxel for voxel, or with `size`, resized to true proportions.

    Without a spacing, voxels count as square.
    """
    image = Image.fromarray(grey(plane, window))
    if size is not None:
        rows, columns = fitted((image.height, image.width), spacing or (1.0, 1.0), size)
        image = image.resize((columns, rows), Image.Resampling.BILINEAR, reducing_gap=2.0)
    stream = io.BytesIO()
    image.save(stream, "PNG", compress_level=1)
    return stream.getvalue()
