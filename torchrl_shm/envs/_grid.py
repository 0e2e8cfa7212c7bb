"""What Key-to-Door and Visual Match share: three rooms, apples in the middle one, a 5 by 5 view.

Apart from the apples and the clock, an episode is in one of a few thousand situations. The rules
are written for one situation, in plain Python, and tabulated once; a step looks tables up.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, Literal, Self, get_args

import numpy as np
import torch
from torch import Tensor
from torchrl.data import Binary, Bounded, Categorical, TensorSpec, Unbounded

from torchrl_shm.envs._base import BatchedEnv, Entry, State, Transition

Cell = tuple[int, int]
Dtype = Literal["uint8", "float32"]

ROWS, COLUMNS, PHASES, ACTIONS = 7, 11, 3, 4
# what is seen to each side of the player
_MARGIN = 2
_VIEW = 2 * _MARGIN + 1
# north, south, west, east
_MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))
_NEVER = 2**62

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
    apple_here = apples_in_view[:, _VIEW**2 // 2, None].copy()
    # the player is drawn above
    apples_in_view[:, _VIEW**2 // 2] = len(APPLE_CELLS)

    edges = np.array(after)
    tables = Tables(
        after=torch.from_numpy(edges),
        pays=torch.from_numpy(success[edges] & ~success.repeat(ACTIONS)).float(),
        follows=torch.tensor(follows),
        success=torch.from_numpy(success),
        phase=torch.from_numpy(phase),
        player=torch.from_numpy(player),
        board=torch.from_numpy(board),
        view=_colors()[torch.from_numpy(_crop(board, player, fill=BLANK))].mT.contiguous(),
        apple_here=torch.from_numpy(apple_here),
        apples_in_view=torch.from_numpy(apples_in_view),
    )
    return tables


def _crop(boards: np.ndarray[Any, Any], player: np.ndarray[Any, Any], fill: int) -> Any:
    """Cut the view around the player out of each board; `[N, 7, 11]` to `[N, 25]`."""
    margins = ((0, 0), (_MARGIN, _MARGIN), (_MARGIN, _MARGIN))
    padded = np.pad(boards, margins, constant_values=fill)
    offsets = np.arange(_VIEW)
    rows = player[:, 0, None, None] + offsets[:, None]
    columns = player[:, 1, None, None] + offsets
    views = padded[np.arange(len(boards))[:, None, None], rows, columns]
    return views.reshape(len(boards), -1)


def _colors() -> Tensor:
    return torch.tensor(_COLORS, dtype=torch.uint8)


class GridEnv(BatchedEnv):
    """Three rooms of fixed durations, one after the other; a subclass says what is in them.

    Args:
        tables: all situations; those in which episodes start come first.
        num_envs: number of environments B; `None` is 64.
        frames: number of steps in each of the three rooms.
        final_reward: reward of the last room.
        num_apples: number of apples in the second room.
        apple_reward: reward of an apple.
        respawn_every: number of steps after which an eaten apple is back in the next one; 0: never.
        image: emit `observation` as `[B, 3, 5, 5]` instead of `[B, 75]`.
        dtype: `"uint8"` from 0 to 255, or `"float32"` from 0 to 1.
        seed: seed of the environment's generator.
        device: device of all tensors.
    """

    _tensors = ("_tables", "_apple_color", "_apple_cells", "_one_hot")

    def __init__(
        self,
        tables: Tables,
        num_envs: int | None,
        *,
        frames: tuple[int, int, int],
        final_reward: float,
        num_apples: int,
        apple_reward: float,
        respawn_every: int,
        image: bool,
        dtype: Dtype,
        seed: int | None,
        device: torch.device | str | int,
    ) -> None:
        if len(frames) != PHASES or min(frames) < 1:
            raise ValueError(
                f"frames must be {PHASES} numbers of steps, each at least 1, got {tuple(frames)}"
            )
        if not 0 < final_reward < math.inf:
            raise ValueError(f"final_reward must be finite and positive, got {final_reward}")
        if not 0 <= num_apples <= len(APPLE_CELLS):
            raise ValueError(
                f"num_apples must be 0 to {len(APPLE_CELLS)}, the number of places for apples, "
                f"got {num_apples}"
            )
        if not 0 <= apple_reward < math.inf:
            raise ValueError(f"apple_reward must be finite and not negative, got {apple_reward}")
        if respawn_every < 0:
            raise ValueError(
                "respawn_every must be a number of steps, or 0 for apples that never come back, "
                f"got {respawn_every}"
            )
        if dtype not in get_args(Dtype):
            raise ValueError(f"dtype must be one of {get_args(Dtype)}, got {dtype!r}")

        super().__init__(64 if num_envs is None else num_envs, device)
        self.frames = (frames[0], frames[1], frames[2])
        self.max_steps = sum(frames)
        self.final_reward = final_reward
        self.num_apples = num_apples
        self.apple_reward = apple_reward
        self.respawn_every = respawn_every
        self.image = image
        self.dtype_name: Dtype = dtype

        view, apple = tables.view, _colors()[APPLE].unsqueeze(-1)
        if dtype == "float32":
            view, apple = view.float() / 255, apple.float() / 255
        tables = dataclasses.replace(tables, view=view, pays=tables.pays * final_reward)
        self._tables = tables.to(self.device)
        self._apple_color = apple.to(self.device)
        rows, columns = torch.tensor(APPLE_CELLS).unbind(-1)
        self._apple_cells = (rows * COLUMNS + columns).to(self.device)
        self._one_hot = torch.eye(ACTIONS, dtype=torch.float32, device=self.device)

        batch = self.batch_size
        options: dict[str, Any] = {"dtype": torch.float32, "device": self.device}
        shape = (3, _VIEW, _VIEW) if image else (3 * _VIEW**2,)
        seen = {"dtype": apple.dtype, "device": self.device, "shape": (*batch, *shape)}
        high = 1 if dtype == "float32" else 255
        observation: dict[str, TensorSpec] = {
            "observation": Bounded(0, high, **seen),  # pyright: ignore[reportArgumentType]
            "previous_action": Bounded(0, 1, shape=torch.Size((*batch, ACTIONS)), **options),
            "previous_reward": Unbounded(torch.Size((*batch, 1)), **options),
            "success": Binary(shape=torch.Size((*batch, 1)), dtype=torch.bool, device=self.device),
        }
        action = Categorical(ACTIONS, shape=batch, dtype=torch.int64, device=self.device)
        self._set_up(observation, action, (0, max(apple_reward, final_reward)), seed)

    @abstractmethod
    def _start_number(self, layout: State) -> Tensor:
        """Number of the situation in which episodes start, int64 of shape `[B]`."""

    @property
    def phase(self) -> Tensor:
        """Rooms in which the running episodes are, 0 to 2, int64 of shape `[B]`."""
        return self._tables.phase[self._running()["situation"]]

    @property
    def player(self) -> Tensor:
        """Rows and columns of the players, int64 of shape `[B, 2]`; hidden from the agent."""
        return self._tables.player[self._running()["situation"]]

    @property
    def apples(self) -> Tensor:
        """Where apples lie, bool of shape `[B, 7, 11]`; hidden from the agent."""
        state = self._running()
        ripe = (state["ripe_at"] <= state["step_count"])[:, :-1]
        return self._apple_board(ripe & (self.phase == 1).unsqueeze(-1))

    def render(self, index: int = 0, scale: int = 16) -> Tensor:
        """Draw the whole board of one environment; what the agent does not see is darker.

        Args:
            index: which of the environments.
            scale: height and width of a cell in pixels.

        Returns:
            uint8 of shape `[7 * scale, 11 * scale, 3]`, on the CPU.
        """
        situation = int(self._running()["situation"][index])
        board = self._tables.board[situation].cpu()
        hidden = self.apples[index].cpu() & (board != PLAYER)
        picture = _colors()[board.masked_fill(hidden, APPLE)]
        row, column = self.player[index].tolist()
        seen = torch.zeros(ROWS, COLUMNS, 1, dtype=torch.bool)
        seen[
            max(row - _MARGIN, 0) : row + _MARGIN + 1,
            max(column - _MARGIN, 0) : column + _MARGIN + 1,
        ] = True
        picture = torch.where(seen, picture, picture // 2)
        return picture.repeat_interleave(scale, 0).repeat_interleave(scale, 1)

    def _layout(self) -> dict[str, Entry]:
        return {
            "player": Entry((2,), torch.int64),
            "apples": Entry((ROWS, COLUMNS), torch.bool),
        }

    def _draw(self, count: int) -> State:
        options: dict[str, Any] = {"generator": self._generator, "device": self.device}
        # the places where a random permutation is below n are a random set of n places
        order = torch.rand(count, len(APPLE_CELLS), **options).argsort(-1)
        return {"apples": self._apple_board(order < self.num_apples)}

    def _apple_board(self, apples: Tensor) -> Tensor:
        """Put apples, given by place as `[B, 22]`, on boards `[B, 7, 11]`."""
        board = apples.new_zeros(len(apples), ROWS * COLUMNS)
        return board.index_copy(1, self._apple_cells, apples).unflatten(-1, (ROWS, COLUMNS))

    def _draw_cells(self, cells: Tensor, count: int) -> Tensor:
        """Draw one of the cells `[C, 2]` for each of `count` environments."""
        options: dict[str, Any] = {"generator": self._generator, "device": self.device}
        return cells[torch.randint(len(cells), (count,), **options)]

    def _check_layout(self, layout: State) -> None:
        apples = layout["apples"].clone().flatten(1)
        apples[:, self._apple_cells] = False
        if apples.any():
            environment, cell = apples.nonzero()[0].tolist()
            raise ValueError(
                f'"apples" of environment {environment} has one at {divmod(cell, COLUMNS)}, where '
                f"apples never lie; their places are {APPLE_CELLS}"
            )

    def _start(self, layout: State) -> State:
        apples = layout["apples"].flatten(1)[:, self._apple_cells]
        absent = torch.zeros_like(apples[:, :1])
        # by the clock of the episode; the last column stands for no place at all
        present = torch.cat([apples, absent], -1)
        ripe_at = torch.full_like(present, _NEVER, dtype=torch.int64)
        reward = torch.zeros_like(absent, dtype=torch.float32)
        return {
            "situation": self._start_number(layout),
            "ripe_at": ripe_at.masked_fill(present, self.frames[0]),
            "step_count": absent.to(torch.int64),
            "previous_action": reward.repeat(1, ACTIONS),
            "previous_reward": reward,
        }

    def _advance(self, state: State, action: Tensor) -> Transition:
        tables, step_count = self._tables, state["step_count"] + 1
        edge = state["situation"] * ACTIONS + action
        situation = tables.after[edge]

        # an apple that appears below the player is eaten one step later
        place = tables.apple_here[situation]
        ripe_at = state["ripe_at"].gather(-1, place)
        eaten = ripe_at < step_count
        back = step_count + (self.respawn_every + 1) if self.respawn_every else _NEVER
        reward = tables.pays[edge].unsqueeze(-1).add(eaten, alpha=self.apple_reward)

        first, second = self.frames[0], self.frames[0] + self.frames[1]
        over = ((step_count == first) | (step_count == second)).squeeze(-1)
        new = {
            "situation": torch.where(over, tables.follows[situation], situation),
            "ripe_at": state["ripe_at"].scatter(-1, place, torch.where(eaten, back, ripe_at)),
            "step_count": step_count,
            "previous_action": self._one_hot[action],
            "previous_reward": reward,
        }
        return Transition(new, reward, step_count >= self.max_steps, None)

    def _observe(self, state: State) -> State:
        tables, situation = self._tables, state["situation"]
        ripe = state["ripe_at"] <= state["step_count"]
        apples = ripe.gather(-1, tables.apples_in_view.index_select(0, situation))
        view = tables.view.index_select(0, situation)
        seen = torch.where(apples.unsqueeze(1), self._apple_color, view)
        return {
            "observation": seen.view(self.full_observation_spec["observation"].shape),
            "previous_action": state["previous_action"],
            "previous_reward": state["previous_reward"],
            "success": tables.success[situation].unsqueeze(-1),
        }


def check_cells(name: str, given: Tensor, cells: Tensor) -> None:
    """Raise ValueError where one of the given cells `[B, 2]` is none of `cells` `[C, 2]`."""
    wrong = ~(given.unsqueeze(1) == cells).all(-1).any(-1)
    if wrong.any():
        environment = int(wrong.int().argmax())
        allowed = ", ".join(str(tuple(cell)) for cell in cells.tolist())
        raise ValueError(
            f'"{name}" of environment {environment} is {tuple(given[environment].tolist())}; '
            f"it must be one of {allowed}"
        )


def cell_numbers(given: Tensor, cells: Tensor) -> Tensor:
    """Which of `cells` `[C, 2]` each given one is, int64 of shape `[B]`; 0 if it is none."""
    return (given.unsqueeze(1) == cells).all(-1).to(torch.uint8).argmax(-1)
