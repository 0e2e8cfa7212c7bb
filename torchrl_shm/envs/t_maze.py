"""T-Maze: see a cue, walk down a corridor, and turn to the side that the cue named."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torchrl.data import Binary, Bounded, Categorical, TensorSpec

from torchrl_shm.checks import check_count
from torchrl_shm.envs.base import BatchedEnv
from torchrl_shm.envs.contract import Entry, State, Transition
from torchrl_shm.envs.drawing import Canvas

# actions 0 to 3
_MOVES = ((1, 0), (0, 1), (-1, 0), (0, -1))
# state of the cue: not seen yet, shown right now, seen before
_UNSEEN, _SHOWN, _OVER = range(3)


class TMazeEnv(BatchedEnv):
    """A corridor that shows at its start on which side of its end the goal is.

    ## Description

    A corridor runs from the oracle at x = 0 to a junction, where it ends in two arms, y = 1 and
    y = -1. The goal is in one of them, and the oracle says in which, once. All cells between look
    the same, so that the agent has to carry one bit through the whole corridor. With `passive` it
    starts at the oracle; otherwise one cell beside it, and has to walk there first, away from the
    goal.

    The rules are those of `twni2016/Memory-RL` (`envs/tmaze.py`, `TMazeClassicPassive` and
    `TMazeClassicActive`, with the penalty of `configs/envs/tmaze_passive.py`), which have their
    idea from Bakker (2001). What differs: rewards are rounded to float32, the goal is drawn by the
    environment's own generator, and `distract_reward`, which no configuration sets, is left out.

    ## Action Space

    `action`: int64 of shape `[B]`: 0 to x + 1, 1 to y + 1, 2 to x - 1, 3 to y - 1. A move into a
    wall changes nothing.

    ## Observation Space

    | Entry | Shape | Dtype | Range | Meaning |
    |---|---|---|---|---|
    | `observation` | `[B, 2]` | float32 | [-1, 1] | see below |
    | `previous_action` | `[B, 4]` | float32 | 0 or 1 | one-hot action that led here; 0 at reset |
    | `previous_reward` | `[B, 1]` | float32 | [-1/L, 1] | reward that came with it; 0 at reset |
    | `success` | `[B, 1]` | bool | | the episode ended in the arm of the goal; for logs |

    | Where | `observation` |
    |---|---|
    | at the oracle, for the first time | (0, 1) or (0, -1): the arm of the goal |
    | at the oracle later, and in the corridor | (0, 0) |
    | at the junction | (1, 0) |
    | in an arm | (1, 1) or (1, -1): the arm |

    ## Rewards

    At the last step, 1 in the arm of the goal and 0 elsewhere. At the others, `penalty` if the
    agent is behind the schedule of the fastest way, and otherwise 0: if x < t - o after step t,
    with o = 0 if `passive` and otherwise 1. The schedule has time for the oracle
    and the way to the goal, so 1 is the best return. With the default penalty, -1 is the worst, or
    -1 - 1/L if not `passive`.

    ## Starting State

    x = 0 if `passive`, otherwise x = 1, with y = 0. The goal is drawn at every reset, either arm
    with equal probability. `reset(TensorDict({"goal": goal}), set_state=True)` takes goals of
    shape `[B]`, 1 or -1.

    ## Episode End

    Terminated after `length` + 1 steps if `passive`, otherwise after `length` + 3, as long as the
    way to the goal (by way of the oracle) takes; wherever the agent is then. Never truncated: the
    horizon is part of the task.

    Args:
        num_envs: number of environments B.
        length: length L of the corridor, from the start to the junction.
        passive: start at the oracle.
        penalty: reward of a step behind schedule; `None` is -1 / `length`.
        seed: seed of the environment's own generator; `None` draws one from torch's default
            generator.
        device: device of all tensors, state and generator included.

    Raises:
        ValueError: `num_envs` or `length` is not a whole number, or less than 1; `penalty` is
            positive or not finite.

    Attributes:
        max_steps: length of an episode.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_shm.envs import TMazeEnv
        >>> env = TMazeEnv(num_envs=2, length=3)
        >>> data = env.reset(TensorDict({"goal": torch.tensor([1, -1])}, [2]), set_state=True)
        >>> data["observation"]
        tensor([[ 0.,  1.],
                [ 0., -1.]])
        >>> for action in (0, 0, 0, 1):
        ...     data = env.step(data.set("action", torch.full((2,), action)))["next"]
        >>> data["reward"][:, 0], data["terminated"][:, 0]
        (tensor([1., 0.]), tensor([True, True]))

    ## Version History

    - v0: as in Memory-RL.
    """

    policy_keys = ("observation", "previous_action", "previous_reward")

    _tensors = ("_next", "_observation", "_due", "_in_goal", "_eye")

    def __init__(
        self,
        num_envs: int = 64,
        *,
        length: int = 10,
        passive: bool = True,
        penalty: float | None = None,
        seed: int | None = None,
        device: torch.device | str | int = "cpu",
    ) -> None:
        check_count("length", length)
        if penalty is None:
            penalty = -1 / length
        if not -math.inf < penalty <= 0:
            raise ValueError(f"penalty must be finite and not positive, got {penalty}")
        super().__init__(num_envs, device)
        self.length = length
        self.passive = passive
        self.penalty = penalty
        self._oracle = 0 if passive else 1
        self.max_steps = length + 1 + 2 * self._oracle
        self._make_tables()

        batch, flag = torch.Size((num_envs,)), torch.Size((num_envs, 1))
        kwargs: dict[str, Any] = {"device": self.device}
        floats: dict[str, Any] = {**kwargs, "dtype": torch.float32}
        observation: dict[str, TensorSpec] = {
            "observation": Bounded(-1, 1, shape=torch.Size((num_envs, 2)), **floats),
            "previous_action": Bounded(0, 1, shape=torch.Size((num_envs, 4)), **floats),
            "previous_reward": Bounded(penalty, 1, shape=flag, **floats),
            "success": Binary(shape=flag, dtype=torch.bool, **kwargs),
        }
        action = Categorical(4, shape=batch, dtype=torch.int64, **kwargs)
        self._set_up(observation, action, (penalty, 1), seed)

    @property
    def goal(self) -> Tensor:
        """The arm of the goal, 1 or -1, int64 of shape `[B]`; hidden from the agent."""
        return self._running()["goal"]

    def render(self, index: int = 0) -> Tensor:
        """Draw the maze, the agent, and what it sees; also the goal, which it does not see.

        Args:
            index: which of the environments.

        Returns:
            uint8 of shape `[240, 360, 3]`, on the CPU.
        """
        state = {name: value[index].cpu() for name, value in self._running().items()}
        place, goal = int(state["automaton"]) // 6, int(state["goal"])
        junction = self._oracle + self.length
        width = min(40, 300 / (junction + 1))
        # long corridors are thin, but not too thin for the agent
        side = max(width, 16)
        left, middle = 180 - width * junction / 2, 115
        canvas = Canvas(360, 240)

        def box(x: int, y: int, wide: float, color: str) -> None:
            corner = (left + x * width - wide / 2, middle - y * side - side / 2)
            # cells that are very narrow are drawn as a whole
            canvas.box(corner, (wide, side), color, outline="#ffffff" if wide > 8 else None)

        for x in range(junction):
            box(x, 0, width, "#cccccc")
        for arm in (1, 0, -1):
            box(junction, arm, side, "#8cb200" if arm == goal else "#cccccc")
        box(0, 0, side, "#86ceeb")
        canvas.text((left, middle + goal * (side / 2 + 10)), "oracle")
        canvas.text((left + junction * width, middle - goal * (1.5 * side + 10)), "goal")

        x, y = min(place, junction), (0, 1, -1)[max(place - junction, 0)]
        canvas.disc(
            (left + x * width, middle - y * side), 0.35 * side, "#e4946d", outline="#191919"
        )
        seen = "nothing"
        if int(state["automaton"]) % 3 == _SHOWN:
            seen = f"the goal is {'up' if goal == 1 else 'down'}"
            start = middle - goal * 0.6 * side
            canvas.arrow((left, start), (left, start - 35 * goal), "#2ca02c")
        elif place == junction:
            seen = "the junction"
        elif place > junction:
            seen = f"the {'upper' if y == 1 else 'lower'} arm"
        canvas.text((180, 215), f"the agent sees: {seen}")
        if bool(state["terminated"]):
            reached = "reached" if bool(state["success"]) else "missed"
            canvas.text((180, 230), f"the goal was {reached}")
        return canvas.pixels()

    def _make_tables(self) -> None:
        """Make the maze as an automaton, whose state is a place and the state of the cue.

        State `s` is place `s // 6` with goal `(s // 3) % 2` (0 is y = 1) and cue `s % 3`.
        """
        junction = self._oracle + self.length
        cells = [(x, 0) for x in range(junction + 1)] + [(junction, 1), (junction, -1)]
        place = {cell: i for i, cell in enumerate(cells)}

        def neighbor(cell: tuple[int, int], move: tuple[int, int]) -> tuple[int, int]:
            target = (cell[0] + move[0], cell[1] + move[1])
            return target if target in place else cell

        follows = torch.tensor([[place[neighbor(c, move)] for move in _MOVES] for c in cells])
        x, y = torch.tensor(cells).T
        goal, cue = torch.arange(2)[:, None], torch.arange(3)
        # the cue is shown at the oracle and over at the next step, wherever that leads
        shown = torch.where((follows == 0)[..., None] & (cue == _UNSEEN), _SHOWN, _OVER)
        keeps = (follows != 0)[..., None] & (cue == _UNSEEN)
        after = torch.where(keeps, _UNSEEN, shown)
        # [place, action, goal, cue] -> [state, action]
        state = follows[..., None, None] * 6 + goal * 3 + after[..., None, :]
        self._next = state.permute(0, 2, 3, 1).reshape(-1, 4).to(self.device)

        at_end, arm = (x == junction).float(), y.float()
        seen = torch.stack([at_end, arm], dim=-1)[:, None, None].repeat(1, 2, 3, 1)
        seen[0, :, _SHOWN, 1] = torch.tensor([1.0, -1.0])
        self._observation = seen.view(-1, 2).to(self.device)
        # the step after which the agent is to be there at the latest
        self._due = (x + self._oracle).repeat_interleave(6)[:, None].to(self.device)
        in_goal = (y[:, None, None] == 1 - 2 * goal).expand(-1, 2, 3)
        self._in_goal = in_goal.reshape(-1, 1).float().to(self.device)
        self._eye = torch.eye(4, device=self.device)

    def _layout(self) -> dict[str, Entry]:
        return {"goal": Entry((), torch.int64)}

    def _check_layout(self, layout: State) -> None:
        goal = layout["goal"]
        if (wrong := goal[goal.abs() != 1]).numel():
            raise ValueError(f'"goal" must be 1 or -1, the arm that it is in, got {wrong[0]}')

    def _draw(self, count: int) -> State:
        bit = torch.randint(2, (count,), generator=self._generator, device=self.device)
        return {"goal": 1 - 2 * bit}

    def _start(self, layout: State) -> State:
        goal = layout["goal"]
        cue = _SHOWN if self.passive else _UNSEEN
        zeros = torch.zeros((*goal.shape, 4), device=self.device)
        return {
            "goal": goal,
            "automaton": (1 - goal) // 2 * 3 + (self._oracle * 6 + cue),
            "step_count": torch.zeros_like(goal)[:, None],
            "previous_action": zeros,
            "previous_reward": torch.zeros_like(zeros[:, :1]),
            "success": torch.zeros_like(zeros[:, :1], dtype=torch.bool),
        }

    def _advance(self, state: State, action: Tensor) -> Transition:
        automaton = self._next[state["automaton"], action]
        step_count = state["step_count"] + 1
        terminated = step_count >= self.max_steps
        in_goal = self._in_goal[automaton]
        late = self._due[automaton] < step_count
        reward = torch.where(terminated, in_goal, late * self.penalty)
        new = {
            "goal": state["goal"],
            "automaton": automaton,
            "step_count": step_count,
            "previous_action": self._eye[action],
            "previous_reward": reward,
            "success": terminated & in_goal.bool(),
        }
        # a tensor of its own: what a training loop does to rewards must not reach the state
        return Transition(new, reward.clone(), terminated, None)

    def _observe(self, state: State) -> State:
        return {
            "observation": self._observation[state["automaton"]],
            "previous_action": state["previous_action"],
            "previous_reward": state["previous_reward"],
            "success": state["success"],
        }
