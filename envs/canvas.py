"""What frames are drawn on: text, bars, lines and axes with round ticks, smooth at the edges, by Pillow alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

WIDTH_PX, HEIGHT_PX = 960, 640
"""Size of a frame, even as films want it."""
_FINER = 2
"""Everything is drawn so many times larger, and then reduced."""
Color = tuple[int, int, int]
Box = tuple[float, float, float, float]
"""Left, top, right, bottom [px]."""
INK, GREY, FAINT, SHADE, PAPER = (34, 34, 34), (110, 110, 110), (214, 214, 214), (244, 244, 244), (255, 255, 255)
_LIGHT = 380
"""Colors whose parts sum to more bear dark words."""
KEPT, BROKEN = (0, 114, 178), (213, 94, 0)
PALETTE: tuple[Color, ...] = (
    (0, 114, 178),
    (230, 159, 0),
    (0, 158, 115),
    (204, 121, 167),
    (86, 180, 233),
    (213, 94, 0),
    (240, 200, 50),
    (130, 130, 130),
)
"""Colors that people with any color vision tell apart, after Okabe and Ito; one per request or device, in turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Values laid linearly between two places of the frame.

    Attributes:
        low: value at `begin_px`.
        high: value at `end_px`; above `low`.
        begin_px: place of `low` [px].
        end_px: place of `high` [px].
    """

    low: float
    high: float
    begin_px: float
    end_px: float

    def px(self, value: float) -> float:
        """Return the place of a value, ended at the ends [px]."""
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return self.begin_px + share * (self.end_px - self.begin_px)

    def ticks(self, most: int) -> list[float]:
        """Return at most `most` + 1 round values, 1, 2, 2.5 or 5 times a power of ten apart."""
        rough = (self.high - self.low) / most
        power = 10.0 ** np.floor(np.log10(rough))
        step = power * next(factor for factor in (1.0, 2.0, 2.5, 5.0, 10.0) if factor * power >= rough * (1.0 - 1e-9))
        first, last = np.ceil(self.low / step - 1e-9), np.floor(self.high / step + 1e-9)
        return [float(step * i) + 0.0 for i in np.arange(first, last + 1.0)]  # 0.0 in place of -0.0


class Canvas:
    """A white frame; all places in pixels of the finished frame."""

    def __init__(self) -> None:
        self._image = Image.new("RGB", (_FINER * WIDTH_PX, _FINER * HEIGHT_PX), PAPER)
        self._draw = ImageDraw.Draw(self._image)

    def text(
        self, place: tuple[float, float], text: str, color: Color = INK, size: int = 14, anchor: str = "la"
    ) -> None:
        """Write at a place; anchors are those of Pillow."""
        x, y = place
        self._draw.text((_FINER * x, _FINER * y), text, color, _font(_FINER * size), anchor)

    def bar(self, box: Box, color: Color) -> None:
        """Fill a box; nothing where it is thinner than a quarter of a pixel."""
        left, top, right, bottom = (_FINER * edge for edge in box)
        if right - left >= 0.25 * _FINER and bottom - top >= 0.25 * _FINER:
            self._draw.rectangle((left, top, max(right - 1, left), max(bottom - 1, top)), color)

    def span(self, box: Box, color: Color, word: str = "") -> None:
        """Fill a box at least a pixel wide, with a gap to its right, and write a word into it where there is room."""
        left, top, right, bottom = box
        right = max(right - 1, left + 1)
        self.bar((left, top, right, bottom), color)
        if word and right - left > 9 * len(word):
            ink = INK if sum(color) > _LIGHT else PAPER
            self.text(((left + right) / 2, (top + bottom) / 2), word, ink, 12, "mm")

    def line(self, points: Sequence[tuple[float, float]], color: Color, width: float = 1.0) -> None:
        """Draw a line through places."""
        finer = [(_FINER * x, _FINER * y) for x, y in points]
        self._draw.line(finer, color, max(round(_FINER * width), 1), joint="curve")

    def dashes(self, begin: tuple[float, float], end: tuple[float, float], color: Color) -> None:
        """Draw a dashed line between two places."""
        length = float(np.hypot(end[0] - begin[0], end[1] - begin[1]))
        shares = np.arange(0.0, 1.0, 8.0 / max(length, 8.0))
        for share in shares:
            stop = min(share + 5.0 / max(length, 8.0), 1.0)
            ends = [tuple(b + at * (e - b) for b, e in zip(begin, end, strict=True)) for at in (share, stop)]
            self.line(ends, color)  # type: ignore[arg-type]

    def x_axis(self, scale: Scale, y: float, label: str, *, most: int) -> None:
        """Draw a horizontal axis with ticks below it and a label at its right end."""
        self.line([(scale.begin_px, y), (scale.end_px, y)], GREY)
        for tick in scale.ticks(most):
            self.line([(scale.px(tick), y), (scale.px(tick), y + 4)], GREY)
            self.text((scale.px(tick), y + 6), f"{tick:g}", GREY, 11, "ma")
        self.text((scale.end_px, y + 21), label, GREY, 11, "ra")

    def y_axis(self, scale: Scale, x: float, *, most: int) -> None:
        """Draw a vertical axis with ticks to its left."""
        self.line([(x, scale.begin_px), (x, scale.end_px)], GREY)
        for tick in scale.ticks(most):
            self.line([(x - 4, scale.px(tick)), (x, scale.px(tick))], GREY)
            self.text((x - 7, scale.px(tick)), f"{tick:g}", GREY, 11, "rm")

    def array(self) -> NDArray[np.uint8]:
        """Return the frame, shape (HEIGHT_PX, WIDTH_PX, 3)."""
        return np.asarray(self._image.reduce(_FINER))


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return the font that comes with Pillow, `size` pixels high."""
    return ImageFont.load_default(size)
