"""Situations of the tasks on a board of cells: their rules in plain Python, tabulated once.

Apart from the apples and the clock, an episode is in one of a few thousand situations. The rules
are written for one of them; a step of a whole batch looks tables up.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

Cell = tuple[int, int]

ROWS, COLUMNS, PHASES, ACTIONS = 7, 11, 3, 4
# what is seen to each side of the player
MARGIN = 2
VIEW = 2 * MARGIN + 1
# north, south, west, east
_MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))

BLANK, WALL, PLAYER, APPLE, KEY, DOOR, INDICATOR, RED, GREEN, BLUE = range(10)
_COLORS = (
    (204, 204, 204), (25, 25, 25), (228, 148, 109), (140, 178, 0), (159, 81, 44),
    (134, 206, 235), (255, 255, 255), (255, 0, 0), (0, 255, 0), (0, 0, 255),
)  # fmt: skip


def find(room: tuple[str, ...], mark: str) -> tuple[Cell, ...]:
    """Cells of a drawn room that bear a mark, row by row."""
    return tuple((i, j) for i, row in enumerate(room) for j, x in enumerate(row) if x == mark)


_APPLE_ROOM = (
    "###########",
    "#a.a.a.a.a#",
    "#.a.a.a.a.#",
    "#a.a.a.a.a#",
    "#.a.a.a.a.#",
    "#a.a.+.a.a#",
    "###########",
)
APPLE_CELLS = find(_APPLE_ROOM, "a")
APPLE_ROOM_WALLS = frozenset(find(_APPLE_ROOM, "#"))
APPLE_ROOM_START = find(_APPLE_ROOM, "+")[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Situation(ABC):
    """One environment, apart from its apples and its clock.

    Attributes:
        phase: 0, 1 or 2.
        player: row and column of the player.
        success: the final reward was paid.
    """

    phase: int
    player: Cell
    success: bool = False

    @abstractmethod
    def walls(self) -> frozenset[Cell]:
        """Cells that the player cannot enter, drawn as wall unless something lies on them."""

    @abstractmethod
    def objects(self) -> list[tuple[Cell, int]]:
        """What is drawn on the walls and the ground, the player included, the topmost last."""

    @abstractmethod
    def arrive(self, player: Cell) -> Situation:
        """What it comes to that the player, having moved or not, is now at a cell."""

    @abstractmethod
    def follow(self) -> Situation:
        """How the next phase starts when this one ends here; the last phase stays as it is."""

    def move(self, action: int) -> Situation:
        """Play an action; walls and the edge of the board stop the player."""
        row, column = (x + d for x, d in zip(self.player, _MOVES[action], strict=True))
        inside = 0 <= row < ROWS and 0 <= column < COLUMNS
        free = inside and (row, column) not in self.walls()
        return self.arrive((row, column) if free else self.player)


@dataclasses.dataclass(frozen=True)
class Tables:
    """All situations that can come to pass, numbered from 0 to N - 1; starts are the first.

    Attributes:
        after: situation after each action, int64 of shape `[N * 4]`.
        pays: 1 where an action leads to the final reward, float32 of shape `[N * 4]`.
        follows: situation in which the next phase starts, int64 of shape `[N]`.
        success: bool of shape `[N]`.
        phase: int64 of shape `[N]`.
        player: row and column, int64 of shape `[N, 2]`.
        board: number of what is drawn, without apples, int64 of shape `[N, 7, 11]`.
        view: what the agent sees, without apples, uint8 or float32 of shape `[N, 3, 25]`.
        apple_here: number of the place for an apple below the player, of `A` = 22 places; `A` where
            there is none; int64 of shape `[N, 1]`.
        apples_in_view: the same for the cells that the agent sees, int64 of shape `[N, 25]`.
    """

    after: Tensor
    pays: Tensor
    follows: Tensor
    success: Tensor
    phase: Tensor
    player: Tensor
    board: Tensor
    view: Tensor
    apple_here: Tensor
    apples_in_view: Tensor

    def to(self, device: torch.device) -> Self:
        """Copy to a device."""
        tensors = {name: tensor.to(device) for name, tensor in vars(self).items()}
        return dataclasses.replace(self, **tensors)


def tabulate(starts: Iterable[Situation]) -> Tables:
    """Number all situations that can follow from the given ones, and look each of them up once."""
    numbers = {start: number for number, start in enumerate(starts)}
    situations = list(numbers)

    def number(situation: Situation) -> int:
        if situation not in numbers:
            numbers[situation] = len(situations)
            situations.append(situation)
        return numbers[situation]

    after: list[int] = []
    follows: list[int] = []
    # grows while it is read
    for situation in situations:
        after.extend(number(situation.move(action)) for action in range(ACTIONS))
        follows.append(number(situation.follow()))

    success = np.array([situation.success for situation in situations])
    phase = np.array([situation.phase for situation in situations])
    player = np.array([situation.player for situation in situations])
    board = np.full((len(situations), ROWS, COLUMNS), BLANK)
    for picture, situation in zip(board, situations, strict=True):
        for cell in situation.walls():
            picture[cell] = WALL
        for cell, thing in situation.objects():
            picture[cell] = thing

    places = np.full((ROWS, COLUMNS), len(APPLE_CELLS))
    for place, cell in enumerate(APPLE_CELLS):
        places[cell] = place
    outside = np.full_like(board, len(APPLE_CELLS))
    apples = np.where(phase[:, None, None] == 1, places, outside)
    apples_in_view = _crop(apples, player, fill=len(APPLE_CELLS))
    apple_here = apples_in_view[:, VIEW**2 // 2, None].copy()
    # the player is drawn above
    apples_in_view[:, VIEW**2 // 2] = len(APPLE_CELLS)

    edges = np.array(after)
    return Tables(
        after=torch.from_numpy(edges),
        pays=torch.from_numpy(success[edges] & ~success.repeat(ACTIONS)).float(),
        follows=torch.tensor(follows),
        success=torch.from_numpy(success),
        phase=torch.from_numpy(phase),
        player=torch.from_numpy(player),
        board=torch.from_numpy(board),
        view=colors()[torch.from_numpy(_crop(board, player, fill=BLANK))].mT.contiguous(),
        apple_here=torch.from_numpy(apple_here),
        apples_in_view=torch.from_numpy(apples_in_view),
    )


def _crop(boards: np.ndarray[Any, Any], player: np.ndarray[Any, Any], fill: int) -> Any:
    """Cut the view around the player out of each board; `[N, 7, 11]` to `[N, 25]`."""
    margins = ((0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN))
    padded = np.pad(boards, margins, constant_values=fill)
    offsets = np.arange(VIEW)
    rows = player[:, 0, None, None] + offsets[:, None]
    columns = player[:, 1, None, None] + offsets
    views = padded[np.arange(len(boards))[:, None, None], rows, columns]
    return views.reshape(len(boards), -1)


def colors() -> Tensor:
    """Red, green and blue of all that can be drawn, by its number; uint8 of shape `[10, 3]`."""
    return torch.tensor(_COLORS, dtype=torch.uint8)
