"""Visual Match: see a color, collect apples, go to the field of that color."""

from __future__ import annotations

import dataclasses
from functools import cache
from itertools import permutations, product
from typing import Any

import torch
from torch import Tensor

from torchrl_shm.envs import _grid
from torchrl_shm.envs._base import Entry, State
from torchrl_shm.envs._grid import Cell, Dtype, GridEnv, Situation, Tables

_PASSIVE_ROOM = (
    "...........",
    "....ccc....",
    "....c+c....",
    "....ccc....",
    "...........",
    "...........",
    "...........",
)
_ACTIVE_ROOM = (
    "..ccccccc..",
    "..c.....c..",
    "..c.....c..",
    "..cc...cc..",
    "..c+++++c..",
    "..c+++++c..",
    "..ccccccc..",
)
_CHOICE_ROOM = (
    "###########",
    "#.f..f..f.#",
    "#.........#",
    "#.........#",
    "####...####",
    "...#.+.#...",
    "...#####...",
)
_FIELDS = _grid.find(_CHOICE_ROOM, "f")
_WALLS = frozenset(_grid.find(_CHOICE_ROOM, "#"))
_COLORS = (_grid.RED, _grid.GREEN, _grid.BLUE)
_PERMUTATIONS = tuple(permutations(range(3)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Situation(Situation):
    """The surroundings, the colors of the fields, which one is right, and what is left of them."""

    surroundings: frozenset[Cell]
    sign: Cell | None
    target: int
    colors: tuple[int, ...]
    chosen: bool = False

    def walls(self) -> frozenset[Cell]:
        return (self.surroundings, _grid.APPLE_ROOM_WALLS, _WALLS)[self.phase]

    def objects(self) -> list[tuple[Cell, int]]:
        objects = [(self.player, _grid.PLAYER)]
        if self.sign is not None:
            objects.append((self.sign, _COLORS[self.colors[self.target]]))
        if self.phase == 2 and not self.chosen:
            shown = [_COLORS[color] for color in self.colors]
            objects.extend(zip(_FIELDS, shown, strict=True))
        return objects

    def arrive(self, player: Cell) -> Situation:
        choice = self.phase == 2 and not self.chosen and player in _FIELDS
        return dataclasses.replace(
            self,
            player=player,
            chosen=self.chosen or choice,
            success=self.success or (choice and player == _FIELDS[self.target]),
        )

    def follow(self) -> Situation:
        if self.phase == 2:
            return self
        starts = (_grid.APPLE_ROOM_START, _grid.find(_CHOICE_ROOM, "+")[0])
        return _Situation(
            phase=self.phase + 1,
            player=starts[self.phase],
            surroundings=frozenset(),
            sign=None,
            target=self.target,
            colors=self.colors,
        )


@cache
def _tables(passive: bool) -> Tables:
    signs, players = _cells(passive)
    return _grid.tabulate(
        _Situation(
            phase=0,
            player=player,
            surroundings=frozenset(signs),
            sign=sign,
            target=target,
            colors=colors,
        )
        for colors, target, sign, player in product(_PERMUTATIONS, range(3), signs, players)
    )


def _cells(passive: bool) -> tuple[tuple[Cell, ...], tuple[Cell, ...]]:
    """Cells where the sign can be, and those where the player can start."""
    room = _PASSIVE_ROOM if passive else _ACTIVE_ROOM
    return _grid.find(room, "c"), _grid.find(room, "+")


class VisualMatchEnv(GridEnv):
    """See a colour, collect apples for a long time, then go to the field of that colour.

    ## Description

    Three rooms, each for a fixed number of steps. The first shows a coloured cell; with `passive`
    the player is boxed in beside it, otherwise it has to find the cell in the wall of a room. In
    the second, apples pay at once. The last room has three coloured fields; stepping on the one
    that has the colour of the first room pays the final reward. There is one chance: all three
    vanish when one is touched. The task of Hung et al. (2019) as the authors of SHM use it
    (`thaihungle/SHM`, `envs/visual_match`, which runs on pycolab), step by step.

    **Apples.** The middle room has 10 apples on 22 possible places. Stepping on one pays
    `apple_reward`; it is back 21 steps later. They make noise in the return, which hides the final
    reward from an agent that does not look far back.

    ## Action Space

    `action`: int64 of shape `[B]`: 0 north (row - 1), 1 south, 2 west (column - 1), 3 east. Walls
    and the edge of the board stop the player.

    ## Observation Space

    | Entry | Shape | Dtype | Range | Meaning |
    |---|---|---|---|---|
    | `observation` | `[B, 75]` | uint8 | 0 to 255 | what is seen, see below |
    | `previous_action` | `[B, 4]` | float32 | 0 or 1 | one-hot action that led here; 0 at reset |
    | `previous_reward` | `[B, 1]` | float32 | | reward that came with it; 0 at reset |
    | `success` | `[B, 1]` | bool | | the final reward was paid; for logs, not policies |

    `observation` is the 5 x 5 cells around the player in RGB, channels first, flat unless `image`;
    cells beyond the board are blank. The first observation of a room replaces the
    last one of the room before, as in the original.

    ## Rewards

    `apple_reward` for an apple; `final_reward`, once, for the field of the right colour.

    ## Starting State

    Which of the three fields is right (`target`), where its colour shows (one of the 8 cells around
    the player, or of the wall) and where the player starts are drawn uniformly; so are the places
    of apples. Which colours the fields have, the original draws once per program and then keeps;
    here it is the argument `colors`. `reset(TensorDict({"player": player, "target": target,
    "target_position": position, "colors": colors, "apples": apples}), set_state=True)` takes cells
    of shape `[B, 2]`, the target of shape `[B]` (0 to 2, from the left), the colours of the
    fields of shape `[B, 3]` (0 red, 1 green, 2 blue), and apples as bool of shape `[B, 7, 11]`.

    ## Episode End

    Terminated after the frames of all rooms: 125 steps by default.

    Args:
        num_envs: number of environments B; default 64.
        frames: steps in each of the three rooms.
        passive: the player of the first room cannot move.
        final_reward: reward of the last room.
        num_apples: apples in the second room, at most 22.
        apple_reward: reward of an apple.
        respawn_every: an eaten apple is back in the step after as many steps; 0: never.
        colors: colours of the three fields, from the left: 0 red, 1 green, 2 blue.
        image: emit `observation` as `[B, 3, 5, 5]` instead of `[B, 75]`.
        dtype: `"uint8"`, from 0 to 255 as the original, or `"float32"`, from 0 to 1.
        seed: seed of the environment's own generator; `None` draws one from torch's default
            generator.
        device: device of all tensors, state and generator included.

    Attributes:
        max_steps: length of an episode.
        player: row and column of each player, int64 of shape `[B, 2]`; hidden from the agent.
        apples: where apples lie, bool of shape `[B, 7, 11]`; hidden from the agent.
        phase: the room, 0 to 2, int64 of shape `[B]`.

    Raises:
        ValueError: an argument is impossible.

    Examples:
        >>> from torchrl_shm.envs import VisualMatchEnv
        >>> env = VisualMatchEnv(num_envs=3, image=True, seed=0)
        >>> env.rollout(200)["observation"].shape
        torch.Size([3, 125, 3, 5, 5])

    ## Version History

    - v0: as released with SHM: 15, 100 and 10 frames, passive, final reward 10; 250 and 500 frames
      for the longer tasks. Memory-RL has 15 frames in the last room and a final reward of 5.
    """

    _tensors = (
        *GridEnv._tensors,  # pyright: ignore[reportPrivateUsage]
        "_signs", "_players", "_permutations", "_own_colors",
    )  # fmt: skip

    def __init__(
        self,
        num_envs: int | None = None,
        *,
        frames: tuple[int, int, int] = (15, 100, 10),
        passive: bool = True,
        final_reward: float = 10.0,
        num_apples: int = 10,
        apple_reward: float = 1.0,
        respawn_every: int = 20,
        colors: tuple[int, int, int] = (0, 1, 2),
        image: bool = False,
        dtype: Dtype = "uint8",
        seed: int | None = None,
        device: torch.device | str | int = "cpu",
    ) -> None:
        if tuple(colors) not in _PERMUTATIONS:
            raise ValueError(
                "colors must be 0, 1 and 2 (red, green and blue) in some order, the left field "
                f"first, got {tuple(colors)}"
            )
        super().__init__(
            _tables(passive),
            num_envs,
            frames=frames,
            final_reward=final_reward,
            num_apples=num_apples,
            apple_reward=apple_reward,
            respawn_every=respawn_every,
            image=image,
            dtype=dtype,
            seed=seed,
            device=device,
        )
        self.passive = passive
        self.colors = (colors[0], colors[1], colors[2])
        signs, players = _cells(passive)
        self._signs = torch.tensor(signs, device=self.device)
        self._players = torch.tensor(players, device=self.device)
        self._permutations = torch.tensor(_PERMUTATIONS, device=self.device)
        self._own_colors = torch.tensor(self.colors, device=self.device)

    def _layout(self) -> dict[str, Entry]:
        return {
            **super()._layout(),
            "target": Entry((), torch.int64),
            "target_position": Entry((2,), torch.int64),
            "colors": Entry((3,), torch.int64),
        }

    def _draw(self, count: int) -> State:
        options: dict[str, Any] = {"generator": self._generator, "device": self.device}
        return {
            **super()._draw(count),
            "player": self._draw_cells(self._players, count),
            "target": torch.randint(3, (count,), **options),
            "target_position": self._draw_cells(self._signs, count),
            "colors": self._own_colors.expand(count, 3),
        }

    def _check_layout(self, layout: State) -> None:
        super()._check_layout(layout)
        _grid.check_cells("player", layout["player"], self._players)
        _grid.check_cells("target_position", layout["target_position"], self._signs)
        _grid.check_cells("colors", layout["colors"], self._permutations)
        _grid.check_cells("target", layout["target"][:, None], self._own_colors.sort()[0][:, None])

    def _start_number(self, layout: State) -> Tensor:
        number = _grid.cell_numbers(layout["colors"], self._permutations) * 3 + layout["target"]
        sign = _grid.cell_numbers(layout["target_position"], self._signs)
        player = _grid.cell_numbers(layout["player"], self._players)
        return (number * len(self._signs) + sign) * len(self._players) + player
