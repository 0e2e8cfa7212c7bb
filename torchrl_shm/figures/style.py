"""How all figures look: sizes, colors, labels at curves.

SHM has the same strong color everywhere. Up to five others are highlighted in muted ones, and what
remains is light gray. Figures are narrow enough that their text can be read on a phone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

SHM = "#c2185b"
"""The color of SHM, and of what is shown alone."""

WIDTH = 5.0
"""Inches: with text of 8.5 points or more, legible on a screen of 390 pixels."""

DPI = 150
TEXT, TITLE, SMALL = 9.0, 10.0, 8.5
# muted, so that they stay behind
_OTHERS = {
    "gru": "#5b7fb3", "lstm": "#7a9e7e", "ffm": "#b08d57", "lru": "#8a7ba8", "mlp": "#7f7f7f",
}  # fmt: skip
_MUTED = ("#5b7fb3", "#7a9e7e", "#b08d57", "#8a7ba8", "#6fa3a8")
_REST = "#c4c4c4"
_HIGHLIGHTED = 6
# what tells the check of the site how small the text is
_KEY = "Smallest text"


class Line(NamedTuple):
    """How the line of a memory is drawn.

    Attributes:
        color: of the line, its band and its label.
        width: in points.
        zorder: what is highlighted lies above the rest, and SHM above all.
        label: whether its name stands at the curve.
    """

    color: str
    width: float
    zorder: float
    label: bool


def new_figure(height: float) -> Any:
    """Make an empty figure of the common width.

    Args:
        height: in inches.

    Returns:
        The figure.
    """
    # not pyplot, which keeps global state and looks for a display
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH, height), layout="constrained")


def dress(axes: Any) -> None:
    """Give axes the common grid, frame and sizes of text."""
    axes.grid(alpha=0.3, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=SMALL)
    axes.title.set_fontsize(TITLE)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_fontsize(TEXT)


def choose_lines(names: Sequence[str]) -> dict[str, Line]:
    """Choose how each memory is drawn: SHM, up to five more, and the rest in light gray.

    Args:
        names: memories, the most important first; what follows a space, as the name of an
            algorithm, is no part of the memory's name.

    Returns:
        A line for each name.
    """
    shm = [name for name in names if name.split()[0] == "shm"]
    # no memory at all is what the others are compared with
    base = [name for name in names if name.split()[0] == "mlp"]
    others = [name for name in names if name not in (*shm, *base)]
    chosen = [*base, *others][: max(0, _HIGHLIGHTED - len(shm))]
    own = {_OTHERS[name.split()[0]] for name in chosen if name.split()[0] in _OTHERS}
    free = [color for color in _MUTED if color not in own]
    lines: dict[str, Line] = {}
    for name in names:
        kind = name.split()[0]
        if name in shm:
            lines[name] = Line(SHM, 2.2, 4, True)
        elif name in chosen:
            color = _OTHERS.get(kind) or (free.pop(0) if free else _REST)
            lines[name] = Line(color, 1.4, 3, True)
        else:
            lines[name] = Line(_REST, 0.9, 2, False)
    return lines


def label_curves(
    axes: Any, ends: Mapping[str, float], lines: Mapping[str, Line], at: float | None = None
) -> None:
    """Write names at the right ends of curves, moved apart where they would overlap.

    Args:
        axes: with all curves drawn and their limits set.
        ends: height of the end of each curve, in units of the data.
        lines: how each is drawn; those without a label are left out.
        at: where the names begin, in units of the data; without, right of the axes.
    """
    shown = sorted((y, name) for name, y in ends.items() if lines[name].label and y == y)
    if not shown:
        return
    axes.figure.draw_without_rendering()
    height = axes.get_window_extent().height * 72 / axes.figure.dpi
    gap = 1.15 * SMALL / height
    low, high = axes.get_ylim()
    places = [(y - low) / (high - low) for y, _ in shown]
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + gap)
    # those that were pushed out at the top come back, and push the ones below
    places[-1] = min(places[-1], max(1.0, gap * (len(places) - 1)))
    for i in reversed(range(len(places) - 1)):
        places[i] = min(places[i], places[i + 1] - gap)
    beside = "axes fraction" if at is None else "data"
    for (_, name), place in zip(shown, places, strict=True):
        axes.annotate(
            name, (1.02 if at is None else at, place), xycoords=(beside, "axes fraction"),
            va="center", fontsize=SMALL, color=lines[name].color, annotation_clip=False,
            # where another curve goes on behind it
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5},
            zorder=10,
        )  # fmt: skip


def save(figure: Any, path: str | Path) -> None:
    """Write a figure; a PNG also tells the size of its smallest text, in pixels.

    Args:
        figure: a figure of matplotlib.
        path: file to write; its ending chooses the format.
    """
    from matplotlib.text import Text

    figure.draw_without_rendering()
    # everything is in its place now, and is not moved once more
    figure.set_layout_engine("none")
    texts = figure.findobj(lambda x: isinstance(x, Text) and x.get_visible() and x.get_text())
    sizes = [text.get_fontsize() * DPI / 72 for text in texts]
    png = str(path).endswith(".png")
    metadata = {_KEY: f"{min(sizes):.1f}" if sizes else "none"} if png else None
    figure.savefig(path, dpi=DPI, metadata=metadata)
