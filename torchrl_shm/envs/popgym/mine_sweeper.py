"""Mine Sweeper: uncover cells, and remember what they said."""

from __future__ import annotations

import torch
from torch import Tensor

from torchrl_shm.envs.contract import Entry, State, Transition
from torchrl_shm.envs.popgym._base import Level, POPGymEnv, level_count


class MineSweeperEnv(POPGymEnv):
    """Uncover all cells without a mine, seeing only how many mines are near the last one.

    ## Description

    Mines are hidden on a square board. The agent uncovers a cell per step and is told how many
    mines are in the 3 x 3 cells around it; what it was told before is not shown again. POPGym's
    `MineSweeper` (`popgym/envs/minesweeper.py`), step by step. (The copy in the SHM repository
    allows one step more.)

    ## Action Space

    `action`: with `joint_action` int64 of shape `[B]`, row * N + column; otherwise int64 of shape
    `[B, 2]`, row and column, as in POPGym itself.

    ## Observation Space

    `observation`: float32: number of mines (3, 7 or 10 categories), previous row and column (2N),
    time flags (2).

    ## Rewards

    With L free cells: 1/L for a free cell, -0.5/(L - 2) for one that was uncovered before,
    -0.5 - 1/L for a mine.

    ## Starting State

    Mines on distinct cells, uniformly. `reset(TensorDict({"mines": mines}), set_state=True)` takes
    the cells with mines, `[B, N, N]`.

    ## Episode End

    Terminated on a mine or when all free cells are uncovered; otherwise truncated after L steps:
    14, 30, 54.

    Args:
        num_envs: number of environments B.
        level: `"easy"`, `"medium"` or `"hard"`: N = 4, 6, 8 with 2, 6, 10 mines.
        board_size: N; `None` is the level's.
        num_mines: number of mines; `None` is the level's.
        joint_action: one index for a cell instead of row and column.
        previous_action: append the previous action to the observation.
        antialias: append whether this is the reset to the observation.
        seed: seed of the environment's own generator; `None` draws one from torch's default
            generator.
        device: device of all tensors, state and generator included.

    Raises:
        ValueError: `level` is unknown, or there are fewer than 3 free cells or no mine.

    Examples:
        >>> from torchrl_shm.envs.popgym import MineSweeperEnv
        >>> MineSweeperEnv(num_envs=3).rollout(2)["observation"].shape[-1]
        13

    ## Version History

    - v0: as in popgym 1.0.7.
    """

    _tensors = (*POPGymEnv._tensors, "_neighbors")

    def __init__(
        self,
        num_envs: int = 64,
        *,
        level: Level = "easy",
        board_size: int | None = None,
        num_mines: int | None = None,
        joint_action: bool = True,
        previous_action: bool = True,
        antialias: bool = True,
        seed: int | None = None,
        device: torch.device | str | int = "cpu",
    ) -> None:
        super().__init__(num_envs, level, previous_action, antialias, device)
        mines = {"easy": 2, "medium": 6, "hard": 10}
        size = level_count("board_size", board_size, {"easy": 4, "medium": 6, "hard": 8}, level)
        self.board_size = size
        self.num_mines = level_count("num_mines", num_mines, mines, level)
        self.max_steps = size * size - self.num_mines
        if self.max_steps < 3:
            raise ValueError(
                f"{self.num_mines} mines on {size}x{size} cells: there must be 3 free cells at "
                "least; lower num_mines or raise board_size"
            )
        self._free_reward = 1 / self.max_steps
        self._again_reward = -0.5 / (self.max_steps - 2)
        self._mine_reward = -0.5 - self._free_reward
        categories = min(self.num_mines + 1, 10)
        # 1 where two cells touch, or are the same
        rows, columns = torch.cartesian_prod(torch.arange(size), torch.arange(size)).unbind(-1)
        apart = torch.maximum((rows[:, None] - rows).abs(), (columns[:, None] - columns).abs())
        self._neighbors = (apart <= 1).float().to(self.device)
        rewards = (self._mine_reward, self._free_reward)
        self._specify(
            blocks=[categories],
            actions=[size, size],
            rewards=rewards,
            seed=seed,
            joint=joint_action,
        )

    def _layout(self) -> dict[str, Entry]:
        return {"mines": Entry((self.board_size, self.board_size), torch.bool)}

    def _draw(self, count: int) -> State:
        shape = (count, self.board_size**2)
        numbers = torch.rand(shape, generator=self._generator, device=self.device)
        chosen = numbers.topk(self.num_mines, dim=-1).indices
        mines = torch.zeros(shape, dtype=torch.bool, device=self.device).scatter(1, chosen, True)
        return {"mines": mines.unflatten(1, (self.board_size, -1))}

    def _check_layout(self, layout: State) -> None:
        counts = layout["mines"].flatten(1).sum(-1)
        if bool((counts != self.num_mines).any()):
            raise ValueError(
                f"mines must be {self.num_mines} cells, got {counts.unique().tolist()}"
            )

    def _begin(self, layout: State) -> State:
        mines = layout["mines"]
        near = mines.flatten(1).float() @ self._neighbors
        viewed = torch.zeros_like(mines.flatten(1))
        zero = torch.zeros_like(viewed[:, :1], dtype=torch.int64)
        return {
            "mines": mines,
            "near": near.long(),
            "viewed": viewed,
            "uncovered": zero,
            "count": zero,
        }

    def _play(self, state: State, action: Tensor) -> Transition:
        cell = action.unsqueeze(-1)
        mine = state["mines"].flatten(1).gather(1, cell)
        again = state["viewed"].gather(1, cell)
        reward = torch.where(again, self._again_reward, self._free_reward)
        reward = torch.where(mine, self._mine_reward, reward)
        free = ~mine
        uncovered = state["uncovered"] + (free & ~again)
        terminated = mine | (uncovered == self.max_steps)
        new = {
            "mines": state["mines"],
            "near": state["near"],
            "viewed": state["viewed"].scatter(1, cell, free),
            "uncovered": uncovered,
            "count": state["near"].gather(1, cell),
        }
        truncated = (state["step"] == self.max_steps - 1) & ~terminated
        return Transition(new, reward, terminated, truncated)

    def _features(self, state: State) -> Tensor:
        return state["count"]
