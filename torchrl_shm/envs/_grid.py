"""Common parts of Key-to-Door and Visual Match: three rooms, apples, a view of 5 by 5 cells."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from numbers import Integral
from typing import Any, Literal

import torch
from torch import Tensor
from torchrl.data import Binary, Bounded, Categorical, TensorSpec, Unbounded

from torchrl_shm.checks import check_count, check_option
from torchrl_shm.envs._checks import check_size
from torchrl_shm.envs._situations import (
    ACTIONS,
    APPLE,
    APPLE_CELLS,
    COLUMNS,
    MARGIN,
    PHASES,
    PLAYER,
    ROWS,
    VIEW,
    Tables,
    colors,
)
from torchrl_shm.envs.base import BatchedEnv
from torchrl_shm.envs.contract import Entry, State, Transition

Dtype = Literal["uint8", "float32"]

_NEVER = 2**62


class GridEnv(BatchedEnv):
    """Three rooms of fixed durations, one after the other; a subclass defines their contents.

    Args:
        tables: all situations; those that episodes start in come first.
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
        whole = [isinstance(steps, Integral) and steps > 0 for steps in frames]
        if len(frames) != PHASES or not all(whole):
            raise ValueError(
                f"frames must be {PHASES} whole numbers of steps, each at least 1, got "
                f"{tuple(frames)}"
            )
        check_size("final_reward", final_reward)
        check_count("num_apples", num_apples, 0)
        if num_apples > len(APPLE_CELLS):
            raise ValueError(
                f"num_apples must be 0 to {len(APPLE_CELLS)}, the number of places for apples, "
                f"got {num_apples}"
            )
        check_size("apple_reward", apple_reward, zero=True)
        # 0: apples never come back
        check_count("respawn_every", respawn_every, 0)
        check_option("dtype", dtype, Dtype)

        super().__init__(64 if num_envs is None else num_envs, device)
        self.frames = (frames[0], frames[1], frames[2])
        self.max_steps = sum(frames)
        self.final_reward = final_reward
        self.num_apples = num_apples
        self.apple_reward = apple_reward
        self.respawn_every = respawn_every
        self.image = image

        view, apple = tables.view, colors()[APPLE].unsqueeze(-1)
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
        shape = (3, VIEW, VIEW) if image else (3 * VIEW**2,)
        self._observation_shape = torch.Size((*batch, *shape))
        seen: dict[str, Any] = {"dtype": apple.dtype, "device": self.device}
        high = 1 if dtype == "float32" else 255
        observation: dict[str, TensorSpec] = {
            "observation": Bounded(0, high, shape=self._observation_shape, **seen),
            "previous_action": Bounded(0, 1, shape=torch.Size((*batch, ACTIONS)), **options),
            "previous_reward": Unbounded(torch.Size((*batch, 1)), **options),
            "success": Binary(shape=torch.Size((*batch, 1)), dtype=torch.bool, device=self.device),
        }
        action = Categorical(ACTIONS, shape=batch, dtype=torch.int64, device=self.device)
        self._set_up(observation, action, (0, max(apple_reward, final_reward)), seed)

    @abstractmethod
    def _start_number(self, layout: State) -> Tensor:
        """Number of the situation in which each episode starts, int64 of shape `[B]`."""

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
        """Draw the whole board of one environment; cells out of the agent's sight are darker.

        Args:
            index: which of the environments.
            scale: height and width of a cell in pixels.

        Returns:
            uint8 of shape `[7 * scale, 11 * scale, 3]`, on the CPU.
        """
        situation = int(self._running()["situation"][index])
        board = self._tables.board[situation].cpu()
        apples = self.apples[index].cpu() & (board != PLAYER)
        picture = colors()[board.masked_fill(apples, APPLE)]
        row, column = self.player[index].tolist()
        seen = torch.zeros(ROWS, COLUMNS, 1, dtype=torch.bool)
        seen[
            max(row - MARGIN, 0) : row + MARGIN + 1,
            max(column - MARGIN, 0) : column + MARGIN + 1,
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
        # steps of the episode at which apples can be eaten; the last column is no place
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
            "observation": seen.view(self._observation_shape),
            "previous_action": state["previous_action"],
            "previous_reward": state["previous_reward"],
            "success": tables.success[situation].unsqueeze(-1),
        }


def cell_numbers(given: Tensor, cells: Tensor) -> Tensor:
    """Index of each given cell in `cells` `[C, 2]`, int64 of shape `[B]`; 0 if it is missing."""
    return (given.unsqueeze(1) == cells).all(-1).to(torch.uint8).argmax(-1)
