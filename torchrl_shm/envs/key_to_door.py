"""Key-to-Door: take a key, collect apples, open a door with the key."""

from __future__ import annotations

import dataclasses
from functools import cache
from itertools import product

import torch
from torch import Tensor

from torchrl_shm.envs import _situations
from torchrl_shm.envs._checks import check_cells
from torchrl_shm.envs._grid import Dtype, GridEnv, cell_numbers
from torchrl_shm.envs._situations import Cell, Situation, Tables
from torchrl_shm.envs.contract import Entry, State

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
_KEYS, _PLAYERS = _situations.find(_KEY_ROOM, "k"), _situations.find(_KEY_ROOM, "+")
_DOOR = _situations.find(_DOOR_ROOM, "d")[0]
_INDICATOR = (0, 5)
_WALLS = tuple(frozenset(_situations.find(room, "#")) for room in (_KEY_ROOM, _DOOR_ROOM))
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
        return _WALLS[0] if self.phase == 0 else _situations.APPLE_ROOM_WALLS

    def objects(self) -> list[tuple[Cell, int]]:
        objects = [(self.player, _situations.PLAYER)]
        if self.key is not None:
            objects.append((self.key, _situations.KEY))
        if self.just_taken:
            objects.append((_INDICATOR, _situations.INDICATOR))
        if self.phase == 2:
            # the original draws it above the player
            objects.append((_DOOR, _situations.DOOR))
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
        starts = (_situations.APPLE_ROOM_START, _situations.find(_DOOR_ROOM, "+")[0])
        return _Situation(phase=self.phase + 1, player=starts[self.phase], taken=self.taken)


@cache
def _tables() -> Tables:
    starts = product(_KEYS, _PLAYERS)
    return _situations.tabulate(
        _Situation(phase=0, player=player, key=key) for key, player in starts
    )


class KeyToDoorEnv(GridEnv):
    """Take a key, collect apples for a while, then open a door, which only the key opens.

    ## Description

    First the agent is in a room with a key. Then it is put into a room with apples, the
    distraction, and last in front of a door, which opens only to those who took the key. Taking
    the key is not rewarded, so what is to be learned is that an action pays off much later. All
    constants together make up the task of the paper on Stable Hadamard Memory, as its authors
    released it (`thaihungle/SHM`, `pomdp-baselines/envs/credit_assign/key_to_door/key_to_door.py`
    and `tvt_wrapper.py`, where it is called `KeytoDoor-SR-v0`), step by step and byte by byte.
    `KeyToDoorEnv()` is that task. The paper also has it with 250 and 500 steps of apples:
    `frames=(10, 250, 3)`.

    All rooms lie on boards of 7 rows and 11 columns. Cells are (row, column) from the upper left.

    1. *The key*, `frames[0]` steps: a room of rows 1 to 5 and columns 3 to 7 (row 3: 4 to 6). The
       key lies in rows 1 and 2, the player starts in rows 4 and 5. Stepping on the key takes it. In
       the observation of just that step, cell (0, 5) of the wall is white, the indicator.
    2. *The apples*, `frames[1]` steps: a room of rows 1 to 5 and columns 1 to 9. The player starts
       at (5, 5); `num_apples` of 22 cells have an apple. Stepping on one eats it, and it is back
       `respawn_every + 1` steps later; if the player stands there, it is eaten one step after that.
    3. *The door*, `frames[2]` steps: a room of rows 2 to 4 and columns 4 to 6, the player starts at
       (3, 5), the door is at (1, 5). It stops players without the key. Players with the key are
       paid when they step on it first, and can walk through it into the open, up to the edge of
       the board.

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
    | `success` | `[B, 1]` | bool | | the door was opened; for logs, not policies |

    `observation` is an image with channels first, `[3, 5, 5]`, flattened; `image=True` keeps its
    shape. Cells beyond the board look like empty ones. `dtype="float32"` divides by 255, which the
    original leaves to the network. Red, green, blue are ground (204, 204, 204), wall (25, 25, 25),
    player (228, 148, 109), key (159, 81, 44), indicator (255, 255, 255), apple (140, 178, 0) and
    door (134, 206, 235). The player is drawn above an apple and below the door. The original emits
    neither `previous_action` nor `previous_reward`.

    ## Rewards

    `apple_reward` for every apple, `final_reward` for opening the door, otherwise 0. `success` is
    true from the step that paid `final_reward`.

    ## Starting State

    Every reset draws, uniformly: the cell of the key, that of the player and the places of the
    apples. `reset(TensorDict({...}, batch_size=[B]), set_state=True)` takes them as given:

    | Entry | Shape | Meaning |
    |---|---|---|
    | `player` | `[B, 2]` | cell of the player, rows 4 and 5, columns 3 to 7 |
    | `key` | `[B, 2]` | cell of the key, rows 1 and 2, columns 3 to 7 |
    | `apples` | `[B, 7, 11]` | bool; any number of the 22 places |

    TorchRL's transforms drop such entries, so below them call `base_env.reset` after `reset`, and
    take the observation from there.

    ## Episode End

    Terminated after `sum(frames)` steps, never before and never truncated: the length is a rule of
    the game, and the original calls the last step done in this sense.

    Args:
        num_envs: number of environments B; `None` is 64.
        frames: number of steps with the key, with the apples and with the door.
        final_reward: reward of the door.
        num_apples: how many apples there are.
        apple_reward: reward of an apple. The original takes a range, too, but its tasks do not.
        respawn_every: steps for which the place of an eaten apple is empty; 0: it stays empty.
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
        >>> from torchrl_shm.envs import KeyToDoorEnv
        >>> env = KeyToDoorEnv(num_envs=3, seed=0)
        >>> rollout = env.rollout(1000)
        >>> rollout.shape, rollout["observation"].shape
        (torch.Size([3, 113]), torch.Size([3, 113, 75]))
        >>> env.render(index=0).shape
        torch.Size([112, 176, 3])

        The key lies two cells above the player, and is seen there:

        >>> from tensordict import TensorDict
        >>> layout = {
        ...     "player": torch.tensor([[4, 5]] * 3),
        ...     "key": torch.tensor([[2, 5]] * 3),
        ...     "apples": torch.zeros(3, 7, 11, dtype=torch.bool),
        ... }
        >>> data = env.reset(TensorDict(layout, batch_size=[3]), set_state=True)
        >>> data["observation"].view(3, 3, 5, 5)[0, :, 0, 2]
        tensor([159,  81,  44], dtype=torch.uint8)

    ## Version History

    - v0: as released with the paper: 10, 100 and 3 steps, final reward 10. Its ancestor in
      `pomdp-baselines` has 15, 60 and 10 steps and a final reward of 5.
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
        check_cells("player", layout["player"], self._players)
        check_cells("key", layout["key"], self._keys)

    def _start_number(self, layout: State) -> Tensor:
        key = cell_numbers(layout["key"], self._keys)
        return key * len(_PLAYERS) + cell_numbers(layout["player"], self._players)
