"""Draw who imports whom, from the table that the tests hold against the code.

python docs/pictures/rooms.py
"""

from __future__ import annotations

import tomllib
from math import hypot
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
WIDTH, HEIGHT = 104, 34
COLUMN, LINE, MARGIN = 60, 74, 16


def draw(rooms: dict[str, Any]) -> str:
    """The picture as SVG: a box per room that has a place, an arrow per import between them."""
    at = {name: room["at"] for name, room in rooms.items() if "at" in room}
    left = min(column for column, _ in at.values())
    centers = {
        name: (MARGIN + WIDTH // 2 + (column - left) * COLUMN, MARGIN + HEIGHT // 2 + line * LINE)
        for name, (column, line) in at.items()
    }
    width = max(x for x, _ in centers.values()) + WIDTH // 2 + MARGIN
    height = max(y for _, y in centers.values()) + HEIGHT // 2 + MARGIN
    arrows = [
        _arrow(centers[name], centers[other], dashed=other in room.get("lazily", ()))
        for name, room in rooms.items()
        for other in room["ours"]
        if name in centers and other in centers
    ]
    boxes = [
        f'<rect x="{x - WIDTH // 2}" y="{y - HEIGHT // 2}" width="{WIDTH}" height="{HEIGHT}"/>'
        for x, y in centers.values()
    ]
    names = [f'<text x="{x}" y="{y + 5}">{name}</text>' for name, (x, y) in centers.items()]
    # a background of its own, so that it looks the same on a dark page
    return f"""\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" \
font-family="sans-serif" font-size="14">
  <title>Rooms of the package and who imports whom</title>
  <defs><marker id="head" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" \
orient="auto"><path d="M0 1 L8 4 L0 7 z" fill="#555"/></marker></defs>
  <rect width="{width}" height="{height}" rx="6" fill="white"/>
  <g stroke="#555" fill="none" marker-end="url(#head)">
    {_lines(arrows)}
  </g>
  <g stroke="#333" fill="#eef4f3">
    {_lines(boxes)}
  </g>
  <g text-anchor="middle" fill="#111">
    {_lines(names)}
  </g>
</svg>
"""


def _arrow(start: tuple[int, int], end: tuple[int, int], *, dashed: bool) -> str:
    """A line from the lower edge of a box to the upper edge of another, or the other way up."""
    down = end[1] > start[1]
    edge = HEIGHT / 2 if down else -HEIGHT / 2
    # arrows leave and arrive a little apart from each other
    lean = max(-1.0, min(1.0, (end[0] - start[0]) / 240)) * WIDTH * 0.36
    side = 0 if down else 14
    x0, y0 = start[0] + lean + side, start[1] + edge
    x1, y1 = end[0] - lean + side, end[1] - edge
    length = hypot(x1 - x0, y1 - y0)
    # the tip ends just before the box
    x1, y1 = x1 - 2 * (x1 - x0) / length, y1 - 2 * (y1 - y0) / length
    style = ' stroke-dasharray="5 4"' if dashed else ""
    return f'<path d="M{x0:.0f} {y0:.0f} L{x1:.0f} {y1:.0f}"{style}/>'


def _lines(elements: list[str]) -> str:
    return "\n    ".join(elements)


if __name__ == "__main__":
    table = tomllib.loads((HERE / "rooms.toml").read_text())
    (HERE / "rooms.svg").write_text(draw(table))
