"""Visual Match: see a color, collect apples, go to the field of that color."""

from __future__ import annotations

import dataclasses
from functools import cache
from itertools import permutations, product
from typing import Any

import torch
from torch import Tensor

from torchrl_shm.envs import _situations
from torchrl_shm.envs._checks import check_cells, check_range
from torchrl_shm.envs._grid import Dtype, GridEnv, cell_numbers
from torchrl_shm.envs._situations import Cell, Situation, Tables
from torchrl_shm.envs.contract import Entry, State

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
_FIELDS = _situations.find(_CHOICE_ROOM, "f")
_WALLS = frozenset(_situations.find(_CHOICE_ROOM, "#"))
_COLORS = (_situations.RED, _situations.GREEN, _situations.BLUE)
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
        return (self.surroundings, _situations.APPLE_ROOM_WALLS, _WALLS)[self.phase]

    def objects(self) -> list[tuple[Cell, int]]:
        objects = [(self.player, _situations.PLAYER)]
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
        starts = (_situations.APPLE_ROOM_START, _situations.find(_CHOICE_ROOM, "+")[0])
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
    return _situations.tabulate(
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
    return _situations.find(room, "c"), _situations.find(room, "+")


class VisualMatchEnv(GridEnv):
    """See a color, collect apples for a while, then go to the field of that color.

    ## Description

    First the agent stands in a small room in which one cell shows a color. Then it is put into a
    room with apples, the distraction, and last in front of three colored fields, of which the one
    with the color from the beginning is right. There it can choose only once, and nothing shows
    the color any more: it has to be remembered over all the apples. All constants together make up
    the task of the paper on Stable Hadamard Memory, as its authors released it (`thaihungle/SHM`,
    `pomdp-baselines/envs/credit_assign/key_to_door/visual_match.py` and `tvt_wrapper.py`, where
    it is called `VisualMatch-SR-v0`), step by step and byte by byte. `VisualMatchEnv()` is that
    task. The paper also has it with 250 and 500 steps of apples: `frames=(15, 250, 10)`.

    All rooms lie on boards of 7 rows and 11 columns. Cells are (row, column) from the upper left.

    1. *The sign*, `frames[0]` steps. Passive: the player stands at (2, 5), and each of its eight
       neighbors is a wall but one, which has the color, and cannot be entered, either. Active: a
       room of rows 1 to 5 and columns 3 to 7 (row 3: 4 to 6), in which one of the 26 cells of the
       wall has the color and has to be found.
    2. *The apples*, `frames[1]` steps: a room of rows 1 to 5 and columns 1 to 9. The player starts
       at (5, 5); `num_apples` of 22 cells have an apple. Stepping on one eats it, and it is back
       `respawn_every + 1` steps later; if the player stands there, it is eaten one step after that.
    3. *The choice*, `frames[2]` steps: the player starts at (5, 5), the fields lie at (1, 2),
       (1, 5) and (1, 8). The first one that is stepped on counts, and all three vanish.

    A room ends with its last step, whatever happens in it; what the player does in that step still
    counts, and the observation that follows is the first of the next room.

    ## Action Space

    `action`: int64 of shape `[B]`. 0 is north (up), 1 south, 2 west, 3 east. Walls and the edge of
    the board stop the player.

    ## Observation Space

    | Entry | Shape | Dtype | Range | Meaning |
    |---|---|---|---|---|
    | `observation` | `[B, 75]` | uint8 | [0, 255] | colors of 5 by 5 cells around the player |
    | `previous_action` | `[B, 4]` | float32 | {0, 1} | one-hot; zeros at reset |
    | `previous_reward` | `[B, 1]` | float32 | | reward of the previous step; 0 at reset |
    | `success` | `[B, 1]` | bool | | the right field was chosen; for logs, not policies |

    `observation` is an image with channels first, `[3, 5, 5]`, flattened; `image=True` keeps its
    shape. Cells beyond the board look like empty ones. `dtype="float32"` divides by 255, which the
    original leaves to the network. Red, green, blue are ground (204, 204, 204), wall (25, 25, 25),
    player (228, 148, 109), apple (140, 178, 0), and (255, 0, 0), (0, 255, 0), (0, 0, 255). The
    player is drawn above an apple. The original emits neither `previous_action` nor
    `previous_reward`.

    ## Rewards

    `apple_reward` for every apple, `final_reward` for the right field, otherwise 0. `success` is
    true from the step that paid `final_reward`.

    ## Starting State

    Every reset draws, uniformly: the right field, the cell of the sign, the places of the apples,
    and in the active room the player's cell, one of rows 4 and 5 and columns 3 to 7.
    `reset(TensorDict({...}, batch_size=[B]), set_state=True)` takes them as given:

    | Entry | Shape | Meaning |
    |---|---|---|
    | `player` | `[B, 2]` | cell of the player; passive: always (2, 5) |
    | `target` | `[B]` | right field: 0 left, 1 middle, 2 right |
    | `target_position` | `[B, 2]` | cell of the sign |
    | `colors` | `[B, 3]` | colors of the fields, as the argument `colors` |
    | `apples` | `[B, 7, 11]` | bool; any number of the 22 places |

    TorchRL's transforms drop such entries, so below them call `base_env.reset` after `reset`, and
    take the observation from there.

    The original shuffles `colors` when it is constructed, without a seed, and keeps them: which
    color is at which field is the same in all episodes of a run, but not of all runs. Here `colors`
    is an argument, the same for all environments, and with its default the left field is red, the
    middle one green and the right one blue.

    ## Episode End

    Terminated after `sum(frames)` steps, never before and never truncated: the length is a rule of
    the game, and the original calls the last step done in this sense.

    Args:
        num_envs: number of environments B; `None` is 64.
        frames: number of steps with the sign, with the apples and with the fields.
        passive: the sign is next to the player; otherwise it has to be found.
        final_reward: reward of the right field.
        num_apples: how many apples there are.
        apple_reward: reward of an apple. The original takes a range, too, but its tasks do not.
        respawn_every: steps for which the place of an eaten apple is empty; 0: it stays empty.
        colors: colors of the left, middle and right field: 0 red, 1 green, 2 blue, in any order.
        image: emit `observation` as `[B, 3, 5, 5]`.
        dtype: `"uint8"`, the original's bytes, or `"float32"`, scaled to [0, 1].
        seed: seed of the environment's own generator; `None` draws one from torch's default
            generator.
        device: device of all tensors, state and generator included.

    Attributes:
        max_steps: length of an episode.

    Raises:
        ValueError: a constant or a given layout is impossible.

    Examples:
        >>> import torch
        >>> from torchrl_shm.envs import VisualMatchEnv
        >>> env = VisualMatchEnv(num_envs=3, seed=0)
        >>> rollout = env.rollout(1000)
        >>> rollout.shape, rollout["observation"].shape
        (torch.Size([3, 125]), torch.Size([3, 125, 75]))
        >>> env.render(index=0).shape
        torch.Size([112, 176, 3])

        The sign is above the player and blue, like the field on the right:

        >>> from tensordict import TensorDict
        >>> layout = {
        ...     "player": torch.tensor([[2, 5]] * 3),
        ...     "target": torch.tensor([2] * 3),
        ...     "target_position": torch.tensor([[1, 5]] * 3),
        ...     "colors": torch.tensor([[0, 1, 2]] * 3),
        ...     "apples": torch.zeros(3, 7, 11, dtype=torch.bool),
        ... }
        >>> data = env.reset(TensorDict(layout, batch_size=[3]), set_state=True)
        >>> data["observation"].view(3, 3, 5, 5)[0, :, 1, 2]
        tensor([  0,   0, 255], dtype=torch.uint8)

    ## Version History

    - v0: as released with the paper: 15, 100 and 10 steps, final reward 10, and colors that can be
      chosen. In its ancestor in `Memory-RL` the last room has 15 steps and the final reward is 5.
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
        check_cells("player", layout["player"], self._players)
        check_cells("target_position", layout["target_position"], self._signs)
        check_cells("colors", layout["colors"], self._permutations)
        check_range("target", layout["target"], 0, 2)

    def _start_number(self, layout: State) -> Tensor:
        number = cell_numbers(layout["colors"], self._permutations) * 3 + layout["target"]
        sign = cell_numbers(layout["target_position"], self._signs)
        player = cell_numbers(layout["player"], self._players)
        return (number * len(self._signs) + sign) * len(self._players) + player
