"""Policies of every memory, a scripted environment, and a limit on time."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import Binary, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase
from torchrl.modules import ActorValueOperator

from torchrl_shm import SHMModule, WindEnv
from torchrl_shm.modules import GRU, LSTM, make_memory, make_mlp
from torchrl_shm.networks import make_actor_critic

MEMORIES: dict[str, Any] = {
    "shm": SHMModule,
    "gru": partial(make_memory, cell=GRU),
    "lstm": partial(make_memory, cell=LSTM),
    "mlp": make_mlp,
}
KEYS = ["observation", "previous_action"]


def make_operator(memory: Any = SHMModule, env: EnvBase | None = None) -> ActorValueOperator:
    return make_actor_critic(env or WindEnv(2), memory, policy_keys=KEYS)


class Countdown(EnvBase):
    """Environment `b` ends after `b + 1` steps; step `t` of all, from 1, is worth `t`.

    Args:
        success: whether step `t` of environment `b` is one, `[B, T]`; no such entry without it.
        action_spec: of one environment.
    """

    def __init__(
        self, num_envs: int, *, success: torch.Tensor | None = None, action_spec: Any = None
    ) -> None:
        super().__init__(batch_size=(num_envs,))
        plane, flag = (num_envs, 2), (num_envs, 1)
        self.success = success
        self.observation_spec = Composite(
            observation=Unbounded(plane), previous_action=Unbounded(plane), shape=(num_envs,)
        )
        if success is not None:
            self.observation_spec["success"] = Binary(shape=flag, dtype=torch.bool)
        self.action_spec = Unbounded(plane) if action_spec is None else action_spec
        self.reward_spec = Unbounded(flag)
        self.full_done_spec = Composite(
            {
                name: Categorical(2, shape=torch.Size(flag), dtype=torch.bool)
                for name in ("done", "terminated", "truncated")
            },
            shape=(num_envs,),
        )
        self.last = torch.arange(1, num_envs + 1).unsqueeze(-1)

    def _emit(self) -> TensorDict:
        done = self.step_count >= self.last
        data = TensorDict(
            {
                "observation": torch.zeros(*self.batch_size, 2),
                "previous_action": torch.zeros(*self.batch_size, 2),
                "done": done,
                "terminated": done.clone(),
                "truncated": torch.zeros_like(done),
            },
            self.batch_size,
        )
        if self.success is not None:
            column = max(self.step_count - 1, 0)
            data["success"] = self.success[:, column, None] & torch.tensor(self.step_count > 0)
        return data

    def _reset(self, tensordict: TensorDictBase | None, **kwargs: Any) -> TensorDictBase:
        self.step_count = 0
        return self._emit()

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        self.step_count += 1
        reward = torch.full((*self.batch_size, 1), float(self.step_count))
        return self._emit().set("reward", reward)

    def _set_seed(self, seed: int | None) -> None:
        pass


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Fail rather than hang."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
