"""Key-to-Door: take a key, collect apples, open a door with the key."""

from __future__ import annotations

import dataclasses
from functools import cache
from itertools import product

import torch
from torch import Tensor

from torchrl_shm.envs import _grid
from torchrl_shm.envs._base import Entry, State
from torchrl_shm.envs._grid import Cell, Dtype, GridEnv, Situation, Tables

_KEY_ROOM = (
    "..#######..",
    "..#kkkkk#..",
    "..#kkkkk#..",
    "..##...##..",
    "..#+++++#..",
    "..#+++++#..",
    "..#######..",
)
_DOOR_ROOM = (
    "...........",
    "...##d##...",
    "...#...#...",
    "...#.+.#...",
    "...#...#...",
    "...#####...",
    "...........",
)
_KEYS, _PLAYERS = _grid.find(_KEY_ROOM, "k"), _grid.find(_KEY_ROOM, "+")
_DOOR = _grid.find(_DOOR_ROOM, "d")[0]
_INDICATOR = (0, 5)
_WALLS = tuple(frozenset(_grid.find(room, "#")) for room in (_KEY_ROOM, _DOOR_ROOM))
_CLOSED = _WALLS[1] | {_DOOR}


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Situation(Situation):
    """Where the key lies, whether it was taken, and whether that was just now."""

    key: Cell | None = None
    taken: bool = False
    just_taken: bool = False

    def walls(self) -> frozenset[Cell]:
        if self.phase == 2:
            return _WALLS[1] if self.taken else _CLOSED
        return _WALLS[0] if self.phase == 0 else _grid.APPLE_ROOM_WALLS

    def objects(self) -> list[tuple[Cell, int]]:
        objects = [(self.player, _grid.PLAYER)]
        if self.key is not None:
            objects.append((self.key, _grid.KEY))
        if self.just_taken:
            objects.append((_INDICATOR, _grid.INDICATOR))
        if self.phase == 2:
            # the original draws it above the player
            objects.append((_DOOR, _grid.DOOR))
        return objects

    def arrive(self, player: Cell) -> Situation:
        just_taken = player == self.key
        return dataclasses.replace(
            self,
            player=player,
            key=None if just_taken else self.key,
            taken=self.taken or just_taken,
            just_taken=just_taken,
            success=self.success or (self.phase == 2 and player == _DOOR),
        )

    def follow(self) -> Situation:
        if self.phase == 2:
            return self
        starts = (_grid.APPLE_ROOM_START, _grid.find(_DOOR_ROOM, "+")[0])
        return _Situation(phase=self.phase + 1, player=starts[self.phase], taken=self.taken)


@cache
def _tables() -> Tables:
    starts = product(_KEYS, _PLAYERS)
    return _grid.tabulate(_Situation(phase=0, player=player, key=key) for key, player in starts)


class KeyToDoorEnv(GridEnv):
    """Take a key, collect apples for a long time, then open a door with the key.

    ## Description

    Three rooms, each for a fixed number of steps. In the first a key lies; nothing is paid for
    taking it. In the second, apples pay at once. In the last, a door opens for whoever has the
    key, and the final reward is paid for stepping on it. The agent sees 5 x 5 cells, never
    whether it has the key (only in the step in which it takes it a white mark shows at the top of
    the board, if that is in view). The task of Hung et al. (2019) as the authors of SHM use it
    (`thaihungle/SHM`, `envs/key_to_door`, which runs on pycolab), step by step.

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

    `apple_reward` for an apple; `final_reward`, once, for stepping on the open door.

    ## Starting State

    The key lies on one of the ten cells of rows 1 and 2, columns 3 to 7; the player starts on one
    of rows 4 and 5; both uniformly. Apples take a uniform set of places. `reset(TensorDict({
    "player": player, "key": key, "apples": apples}), set_state=True)` takes cells (row, column) of
    shape `[B, 2]` and apples as bool of shape `[B, 7, 11]`.

    ## Episode End

    Terminated after the frames of all rooms: 113 steps by default.

    Args:
        num_envs: number of environments B; default 64.
        frames: steps in each of the three rooms.
        final_reward: reward of the last room.
        num_apples: apples in the second room, at most 22.
        apple_reward: reward of an apple.
        respawn_every: an eaten apple is back in the step after as many steps; 0: never.
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
        >>> from torchrl_shm.envs import KeyToDoorEnv
        >>> env = KeyToDoorEnv(num_envs=3, seed=0)
        >>> rollout = env.rollout(200)
        >>> rollout.shape, rollout["observation"].shape
        (torch.Size([3, 113]), torch.Size([3, 113, 75]))
        >>> env.render(0).shape
        torch.Size([112, 176, 3])

    ## Version History

    - v0: as released with SHM: 10, 100 and 3 frames, final reward 10. pomdp-baselines and
      Memory-RL have 15, 60 and 10 frames and a final reward of 5.
    """

    _tensors = (*GridEnv._tensors, "_keys", "_players")  # pyright: ignore[reportPrivateUsage]

    def __init__(
        self,
        num_envs: int | None = None,
        *,
        frames: tuple[int, int, int] = (10, 100, 3),
        final_reward: float = 10.0,
        num_apples: int = 10,
        apple_reward: float = 1.0,
        respawn_every: int = 20,
        image: bool = False,
        dtype: Dtype = "uint8",
        seed: int | None = None,
        device: torch.device | str | int = "cpu",
    ) -> None:
        super().__init__(
            _tables(),
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
        self._keys = torch.tensor(_KEYS, device=self.device)
        self._players = torch.tensor(_PLAYERS, device=self.device)

    def _layout(self) -> dict[str, Entry]:
        return {**super()._layout(), "key": Entry((2,), torch.int64)}

    def _draw(self, count: int) -> State:
        return {
            **super()._draw(count),
            "player": self._draw_cells(self._players, count),
            "key": self._draw_cells(self._keys, count),
        }

    def _check_layout(self, layout: State) -> None:
        super()._check_layout(layout)
        _grid.check_cells("player", layout["player"], self._players)
        _grid.check_cells("key", layout["key"], self._keys)

    def _start_number(self, layout: State) -> Tensor:
        key = _grid.cell_numbers(layout["key"], self._keys)
        return key * len(_PLAYERS) + _grid.cell_numbers(layout["player"], self._players)
