"""Pictures of an episode, one per step: a path in the plane, numbers over time, a memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from torchrl_shm.envs.contract import Plane
from torchrl_shm.envs.drawing import Canvas, Point, to_pixels

HEIGHT = 240
_EPISODE_COLORS = ("#1f77b4", "#9467bd", "#d62728", "#8c564b", "#e377c2", "#7f7f7f")
_GOAL, _DRIFT, _GRID = "#ff7f0e", "#2ca02c", "#dddddd"
# steps that stand beside each other, pixels of each, and the height of a line of text
_HISTORY, _STEP, _LABEL = 40, 9, 14
# colors of a matrix from 0 to its largest value
_SHADES = 16
# from -1 to 1, ColorBrewer's RdBu
_RED_WHITE_BLUE = (
    (103, 0, 31), (178, 24, 43), (214, 96, 77), (244, 165, 130), (253, 219, 199), (247, 247, 247),
    (209, 229, 240), (146, 197, 222), (67, 147, 195), (33, 102, 172), (5, 48, 97),
)  # fmt: skip


def draw_path(positions: Tensor, plane: Plane) -> Tensor:
    """Draw the path so far, after each step.

    The drift is an arrow as long as five steps of it. A goal that is too small to be seen has a
    larger circle around it. Positions beyond `plane.max_steps` begin another path, from the first
    position that is seen of it.

    Args:
        positions: positions at the start and after each step, `[T + 1, 2]`.
        plane: the task of the first environment is drawn.

    Returns:
        uint8 of shape `[T + 1, 240, 240, 3]`.
    """
    xy, goal = positions.double(), plane.goal[0].cpu().double()
    radius, max_steps = plane.goal_radius, plane.max_steps
    tip = None if plane.drift is None else xy[0] + 5 * plane.drift[0].cpu().double()
    shown = [xy, torch.stack([goal - radius, goal + radius])]
    shown = torch.cat(shown if tip is None else [*shown, tip.unsqueeze(0)])
    shown = shown[shown.isfinite().all(-1)]
    low, high = shown.amin(0), shown.amax(0)
    # a square around all of it, with a margin
    half = 1.1 * max(0.1, float((high - low).max()) / 2)
    corner = (low + high) / 2 - half
    scale = HEIGHT / (2 * half)

    def pixel(point: Tensor) -> Point:
        x, y = ((point - corner) * scale).tolist()
        # the second axis of a picture points down
        return x, HEIGHT - y

    board = Canvas(HEIGHT, HEIGHT)
    for axis in (0, 1):
        first = math.ceil(float(corner[axis]) * 2)
        for line in range(first, math.floor((float(corner[axis]) + 2 * half) * 2) + 1):
            along = pixel(torch.full((2,), line / 2).double())[axis]
            start, end = (along, 0), (along, HEIGHT)
            if axis == 1:
                start, end = (0, along), (HEIGHT, along)
            # the axes themselves are wider than the lines at every half
            board.line(start, end, _GRID, width=2 if line == 0 else 1)
    board.disc(pixel(goal), 2, fill=_GOAL)
    board.disc(pixel(goal), max(radius * scale, 6), outline=_GOAL, width=4 / 3)
    if tip is not None:
        board.arrow(pixel(xy[0]), pixel(tip), _DRIFT)

    frames: list[Tensor] = []
    seen = xy.isfinite().all(-1).tolist()
    for step, point in enumerate(xy):
        color = _EPISODE_COLORS[max(step - 1, 0) // max_steps % len(_EPISODE_COLORS)]
        starts = step == 0 or (step > 1 and (step - 1) % max_steps == 0)
        if seen[step]:
            if not starts and seen[step - 1]:
                board.line(pixel(xy[step - 1]), pixel(point), color, width=4 / 3)
            board.disc(pixel(point), 3 if starts else 5 / 3, fill="black" if starts else color)
        picture = board.copy()
        if seen[step]:
            picture.disc(pixel(point), 14 / 3, fill=color, outline="black", width=1)
        frames.append(picture.pixels())
    return torch.stack(frames)


def draw_series(parts: Mapping[str, Tensor]) -> Tensor:
    """Draw numbers of the last 40 steps below each other, a column per step, after each step.

    Blue is positive, red negative; each number is scaled by its largest absolute value.

    Args:
        parts: numbers by name, each `[T + 1, N]` with an N of its own.

    Returns:
        uint8 of shape `[T + 1, 240, 360, 3]`.
    """
    from PIL import Image, ImageDraw

    rows = sum(part.shape[1] for part in parts.values())
    space = HEIGHT - _LABEL * (len(parts) + 1)
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
            count = len(strip)
            draw.text((2, top + 1), name if count == 1 else f"{name}: {count} numbers", "black")
            recent = Image.fromarray(
                strip[:, max(0, step + 1 - _HISTORY) : step + 1].contiguous().numpy()
            )
            # more rows than pixels are averaged
            way = Image.Resampling.BOX if count > heights[name] else Image.Resampling.NEAREST
            recent = recent.resize((recent.width * _STEP, heights[name]), way)
            picture.paste(recent, (width - recent.width, top + _LABEL))
            top += _LABEL + heights[name]
        note = f"blue: positive, red: negative; the last {_HISTORY} steps, now at the right"
        draw.text((width - 2, top + _LABEL / 2), note, "#777777", anchor="rm")
        frames.append(to_pixels(picture))
    return torch.stack(frames)


def as_matrix(states: Sequence[Tensor]) -> Tensor:
    """Make a matrix of what one agent remembers.

    Args:
        states: floats `[T, ...]`, the states of a memory.

    Returns:
        A single state `[T, H, W]` as it is, unless one side is more than four times the other.
        All others are flattened into a matrix that is as near to a square as possible, and filled
        up with NaN.
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
    """Color matrices `[T, H, W]`: blue is positive, red negative, uint8 of `[T, H, W, 3]`.

    The colors are saturated at the 99th percentile of all absolute values.
    """
    # the largest values of a memory are far beyond all others
    flat = matrices[matrices.isfinite()].abs().double()
    limit = float(flat.kthvalue(max(1, int(0.99 * len(flat)))).values) if len(flat) else 1.0
    # of so many shades an eye sees no step, and a file of them is a fraction of the size
    return _color((matrices / (limit or 1.0)).clamp(-1, 1).mul(_SHADES).round() / _SHADES)


def _color(values: Tensor) -> Tensor:
    """Map [-1, 1] to red, white, blue; NaN is white."""
    colors = torch.tensor(_RED_WHITE_BLUE, dtype=torch.float32)
    place = (values.nan_to_num(0).float() + 1) * (len(colors) - 1) / 2
    below = place.long().clamp(0, len(colors) - 2)
    mixed = torch.lerp(colors[below], colors[below + 1], (place - below).unsqueeze(-1))
    return mixed.masked_fill(values.isnan().unsqueeze(-1), 255).round().to(torch.uint8)
