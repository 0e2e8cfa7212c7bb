"""Pictures of an episode, one per step: a path in the plane, numbers over time, a memory."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from matplotlib import colormaps
from PIL import Image, ImageDraw
from torch import Tensor

HEIGHT = 240
# drawn three times as large and then made smaller: Pillow's lines have no smooth edges
_ZOOM = 3
_LARGE = HEIGHT * _ZOOM
_EPISODE_COLORS = ("#1f77b4", "#9467bd", "#d62728", "#8c564b", "#e377c2", "#7f7f7f")
_GOAL, _WIND, _GRID = "#ff7f0e", "#2ca02c", "#dddddd"
# steps that stand beside each other, pixels of each, and the height of a name
_HISTORY, _STEP, _LABEL = 40, 9, 14


def draw_paths(
    positions: Tensor,
    *,
    goal: Tensor,
    goal_radius: float,
    wind: Tensor | None = None,
    max_steps: int | None = None,
) -> Tensor:
    """Draw the path so far, after each step.

    Args:
        positions: positions at the start and after each step, `[T + 1, 2]`.
        goal: centre of the goal, `[2]`.
        goal_radius: radius of the goal; a circle that is too small to be seen is drawn larger.
        wind: displacement per step, `[2]`, drawn as an arrow of five steps.
        max_steps: steps of each of the episodes that the T steps are made of; the first position
            that is seen of an episode is not connected with the last one of the episode before.

    Returns:
        uint8 of shape `[T + 1, 240, 240, 3]`.
    """
    xy = positions.double()
    marks = [goal.double() - goal_radius, goal.double() + goal_radius]
    if wind is not None:
        marks.append(xy[0] + 5 * wind.double())
    shown = torch.cat([xy, torch.stack(marks)])
    shown = shown[shown.isfinite().all(-1)]
    low, high = shown.amin(0), shown.amax(0)
    # a square around all of it, with a margin
    half = 1.1 * max(0.1, float((high - low).max()) / 2)
    corner = (low + high) / 2 - half
    scale = _LARGE / (2 * half)

    def pixel(point: Tensor) -> tuple[float, float]:
        x, y = ((point.double() - corner) * scale).tolist()
        # the second axis of a picture points down
        return x, _LARGE - y

    board = Image.new("RGB", (_LARGE, _LARGE), "white")
    draw = ImageDraw.Draw(board)
    for axis in (0, 1):
        first = math.ceil(float(corner[axis]) * 2)
        for line in range(first, math.floor((float(corner[axis]) + 2 * half) * 2) + 1):
            along = pixel(torch.full((2,), line / 2))[axis]
            across = [(along, 0), (along, _LARGE)] if axis == 0 else [(0, along), (_LARGE, along)]
            # the axes themselves are wider than the lines at every half
            draw.line(across, fill=_GRID, width=6 if line == 0 else 3)
    x, y = pixel(goal)
    _circle(draw, (x, y), 6, fill=_GOAL)
    # a goal of a pixel or two has to be seen, too
    _circle(draw, (x, y), max(goal_radius * scale, 18), outline=_GOAL, width=4)
    if wind is not None:
        _arrow(draw, pixel(xy[0]), pixel(xy[0] + 5 * wind.double()))

    frames: list[Tensor] = []
    seen = xy.isfinite().all(-1).tolist()
    for step, point in enumerate(xy):
        episode = 0 if max_steps is None else max(step - 1, 0) // max_steps
        color = _EPISODE_COLORS[episode % len(_EPISODE_COLORS)]
        starts = step == 0 or (max_steps is not None and step > 1 and (step - 1) % max_steps == 0)
        if seen[step]:
            if not starts and seen[step - 1]:
                draw.line([pixel(xy[step - 1]), pixel(point)], fill=color, width=4)
            _circle(draw, pixel(point), 9 if starts else 5, fill="black" if starts else color)
        picture = board.copy()
        if seen[step]:
            _circle(ImageDraw.Draw(picture), pixel(point), 14, fill=color, outline="black", width=3)
        frames.append(_tensor(picture.resize((HEIGHT, HEIGHT), Image.Resampling.BOX)))
    return torch.stack(frames)


def draw_series(parts: dict[str, Tensor]) -> Tensor:
    """Draw numbers of the last 40 steps below each other, a column per step, after each step.

    Blue is positive, red negative; each number is scaled by its largest absolute value.

    Args:
        parts: numbers by name, each `[T + 1, N]` with an N of its own.

    Returns:
        uint8 of shape `[T + 1, 240, 360, 3]`.
    """
    rows = sum(part.shape[1] for part in parts.values())
    space = HEIGHT - _LABEL * len(parts)
    # what is small stays visible, and what is largest takes the rest
    heights = {name: max(12, space * part.shape[1] // rows) for name, part in parts.items()}
    largest = max(heights, key=lambda name: heights[name])
    heights[largest] += space - sum(heights.values())
    width = _HISTORY * _STEP
    strips: dict[str, Tensor] = {}
    for name, part in parts.items():
        limit = part.abs().nan_to_num(0).amax(0).clamp(min=1e-12)
        strips[name] = _color((part.nan_to_num(0) / limit).clamp(-1, 1)).transpose(0, 1)

    frames: list[Tensor] = []
    for step in range(len(next(iter(parts.values())))):
        picture = Image.new("RGB", (width, HEIGHT), "white")
        draw = ImageDraw.Draw(picture)
        top = 0
        for name, strip in strips.items():
            draw.text((2, top + 1), name, fill="black")
            recent = Image.fromarray(
                strip[:, max(0, step + 1 - _HISTORY) : step + 1].contiguous().numpy()
            )
            # rows that are more than there are pixels are averaged
            many = recent.height > heights[name]
            way = Image.Resampling.BOX if many else Image.Resampling.NEAREST
            recent = recent.resize((recent.width * _STEP, heights[name]), way)
            picture.paste(recent, (width - recent.width, top + _LABEL))
            top += _LABEL + heights[name]
        frames.append(_tensor(picture))
    return torch.stack(frames)


def as_matrix(states: Sequence[Tensor]) -> Tensor:
    """Make a matrix of what one agent remembers.

    Args:
        states: floats `[T, ...]`, the states of a memory.

    Returns:
        A state of two dimensions, `[T, H, W]`, as it is, unless one side is more than four times
        the other; anything else row by row, in a matrix as near to a square as its size allows,
        filled up with NaN.
    """
    if len(states) == 1 and states[0].ndim == 3:
        height, width = states[0].shape[1:]
        if max(height, width) <= 4 * min(height, width):
            return states[0]
    flat = torch.cat([state.flatten(1) for state in states], 1)
    width = math.ceil(math.sqrt(flat.shape[1]))
    height = math.ceil(flat.shape[1] / width)
    padding = (0, height * width - flat.shape[1])
    return torch.nn.functional.pad(flat, padding, value=math.nan).unflatten(1, (height, width))


def draw_matrices(matrices: Tensor) -> Tensor:
    """Colour matrices `[T, H, W]`: blue is positive, red negative, uint8 of `[T, H, W, 3]`.

    The colours are saturated at the 99th percentile of all absolute values.
    """
    # the largest values of a memory are far beyond all others
    flat = matrices[matrices.isfinite()].abs().double()
    limit = float(flat.kthvalue(max(1, int(0.99 * len(flat)))).values) if len(flat) else 1.0
    return _color((matrices / (limit or 1.0)).clamp(-1, 1))


def _color(values: Tensor) -> Tensor:
    """Map [-1, 1] to red, white, blue; NaN is white."""
    coloured = colormaps["RdBu"]((values.nan_to_num(0) / 2 + 0.5).numpy(), bytes=True)
    pixels = torch.from_numpy(coloured)[..., :3]
    return torch.where(values.isnan().unsqueeze(-1), torch.full_like(pixels, 255), pixels)


def _tensor(picture: Image.Image) -> Tensor:
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return pixels.view(picture.height, picture.width, 3)


def _circle(
    draw: ImageDraw.ImageDraw,
    center: tuple[float, float],
    radius: float,
    *,
    fill: str | None = None,
    outline: str | None = None,
    width: int = 1,
) -> None:
    x, y = center
    box = (x - radius, y - radius, x + radius, y + radius)
    draw.ellipse(box, fill=fill, outline=outline, width=width)


def _arrow(draw: ImageDraw.ImageDraw, start: tuple[float, float], tip: tuple[float, float]) -> None:
    draw.line([start, tip], fill=_WIND, width=5)
    angle = math.atan2(tip[1] - start[1], tip[0] - start[0])
    sides = [
        (tip[0] - 24 * math.cos(angle + side), tip[1] - 24 * math.sin(angle + side))
        for side in (-0.4, 0.4)
    ]
    draw.polygon([tip, *sides], fill=_WIND)
