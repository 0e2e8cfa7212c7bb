"""Battleship: sink ships, and remember where shots went."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from torchrl_shm.checks import check_count
from torchrl_shm.envs.contract import Entry, State, Transition
from torchrl_shm.envs.popgym._base import Level, POPGymEnv, level_count


class BattleshipEnv(POPGymEnv):
    """Sink all ships on a board that answers hit or miss only.

    ## Description

    Ships lie on a square board. The agent shoots at a cell per step and learns whether it hit; a
    good shot depends on all shots before. POPGym's `Battleship` (`popgym/envs/battleship.py`),
    step by step. Ships may touch.

    ## Action Space

    `action`: with `joint_action` int64 of shape `[B]`, row * N + column, as with POPGym's
    `DiscreteAction`; otherwise int64 of shape `[B, 2]`, row and column, as in POPGym itself. A
    policy with one head per coordinate and one with a head over all cells are different policies:
    say which one a score is of.

    ## Observation Space

    `observation`: float32: miss, hit (2), previous row and column (2N), time flags (2).

    ## Rewards

    1/12 for a hit, -1/(N² - 12) for a miss or a cell that was hit before: 1 without a miss, 0 for
    shooting at every cell once.

    ## Starting State

    Every ship in turn is placed uniformly among the places left, as popgym's rejection does.
    `reset(TensorDict({"board": board}), set_state=True)` takes cells with ships, `[B, N, N]`.

    ## Episode End

    Terminated when everything is hit; truncated after N² steps: 64, 100, 144.

    Args:
        num_envs: number of environments B.
        level: `"easy"`, `"medium"` or `"hard"`: N = 8, 10, 12.
        board_size: N; `None` is the level's.
        ship_sizes: cells of each ship.
        joint_action: one index for a cell instead of row and column.
        previous_action: append the previous action to the observation.
        antialias: append whether this is the reset to the observation.
        seed: seed of the environment's own generator; `None` draws one from torch's default
            generator.
        device: device of all tensors, state and generator included.

    Raises:
        ValueError: `level` is unknown, or the ships do not surely fit on the board.

    Examples:
        >>> from torchrl_shm.envs.popgym import BattleshipEnv
        >>> BattleshipEnv(num_envs=3).rollout(3)["observation"].shape
        torch.Size([3, 3, 20])
        >>> BattleshipEnv(num_envs=3, joint_action=False).rollout(3)["action"].shape
        torch.Size([3, 3, 2])

    ## Version History

    - v0: as in popgym 1.0.7.
    """

    def __init__(
        self,
        num_envs: int = 64,
        *,
        level: Level = "easy",
        board_size: int | None = None,
        ship_sizes: Sequence[int] = (2, 3, 3, 4),
        joint_action: bool = True,
        previous_action: bool = True,
        antialias: bool = True,
        seed: int | None = None,
        device: torch.device | str | int = "cpu",
    ) -> None:
        super().__init__(num_envs, level, previous_action, antialias, device)
        size = level_count("board_size", board_size, {"easy": 8, "medium": 10, "hard": 12}, level)
        self.board_size = size
        self.ship_sizes = tuple(ship_sizes)
        if not self.ship_sizes:
            raise ValueError("ship_sizes must name a ship at least, got ()")
        before = 0
        for length in self.ship_sizes:
            check_count("ship_sizes", length)
            if length > size:
                raise ValueError(
                    f"ship_sizes={self.ship_sizes} must not be longer than board_size={size}"
                )
            # rows hold that many places which do not overlap, and a cell blocks one of them
            if before >= size * (size // length):
                raise ValueError(
                    f"ship_sizes={self.ship_sizes} may not fit on {size}x{size} cells; take a "
                    "larger board_size, or fewer ships"
                )
            before += length
        self.max_steps = size * size
        self._needed = sum(self.ship_sizes)
        if self._needed >= self.max_steps:
            raise ValueError(f"{self._needed} cells of ships leave no water on {size}x{size} cells")
        self._miss_reward = -1 / (self.max_steps - self._needed)
        for length in set(self.ship_sizes):
            setattr(self, f"_ships{length}", _placements(size, length).to(self.device))
            self._tensors = (*self._tensors, f"_ships{length}")
        rewards = (self._miss_reward, 1 / self._needed)
        self._specify(
            blocks=[2], actions=[size, size], rewards=rewards, seed=seed, joint=joint_action
        )

    def _layout(self) -> dict[str, Entry]:
        return {"board": Entry((self.board_size, self.board_size), torch.bool)}

    def _draw(self, count: int) -> State:
        board = torch.zeros(count, self.max_steps, device=self.device)
        for length in self.ship_sizes:
            ships: Tensor = getattr(self, f"_ships{length}")
            # of the free places the one with the largest random number
            numbers = torch.rand(count, len(ships), generator=self._generator, device=self.device)
            numbers = numbers - (board @ ships.T)
            board = board + ships[numbers.argmax(-1)]
        return {"board": board.bool().unflatten(1, (self.board_size, -1))}

    def _check_layout(self, layout: State) -> None:
        counts = layout["board"].flatten(1).sum(-1)
        if bool((counts != self._needed).any()):
            raise ValueError(
                f"board must have {self._needed} cells with ships, got {counts.unique().tolist()}"
            )
        for environment, board in enumerate(layout["board"]):
            cells = frozenset((row, column) for row, column in board.nonzero().tolist())
            if not _is_fleet(cells, tuple(sorted(self.ship_sizes))):
                raise ValueError(
                    f'"board" of environment {environment} is not made of ships of '
                    f"{self.ship_sizes} cells in a row or in a column"
                )

    def _begin(self, layout: State) -> State:
        guessed = torch.zeros_like(layout["board"].flatten(1))
        return {
            "board": layout["board"],
            "guessed": guessed,
            "hit": torch.zeros_like(guessed[:, :1], dtype=torch.int64),
            "hits": torch.zeros_like(guessed[:, :1], dtype=torch.int64),
        }

    def _play(self, state: State, action: Tensor) -> Transition:
        cell = action.unsqueeze(-1)
        board, guessed = state["board"].flatten(1), state["guessed"]
        hit = board.gather(1, cell) & ~guessed.gather(1, cell)
        hits = state["hits"] + hit
        reward = torch.where(hit, 1 / self._needed, self._miss_reward)
        new = {
            "board": state["board"],
            "guessed": guessed.scatter(1, cell, True),
            "hit": hit.long(),
            "hits": hits,
        }
        truncated = state["step"] >= self.max_steps - 1
        return Transition(new, reward, hits == self._needed, truncated)

    def _features(self, state: State) -> Tensor:
        return state["hit"]


@lru_cache(maxsize=2**16)
def _is_fleet(cells: frozenset[tuple[int, int]], lengths: tuple[int, ...]) -> bool:
    """Whether ships of these lengths can cover these cells, each exactly once."""
    if not lengths:
        return not cells
    # the uppermost cell, the left one of these, is where a ship begins
    row, column = min(cells)
    for i, length in enumerate(lengths):
        # ships of one length are alike
        if length in lengths[:i]:
            continue
        others = lengths[:i] + lengths[i + 1 :]
        for ship in (
            frozenset((row, column + k) for k in range(length)),
            frozenset((row + k, column) for k in range(length)),
        ):
            if ship <= cells and _is_fleet(cells - ship, others):
                return True
    return False


def _placements(size: int, length: int) -> Tensor:
    """All places of a ship, `[places, cells]`, 1 where it lies; each is equally likely.

    A start and a direction are drawn in the original, so a place is drawn from both of its ends; a
    ship of one cell is drawn four times as often from everywhere, which is uniform, too.
    """
    places: list[Tensor] = []
    for row in range(size):
        for column in range(size - length + 1):
            board = torch.zeros(size, size)
            board[row, column : column + length] = 1
            places.append(board.flatten())
            if length > 1:
                places.append(board.T.flatten())
    return torch.stack(places)
