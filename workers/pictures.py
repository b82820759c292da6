"""Where an answer comes from, as a picture: three planes of the scan, with the sampled cubes drawn over them.

The planes go through the most salient place and lie as radiologists expect them: the patient's right on the
left, front and head above. Each reads its own chunks only, of a level coarse enough for the picture.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from models.types import Array
from storage.records import Statistics
from storage.volume import AXES, Volume

PANEL = 360
"""Pixels of a panel's longer side."""
GAP, STRIP = 6, 24
MOST_CUBES = 60
"""Of each panel, the most salient ones."""
RAISES, LOWERS = (255, 140, 50), (70, 160, 255)
LETTERS = (217, 185, 91)
LEGEND = "orange cubes raise the answer, blue ones lower it"

_OPPOSITE = {"L": "R", "R": "L", "A": "P", "P": "A", "S": "I", "I": "S"}
_WANTED = {"S": "LP", "I": "LP", "A": "LI", "P": "LI", "L": "PI", "R": "PI"}
"""For the direction across a plane: where its columns and its rows are to grow to."""


@dataclass(frozen=True, eq=False)
class Cubes:
    """The cubes that an answer was made of, in the stored scan's voxels, (z, y, x).

    `centres` (m, 3), `sides` (3,), and `weights` (m,): what each moved the answer by.
    """

    centres: Float64[Array, "m 3"]
    weights: Float64[Array, " m"]
    sides: Float64[Array, " 3"]

    @property
    def most_salient(self) -> Float64[Array, " 3"]:
        """The centre of the cube with the largest weight."""
        return np.asarray(self.centres[int(np.abs(self.weights).argmax())])

    def through(self, across: int, position: float) -> Cubes:
        """Those that a plane across an axis meets, the most salient last."""
        met = np.flatnonzero(np.abs(self.centres[:, across] - position) <= self.sides[across] / 2)
        kept = met[np.argsort(np.abs(self.weights[met]), kind="stable")][-MOST_CUBES:]
        return Cubes(self.centres[kept], self.weights[kept], self.sides)


def saliency_png(volume: Volume, cubes: Cubes, notice: str) -> bytes:
    """Three planes through the most salient place with the cubes that they meet, and the notice below.

    Raises CorruptVolume.
    """
    place = np.clip(cubes.most_salient, 0, np.array(volume.stored.grid.shape) - 1)
    heaviest = float(np.abs(cubes.weights).max()) or 1.0
    panels = [_panel(volume, axis, place, cubes, heaviest) for axis in range(3)]
    width = sum(panel.width for panel in panels) + 2 * GAP
    picture = Image.new("RGB", (width, max(panel.height for panel in panels) + STRIP))
    left = 0
    for panel in panels:
        picture.paste(panel, (left, 0))
        left += panel.width + GAP
    words = f"{LEGEND}.  {notice}"
    ImageDraw.Draw(picture).text((6, picture.height - STRIP + 5), words, (200, 200, 200), _font())
    stream = io.BytesIO()
    picture.save(stream, "PNG", optimize=True)
    return stream.getvalue()


