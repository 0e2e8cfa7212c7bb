"""Memory length: see bits at the start, and be asked for one of them many steps later."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchrl.data import Binary, Bounded, Categorical, TensorSpec

from torchrl_shm.checks import check_count
from torchrl_shm.envs._checks import check_range
from torchrl_shm.envs.base import BatchedEnv
from torchrl_shm.envs.contract import Entry, State, Transition
from torchrl_shm.envs.drawing import Canvas


class MemoryLengthEnv(BatchedEnv):
    """Bits that are shown first, a question that comes last, and nothing in between.

    ## Description

    `num_bits` random bits are shown at the start. Then nothing happens but time, until the number
    of one of them is shown, and the next action has to name that bit. With `num_bits=1` it asks
    for how many steps a memory lasts, and with more for how much it holds.

    The rules are those of `google-deepmind/bsuite` (`bsuite/environments/memory_chain.py`),
    to the step. Its experiment `memory_len` is `num_bits=1` with lengths from 1 to 100, and
    `memory_size` is `length=2` with 1 to 40 bits. What differs:

    - The observation is of shape `[num_bits + 2]`, there `[1, num_bits + 2]`.
    - `previous_action` and `success` are further entries.
    - Bits and questions come from the environment's generator, not from that of NumPy.

    ## Action Space

    `action`: int64 of shape `[B]`, 0 or 1, the bit. Only the last action counts.

    ## Observation Space

    | Entry | Shape | Dtype | Range | Meaning |
    |---|---|---|---|---|
    | `observation` | `[B, num_bits + 2]` | float32 | [-1, num_bits] | time, question, bits |
    | `previous_action` | `[B, 2]` | float32 | 0 or 1 | one-hot action that led here; 0 at reset |
    | `success` | `[B, 1]` | bool | | the question was answered correctly; for logs |

    As in the original, time stands still in the first step, so that step k >= 1 shows what belongs
    to time t = k - 1, and the bits are shown twice: at reset and by the first step.

    | `observation` | Holds | Otherwise |
    |---|---|---|
    | first | 1 - t / `length` | |
    | second | number of the bit that is asked for, 0 to `num_bits` - 1, at t = `length` - 1 | 0 |
    | others | the bits, as 1 and -1, at t = 0 | 0 |

    ## Rewards

    At the last step, 1 if the action is the bit that was asked for and otherwise -1. Before, 0.

    ## Starting State

    Bits and the question are drawn uniformly at every reset.
    `reset(TensorDict({"bits": bits, "query": query}), set_state=True)` takes bits of shape
    `[B, num_bits]`, 0 or 1, and numbers of bits of shape `[B]`.

    ## Episode End

    Terminated after `length` + 1 steps; never truncated.

    Args:
        num_envs: number of environments B.
        length: how long the bits have to be remembered; bsuite's `memory_length`.
        num_bits: number of bits.
        seed: seed of the environment's own generator; `None` draws one from torch's default
            generator.
        device: device of all tensors, state and generator included.

    Raises:
        ValueError: a number is not a whole number, or less than 1.

    Attributes:
        max_steps: length of an episode, `length` + 1.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_shm.envs import MemoryLengthEnv
        >>> env = MemoryLengthEnv(num_envs=1, length=2)
        >>> layout = {"bits": torch.tensor([[1]]), "query": torch.tensor([0])}
        >>> data = env.reset(TensorDict(layout, [1]), set_state=True)
        >>> seen = [data["observation"][0].tolist()]
        >>> for action in (0, 0, 1):
        ...     data = env.step(data.set("action", torch.tensor([action])))["next"]
        ...     seen.append(data["observation"][0].tolist())
        >>> seen
        [[1.0, 0.0, 1.0], [1.0, 0.0, 1.0], [0.5, 0.0, 0.0], [0.0, 0.0, 0.0]]
        >>> data["reward"].item(), data["terminated"].item()
        (1.0, True)

    ## Version History

    - v0: as in bsuite.
    """

    _tensors = ("_frame", "_shows", "_eye")

    def __init__(
        self,
        num_envs: int = 64,
        *,
        length: int = 50,
        num_bits: int = 1,
        seed: int | None = None,
        device: torch.device | str | int = "cpu",
    ) -> None:
        for name, value in {"length": length, "num_bits": num_bits}.items():
            check_count(name, value)
        super().__init__(num_envs, device)
        self.length = length
        self.num_bits = num_bits
        self.max_steps = length + 1

        # what each step shows by itself, and what of the question and the bits; reset is step 0
        time = (torch.arange(length + 2) - 1).clamp(min=0)
        frame = torch.zeros(length + 2, num_bits + 2)
        frame[:, 0] = 1 - time.double() / length
        shows = torch.zeros_like(frame)
        shows[time == length - 1, 1] = 1
        shows[time == 0, 2:] = 1
        self._frame = frame.to(self.device)
        self._shows = shows.to(self.device)
        self._eye = torch.eye(2, device=self.device)

        batch, flag = torch.Size((num_envs,)), torch.Size((num_envs, 1))
        kwargs: dict[str, Any] = {"device": self.device}
        floats: dict[str, Any] = {**kwargs, "dtype": torch.float32}
        size = torch.Size((num_envs, num_bits + 2))
        observation: dict[str, TensorSpec] = {
            "observation": Bounded(-1, num_bits, shape=size, **floats),
            "previous_action": Bounded(0, 1, shape=torch.Size((num_envs, 2)), **floats),
            "success": Binary(shape=flag, dtype=torch.bool, **kwargs),
        }
        action = Categorical(2, shape=batch, dtype=torch.int64, **kwargs)
        self._set_up(observation, action, (-1, 1), seed)

    @property
    def bits(self) -> Tensor:
        """The bits of the running episodes, 0 or 1, int64 of shape `[B, num_bits]`."""
        return self._running()["bits"]

    @property
    def query(self) -> Tensor:
        """Number of the bit that will be asked for, int64 of shape `[B]`."""
        return self._running()["query"]

    def render(self, index: int = 0) -> Tensor:
        """Draw the bits, pale while the agent does not see them, the question and the time.

        Args:
            index: which of the environments.

        Returns:
            uint8 of shape `[240, 360, 3]`, on the CPU.
        """
        state = {name: value[index].cpu() for name, value in self._running().items()}
        step, query = int(state["step_count"]), int(state["query"])
        shown, asked, ended = step <= 1, step == self.length, step == self.max_steps
        columns = min(self.num_bits, 10)
        rows = -(-self.num_bits // columns)
        side = min(40.0, 130 / rows)
        left, top = 180 - columns * side / 2, 93 - rows * side / 2
        canvas = Canvas(360, 240)
        canvas.text((180, top - 10), "bits")
        for i, bit in enumerate(state["bits"].tolist()):
            x, y = left + i % columns * side, top + i // columns * side
            color = ("#d6604d", "#4393c3")[bit] if shown else "#eeeeee"
            canvas.box((x + 2, y + 2), (side - 4, side - 4), color)
            if i == query and (asked or ended):
                canvas.box((x + 2, y + 2), (side - 4, side - 4), color, outline="#ff7f0e", width=3)
            canvas.text((x + side / 2, y + side / 2), str(bit), "white" if shown else "#999999")

        marks = {"bits": 0, "question": self.length, "answer": self.max_steps}
        place = lambda step: (30 + 300 * step / self.max_steps, 185)  # noqa: E731
        canvas.line(place(0), place(self.max_steps), "#cccccc", width=3)
        for name, mark in marks.items():
            canvas.disc(place(mark), 4, "#cccccc")
            x, y = place(mark)
            # question and answer are one step apart
            canvas.text((x, y + 15 if name == "answer" else y - 15), name)
        canvas.disc(place(step), 6, "#e4946d", outline="#191919")

        seen = [f"bit{'s' * (self.num_bits > 1)}"] if shown else []
        seen += [f"question: bit {query}"] if asked else []
        text = f"the agent sees: {', '.join([*seen, 'time'])}"
        if ended:
            answer = int(state["previous_action"].argmax())
            text = f"answer {answer}: {'right' if bool(state['success']) else 'wrong'}"
        canvas.text((180, 225), text)
        return canvas.pixels()

    def _layout(self) -> dict[str, Entry]:
        return {"bits": Entry((self.num_bits,), torch.int64), "query": Entry((), torch.int64)}

    def _check_layout(self, layout: State) -> None:
        check_range("bits", layout["bits"], 0, 1)
        check_range("query", layout["query"], 0, self.num_bits - 1)

    def _draw(self, count: int) -> State:
        options: dict[str, Any] = {"generator": self._generator, "device": self.device}
        return {
            "bits": torch.randint(2, (count, self.num_bits), **options),
            "query": torch.randint(self.num_bits, (count,), **options),
        }

    def _start(self, layout: State) -> State:
        bits, query = layout["bits"], layout["query"][:, None]
        content = torch.cat([torch.zeros_like(query), query, 2 * bits - 1], dim=-1)
        return {
            **layout,
            "content": content.float(),
            "answer": bits.gather(1, query),
            "step_count": torch.zeros_like(layout["query"]),
            "previous_action": torch.zeros((*layout["query"].shape, 2), device=self.device),
            "success": torch.zeros_like(query, dtype=torch.bool),
        }

    def _advance(self, state: State, action: Tensor) -> Transition:
        # rows that wait for others after their end stay at it
        step_count = (state["step_count"] + 1).clamp(max=self.max_steps)
        terminated = (step_count == self.max_steps)[:, None]
        success = terminated & (action[:, None] == state["answer"])
        reward = 2 * success.float() - terminated.float()
        new = {
            **state,
            "step_count": step_count,
            "previous_action": self._eye[action],
            "success": success,
        }
        return Transition(new, reward, terminated, None)

    def _observe(self, state: State) -> State:
        step_count = state["step_count"]
        return {
            "observation": self._frame[step_count] + self._shows[step_count] * state["content"],
            "previous_action": state["previous_action"],
            "success": state["success"],
        }
