"""Pictures of shapes and short texts, for `render` and for figures."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL import Image

Point = tuple[float, float]
"""Pixels from the left and from the top."""

# shapes are drawn three times as large and then made smaller: Pillow's lines have no smooth edges
_ZOOM = 3


class Canvas:
    """A white picture to draw on; Pillow is imported when the first one is made.

    Args:
        width: width in pixels.
        height: height in pixels.
    """

    def __init__(self, width: int, height: int) -> None:
        from PIL import Image, ImageDraw

        self.size = (width, height)
        self._large = Image.new("RGB", (width * _ZOOM, height * _ZOOM), "white")
        self._draw = ImageDraw.Draw(self._large)
        self._texts: list[tuple[Point, str, str, str]] = []

    def copy(self) -> Self:
        """Copy what is drawn so far."""
        twin = type(self)(*self.size)
        twin._large.paste(self._large)
        twin._texts = list(self._texts)
        return twin

    def line(self, start: Point, end: Point, color: str, width: float = 1) -> None:
        """Draw a straight line."""
        self._draw.line(_large(*start, *end), fill=color, width=round(width * _ZOOM))

    def box(
        self, corner: Point, size: Point, fill: str, outline: str | None = None, width: float = 1
    ) -> None:
        """Draw a rectangle from its upper left corner."""
        (left, top), (wide, high) = corner, size
        shape = _large(left, top, left + wide, top + high)
        self._draw.rectangle(shape, fill=fill, outline=outline, width=round(width * _ZOOM))

    def disc(
        self,
        center: Point,
        radius: float,
        fill: str | None = None,
        outline: str | None = None,
        width: float = 1,
    ) -> None:
        """Draw a filled circle, or only its outline."""
        x, y = center
        shape = _large(x - radius, y - radius, x + radius, y + radius)
        self._draw.ellipse(shape, fill=fill, outline=outline, width=round(width * _ZOOM))

    def arrow(self, start: Point, tip: Point, color: str) -> None:
        """Draw an arrow."""
        self.line(start, tip, color, 5 / 3)
        angle = math.atan2(tip[1] - start[1], tip[0] - start[0])
        corners = list(tip)
        for side in (angle - 0.4, angle + 0.4):
            corners += [tip[0] - 8 * math.cos(side), tip[1] - 8 * math.sin(side)]
        self._draw.polygon(_large(*corners), fill=color)

    def text(self, at: Point, text: str, color: str = "black", anchor: str = "mm") -> None:
        """Write on top of all shapes; `anchor` is Pillow's: `mm` centered, `lm` from the left."""
        self._texts.append((at, text, color, anchor))

    def pixels(self) -> Tensor:
        """Get the picture, uint8 of shape `[height, width, 3]`."""
        from PIL import Image, ImageDraw

        picture = self._large.resize(self.size, Image.Resampling.BOX)
        draw = ImageDraw.Draw(picture)
        for at, text, color, anchor in self._texts:
            draw.text(at, text, fill=color, anchor=anchor)
        return to_pixels(picture)


def to_pixels(picture: Image.Image) -> Tensor:
    """Convert an RGB picture of Pillow to uint8 of shape `[height, width, 3]`."""
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return pixels.view(picture.height, picture.width, 3)


def _large(*numbers: float) -> Any:
    return [number * _ZOOM for number in numbers]