class _View(NamedTuple):
    """How a plane is turned: its stored axes by rows and columns, whether each is flipped, and the letters at
    the left, right, upper and lower border.
    """

    axes: tuple[int, int]
    flips: tuple[bool, bool]
    letters: tuple[str, str, str, str] | None

    @classmethod
    def of(cls, orientation: str | None, across: int) -> _View:
        """As a radiologist expects it; as stored where the scan does not say how it lies."""
        first, second = (axis for axis in range(3) if axis != across)
        if orientation is None:
            return cls((first, second), (False, False), None)
        grows = orientation[::-1]  # along z, y, x
        right, down = tuple(_WANTED[grows[across]])
        level = grows[second] in (right, _OPPOSITE[right])
        rows, columns = (first, second) if level else (second, first)
        flips = grows[rows] != down, grows[columns] != right
        return cls((rows, columns), flips, (_OPPOSITE[right], right, _OPPOSITE[down], down))

    def seen(self, plane: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The plane as it is shown; as stored its axes ascend."""
        turned = plane if self.axes[0] < self.axes[1] else plane.T
        steps = tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)
        return np.ascontiguousarray(turned[steps])


def _panel(
    volume: Volume, across: int, place: Float64[Array, " 3"], cubes: Cubes, heaviest: float
) -> Image.Image:
    """One plane, grey, with its cubes."""
    grid = volume.stored.grid
    view = _View.of(grid.orientation, across)
    inside = list(view.axes)
    level = _level(volume, inside)
    factor, shape = np.array(volume.levels[level].factor), np.array(volume.levels[level].shape)
    plane = volume.plane(AXES[across], int(round(place[across]) // factor[across]), level=level)
    extent = (shape * factor)[inside]
    height, width = _pixels(extent, np.array(grid.spacing or (1.0, 1.0, 1.0))[inside])
    picture = (
        Image.fromarray(view.seen(_grey(plane, volume.stored.statistics)))
        .resize((width, height))
        .convert("RGBA")
    )
    marks = Image.new("RGBA", picture.size)
    met = cubes.through(across, float(place[across]))
    _draw_cubes(
        marks, (met.centres[:, inside] + 0.5) / extent, met.sides[inside] / extent, view, met, heaviest
    )
    picture.alpha_composite(marks)
    if view.letters is not None:
        _write_letters(picture, view.letters)
    return picture.convert("RGB")


def _draw_cubes(
    marks: Image.Image,
    centres: Float64[Array, "m 2"],
    sides: Float64[Array, " 2"],
    view: _View,
    cubes: Cubes,
    heaviest: float,
) -> None:
    """Outlines, in the colour of the sign and as strong as the weight; places in shares of the plane."""
    draw = ImageDraw.Draw(marks)
    size = np.array(marks.size[::-1])
    turned = np.where(view.flips, 1 - centres, centres)
    corners = np.stack([turned - sides / 2, turned + sides / 2], axis=1) * size
    for ((top, left), (bottom, right)), weight in zip(corners.tolist(), cubes.weights.tolist(), strict=True):
        colour = RAISES if weight > 0 else LOWERS
        draw.rectangle((left, top, right, bottom), outline=(*colour, int(60 + 195 * abs(weight) / heaviest)))


def _level(volume: Volume, inside: list[int]) -> int:
    """The coarsest level whose plane still fills a panel; the finest where none does."""
    enough = [
        number
        for number, level in enumerate(volume.levels)
        if max(level.shape[axis] for axis in inside) >= PANEL
    ]
    return max(enough, default=0)


def _grey(plane: Array, statistics: Statistics) -> NDArray[np.uint8]:
    """Grey values: black two deviations below the scan's mean, white three above it, if it goes so far."""
    low = max(statistics.minimum, statistics.mean - 2 * statistics.std)
    high = min(statistics.maximum, statistics.mean + 3 * statistics.std)
    scaled = (plane.astype(np.float64) - low) / max(high - low, 1e-30)
    grey: NDArray[np.uint8] = np.rint(255 * np.clip(scaled, 0, 1)).astype(np.uint8)
    return grey


def _pixels(extent: Float64[Array, " 2"], spacing: Float64[Array, " 2"]) -> tuple[int, int]:
    """Rows and columns of a panel in true proportions."""
    size = extent * spacing
    rows, columns = np.maximum(1, np.rint(PANEL * size / size.max())).astype(int).tolist()
    return rows, columns


def _write_letters(picture: Image.Image, letters: tuple[str, str, str, str]) -> None:
    """Where left, right, top and bottom are in the patient."""
    draw, (width, height) = ImageDraw.Draw(picture), picture.size
    places = [(4, height // 2), (width - 14, height // 2), (width // 2, 2), (width // 2, height - 18)]
    for letter, place in zip(letters, places, strict=True):
        draw.text(place, letter, (*LETTERS, 255), _font())


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(13)
