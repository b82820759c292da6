"""Agreement of two models as a picture: Bland & Altman's plot (Statistical methods for assessing agreement
between two methods of clinical measurement, Lancet 1986), the difference of each pair over its mean.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from PIL import Image, ImageDraw, ImageFont

from models.compression.reports import Change
from models.types import Array

WIDTH, HEIGHT = 720, 480
LEFT, RIGHT, TOP, BOTTOM = 90, 120, 40, 84
"""Borders of the field: for numbers, words at lines, the title, and names."""
GROUND, INK, SOFT, POINT, MEAN, LIMIT = (
    (255, 255, 255),
    (30, 36, 44),
    (150, 158, 168),
    (20, 110, 170),
    (30, 36, 44),
    (190, 70, 30),
)
RADIUS, DASH, MARGIN, TICKS = 3, 6, 0.08, 5


@dataclass(frozen=True)
class Axis:
    """Numbers from `low` to `high` on pixels from `start` to `end`."""

    low: float
    high: float
    start: int
    end: int

    @classmethod
    def over(cls, values: Array, start: int, end: int) -> Axis:
        """All of some numbers, with a margin; a single number in the middle."""
        low, high = float(values.min()), float(values.max())
        room = MARGIN * (high - low) or 0.5 * abs(high) or 1.0
        return cls(low - room, high + room, start, end)

    def __call__(self, value: float) -> int:
        """Where a number stands."""
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start))

    def ticks(self) -> list[float]:
        """A few round numbers."""
        rough = (self.high - self.low) / TICKS
        unit = 10.0 ** math.floor(math.log10(rough))
        step = next(unit * each for each in (1, 2, 5, 10) if unit * each >= rough)
        first = math.ceil(self.low / step)
        return [step * number for number in range(first, math.floor(self.high / step) + 1)]


def agreement_png(
    before: Float64[Array, " n"], after: Float64[Array, " n"], change: Change, name: str, notice: str
) -> bytes:
    """A point for each pair, lines at the mean difference and at the limits of agreement, and the notice.

    `name` is of what the numbers are, with its unit.
    """
    means, differences = (before + after) / 2, after - before
    x = Axis.over(means, LEFT, WIDTH - RIGHT)
    lines = {"upper limit": change.upper, "mean": change.mean, "lower limit": change.lower}
    y = Axis.over(np.concatenate([differences, [0.0, *lines.values()]]), HEIGHT - BOTTOM, TOP)
    picture = Image.new("RGB", (WIDTH, HEIGHT), GROUND)
    draw = ImageDraw.Draw(picture)
    _field(draw, x, y)
    for words, value in lines.items():
        _line(draw, y(value), MEAN if words == "mean" else LIMIT, dashed=words != "mean")
        draw.text((WIDTH - RIGHT + 6, y(value) - 7), f"{value:+.3g}", INK, _font(12))
    for mean, difference in zip(means.tolist(), differences.tolist(), strict=True):
        column, row = x(mean), y(difference)
        draw.ellipse((column - RADIUS, row - RADIUS, column + RADIUS, row + RADIUS), outline=POINT, width=2)
    pairs = (
        f"{len(means):,} answers; lines: mean difference and limits of agreement (mean +- 1.96 deviations)"
    )
    draw.text((LEFT, 14), f"after - before: {name}", INK, _font(14))
    draw.text((LEFT, HEIGHT - BOTTOM + 26), f"mean of both: {name}", INK, _font(13))
    draw.text((LEFT, HEIGHT - BOTTOM + 46), pairs, SOFT, _font(12))
    draw.text((LEFT, HEIGHT - BOTTOM + 64), notice, SOFT, _font(12))
    stream = io.BytesIO()
    picture.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _field(draw: ImageDraw.ImageDraw, x: Axis, y: Axis) -> None:
    """A frame, the line of no difference, and numbers at both axes."""
    draw.rectangle((x.start, y.end, x.end, y.start), outline=SOFT)
    _line(draw, y(0.0), SOFT, dashed=False)
    for value in x.ticks():
        draw.line((x(value), y.start, x(value), y.start + 4), SOFT)
        draw.text((x(value), y.start + 6), f"{value:.4g}", INK, _font(12), anchor="mt")
    for value in y.ticks():
        draw.line((x.start - 4, y(value), x.start, y(value)), SOFT)
        draw.text((x.start - 8, y(value)), f"{value:.3g}", INK, _font(12), anchor="rm")


def _line(draw: ImageDraw.ImageDraw, row: int, colour: tuple[int, int, int], *, dashed: bool) -> None:
    """Across the field."""
    step = DASH if dashed else WIDTH
    for start in range(LEFT, WIDTH - RIGHT, 2 * step):
        draw.line((start, row, min(start + step, WIDTH - RIGHT), row), colour, 1)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
