"""What all environments share: state in tensors, partial resets, layouts that can be given."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NamedTuple, Self

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Bounded, Categorical, Composite, TensorSpec
from torchrl.envs import EnvBase

State = dict[str, Tensor]
"""What an episode is made of: tensors `[B, ...]`, replaced as a whole, never written to."""


class Entry(NamedTuple):
    """Shape of one environment's part of a layout, and its dtype."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class Transition(NamedTuple):
    """What a step leads to.

    Attributes:
        state: the state after the step.
        reward: float32 of shape `[B, 1]`.
        terminated: bool of shape `[B, 1]`; `None` where an episode never ends by itself.
        truncated: bool of shape `[B, 1]`; `None` where nothing cuts it.
    """

    state: State
    reward: Tensor
    terminated: Tensor | None
    truncated: Tensor | None


class BatchedEnv(EnvBase):
    """A batch of environments whose whole state is tensors on one device.

    A layout is what is drawn when an episode starts (a wind, a deck, a maze). A subclass says what
    a layout holds (`_layout`), how layouts are drawn (`_draw`), how an episode starts from them
    (`_start`), what a step does (`_advance`) and what is seen (`_observe`); all of these are pure
    functions of tensors and wait for no device. It calls `_set_up` at the end of its constructor.

    Args:
        num_envs: number of environments B.
        device: device of all tensors, state and generator included.

    Raises:
        ValueError: `num_envs` is not positive.
    """

    policy_keys: tuple[str, ...] = ("observation", "previous_action")
    """Observation entries that a policy is meant to read."""

    _supports_set_state = True
    # attributes that `to` moves besides the state
    _tensors: tuple[str, ...] = ()
    # on the CPU, draw and start only the rows that start; elsewhere the host would have to wait
    _draws_rows = False

    def __init__(self, num_envs: int, device: torch.device | str | int) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, got {num_envs}")
        super().__init__(device=torch.device(device), batch_size=(num_envs,))
        self._state: State | None = None
        # on other devices looking at the actions would make the host wait
        self._checks_actions = self.device.type == "cpu"

    def _set_up(
        self,
        observation: dict[str, TensorSpec],
        action: TensorSpec,
        reward: tuple[float, float],
        seed: int | None,
    ) -> None:
        """Declare the specs and seed the generator.

        Args:
            observation: specs of shape `[B, ...]` by name.
            action: spec of shape `[B]` or `[B, A]`.
            reward: smallest and largest reward of a step.
            seed: seed of the environment's generator; `None` draws one from torch's default one.
        """
        batch, device = self.batch_size, self.device
        flag = torch.Size((*batch, 1))
        self.action_spec = action
        self.observation_spec = Composite(observation, shape=batch, device=device)
        self.reward_spec = Bounded(*reward, shape=flag, dtype=torch.float32, device=device)
        self.full_done_spec = Composite(
            {
                name: Categorical(2, shape=flag, dtype=torch.bool, device=device)
                for name in ("done", "terminated", "truncated")
            },
            shape=batch,
            device=device,
        )
        self._set_seed(int(torch.randint(2**63 - 1, ())) if seed is None else seed)

    @abstractmethod
    def _layout(self) -> dict[str, Entry]:
        """What a layout holds, by name; also the entries that `set_state=True` needs."""

    @abstractmethod
    def _draw(self, count: int) -> State:
        """Draw layouts `[count, ...]` from the environment's generator."""

    @abstractmethod
    def _start(self, layout: State) -> State:
        """Make the state at the start of episodes with the given layouts."""

    @abstractmethod
    def _advance(self, state: State, action: Tensor) -> Transition:
        """Make one step."""

    @abstractmethod
    def _observe(self, state: State) -> State:
        """Emit the observation entries; none may be a tensor of the state that is written to."""

    def _check_layout(self, layout: State) -> None:
        """Raise ValueError where a given layout cannot be played."""

    @property
    def num_envs(self) -> int:
        """Number of environments B."""
        return self.batch_size[0]

    def to(self, device: torch.device | str | int) -> Self:
        """Move everything to another device; the generator starts anew there, from its seed."""
        before = self.device
        super().to(device)
        self._checks_actions = self.device.type == "cpu"
        if self.device != before:
            for name in self._tensors:
                setattr(self, name, getattr(self, name).to(self.device))
            if self._state is not None:
                self._state = {name: x.to(self.device) for name, x in self._state.items()}
            # the state of a generator means nothing to a generator of another device
            self._set_seed(self._generator.initial_seed())
        return self

    def get_extra_state(self) -> dict[str, Any]:
        """Running episodes and generator, so that `state_dict` is all it takes to go on."""
        return {**(self._state or {}), "generator": self._generator.get_state()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Go on from what `get_extra_state` returned, for the same number of environments."""
        entries = dict(state)
        generator = entries.pop("generator")
        found = {len(entry) for entry in entries.values()}
        if found - {self.num_envs}:
            raise ValueError(
                f"the saved state is of {max(found)} environments, this is {self.num_envs}; "
                f"build it with num_envs={max(found)}"
            )
        self._generator.set_state(generator.cpu())
        moved = {name: entry.to(self.device) for name, entry in entries.items()}
        self._state = moved or None

    def _set_seed(self, seed: int | None) -> None:
        self._generator = torch.Generator(self.device)
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(seed)

    def _running(self) -> State:
        if self._state is None:
            raise RuntimeError("no episode is running; call reset() first")
        return self._state

    def _assert_tensordict_shape(self, tensordict: TensorDictBase) -> None:
        # TensorDict({"wind": wind}), without a batch size, means that of the environment
        if not tensordict.batch_size and self._layout().keys() & set(tensordict.keys()):
            self._given(tensordict)
            tensordict.batch_size = self.batch_size  # pyright: ignore[reportAttributeAccessIssue]
        super()._assert_tensordict_shape(tensordict)

    def _given(self, tensordict: TensorDictBase | None) -> State:
        """Take the layout that `set_state=True` comes with."""
        entries = self._layout()
        layout: State = {}
        for name, entry in entries.items():
            value = None if tensordict is None else tensordict.get(name, None)
            shape = (*self.batch_size, *entry.shape)
            if value is None or value.shape != shape:
                example = ", ".join(f'"{key}": {key}' for key in entries)
                raise ValueError(
                    f'set_state=True needs an entry "{name}" of shape {shape}, got '
                    f"{'none' if value is None else tuple(value.shape)}; reset with "
                    f"TensorDict({{{example}}}, batch_size={list(self.batch_size)}), below "
                    "transforms, which drop the entries, with env.base_env.reset after env.reset"
                )
            layout[name] = value.to(self.device, entry.dtype)
        self._check_layout(layout)
        return layout

    def _reset(
        self, tensordict: TensorDictBase | None, *, set_state: bool = False, **kwargs: Any
    ) -> TensorDictBase:
        mask = None if tensordict is None else tensordict.get("_reset", None)
        old = self._state
        if old is None or mask is None:
            layout = self._given(tensordict) if set_state else self._draw(self.num_envs)
            new = self._begin_episodes(layout)
        elif self._draws_rows and not set_state and mask.device.type == "cpu":
            rows = mask.reshape(self.batch_size).nonzero().squeeze(-1)
            started = self._begin_episodes(self._draw(len(rows)))
            new = {name: value.index_copy(0, rows, started[name]) for name, value in old.items()}
        else:
            layout = self._given(tensordict) if set_state else self._draw(self.num_envs)
            started = self._begin_episodes(layout)
            new = _where(mask.reshape(self.batch_size), started, old)
        self._state = new
        return self._emit(new)

    def _begin_episodes(self, layout: State) -> State:
        state = self._start(layout)
        count = len(next(iter(state.values())))
        never = torch.zeros((count, 1), dtype=torch.bool, device=self.device)
        return {**state, "terminated": never, "truncated": never}

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        old = self._running()
        # no gradient: it would tie all steps that follow to the policy
        action = tensordict.get("action").detach()
        if self._checks_actions:
            self._check_action(action)
        state, reward, terminated, truncated = self._advance(old, action)
        never = torch.zeros_like(old["truncated"])
        new = {
            **state,
            "terminated": never if terminated is None else terminated,
            "truncated": never if truncated is None else truncated,
        }
        # torchrl's way to let some environments wait
        if (mask := tensordict.get("_step", None)) is not None:
            mask = mask.reshape(self.batch_size)
            new = _where(mask, new, old)
            reward = reward * mask.unsqueeze(-1)
        self._state = new
        return self._emit(new, reward)

    def _check_action(self, action: Tensor) -> None:
        """Raise ValueError for a discrete action that does not exist; others are clipped."""
        spec = self.action_spec
        # several indices are a subclass with a check of their own
        if type(spec) is Categorical and action.numel():
            low, high = (int(x) for x in torch.aminmax(action))
            if low < 0 or high >= spec.n:
                raise ValueError(
                    f"actions of {type(self).__name__} are 0 to {spec.n - 1}, got {low} to {high}"
                )

    def _emit(self, state: State, reward: Tensor | None = None) -> TensorDictBase:
        terminated, truncated = state["terminated"], state["truncated"]
        entries = self._observe(state)
        # tensors of their own: what others do to them must not reach the state
        entries["done"] = terminated | truncated
        entries["terminated"] = terminated.clone()
        entries["truncated"] = truncated.clone()
        if reward is not None:
            entries["reward"] = reward
        # as torchrl's own envs do: checking what is known would cost as much as six operations
        return TensorDict._new_unsafe(  # pyright: ignore[reportPrivateUsage]
            entries, batch_size=self.batch_size, device=self.device
        )


def _where(mask: Tensor, new: State, old: State) -> State:
    """Take the rows of `new` where `mask` of shape `[B]` is true."""
    return {
        name: torch.where(mask.view(-1, *(1,) * (x.ndim - 1)), new[name], x)
        for name, x in old.items()
    }
