"""An environment with two agents, and what the tests of several agents do with it."""

from __future__ import annotations

from typing import Any, Literal

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor
from torchrl.data import Categorical, Composite, Unbounded
from torchrl.envs import EnvBase
from torchrl.modules import IndependentNormal, ProbabilisticActor

from tests.modules._helpers import DTYPE, SIZE, Head, join, make_memory

AGENTS = 2
OBSERVED, MEMORY, FEATURES = (("agents", leaf) for leaf in ("observation", "memory", "features"))
ACTION = ("agents", "action")


class AgentsEnv(EnvBase):
    """Agents on random walks, each pushed by its action.

    Where `done` is `"root"`, episode `n` of environment `b` lasts `3 + (5 b + 7 n) % 11` steps for
    all of its agents; `"both"` writes the same flags in the branch, too. With `"agents"` the branch
    alone has flags, and each agent has episodes of its own.
    """

    def __init__(
        self,
        num_envs: int | None = 3,
        *,
        done: Literal["root", "both", "agents"] = "root",
        dtype: torch.dtype = DTYPE,
    ) -> None:
        batch = torch.Size(() if num_envs is None else (num_envs,))
        super().__init__(device="cpu", batch_size=batch)
        self.done = done
        self.dtype = dtype
        agents = torch.Size((*batch, AGENTS))

        def in_branch(**specs: Any) -> Any:
            return Composite(agents=Composite(specs, shape=agents), shape=batch)

        self.observation_spec = in_branch(observation=Unbounded((*agents, SIZE), dtype=dtype))
        self.action_spec = in_branch(action=Unbounded((*agents, 2), dtype=dtype))
        self.reward_spec = in_branch(reward=Unbounded((*agents, 1), dtype=dtype))

        def flags(shape: torch.Size) -> dict[str, Any]:
            names = ("done", "terminated")
            return {name: Categorical(2, shape=(*shape, 1), dtype=torch.bool) for name in names}

        done_spec: Any = Composite(flags(batch) if done != "agents" else {}, shape=batch)
        if done != "root":
            done_spec["agents"] = Composite(flags(agents), shape=agents)
        self.full_done_spec = done_spec
        # who ends an episode: an agent, or an environment
        lanes = agents if done == "agents" else batch
        self.number = torch.arange(lanes.numel()).view(*lanes, 1)
        self.step_count = torch.zeros_like(self.number)
        self.episode = torch.zeros_like(self.number)
        self.place = torch.zeros(*agents, SIZE, dtype=dtype)
        self._set_seed(0)

    def _set_seed(self, seed: int | None) -> None:
        self.generator = torch.Generator().manual_seed(seed or 0)

    def _noise(self) -> Tensor:
        return torch.randn(self.place.shape, generator=self.generator, dtype=self.dtype)

    def _agents(self, flags: Tensor) -> Tensor:
        if self.done == "agents":
            return flags
        return flags.unsqueeze(-2).expand(self.place[..., :1].shape)

    def _reset(self, tensordict: TensorDictBase | None, **kwargs: Any) -> TensorDictBase:
        key = ("agents", "_reset") if self.done == "agents" else "_reset"
        mask = None if tensordict is None else tensordict.get(key, None)
        mask = torch.ones_like(self.step_count, dtype=torch.bool) if mask is None else mask
        mask = mask.reshape(self.step_count.shape)
        self.place = torch.where(self._agents(mask), self._noise(), self.place)
        self.step_count = self.step_count.masked_fill(mask, 0)
        self.episode = self.episode + mask
        return self._emit(torch.zeros_like(mask))

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        push = tensordict.get(ACTION).mean(-1, keepdim=True)
        self.place = 0.7 * self.place + 0.1 * push + self._noise()
        self.step_count = self.step_count + 1
        data = self._emit(self.step_count >= 3 + (5 * self.number + 7 * self.episode) % 11)
        data["agents"].set("reward", self.place[..., :1].clone())
        return data

    def _emit(self, done: Tensor) -> TensorDictBase:
        agents = TensorDict({"observation": self.place.clone()}, self.place.shape[:-1])
        data = TensorDict({"agents": agents}, self.batch_size)
        if self.done != "agents":
            data.update({"done": done, "terminated": done.clone()})
        if self.done != "root":
            flags = self._agents(done)
            agents.update({"done": flags.clone(), "terminated": flags.clone()})
        return data


def make_agents_memory(**options: Any) -> Any:
    """A memory of the branch."""
    return make_memory(in_keys=[OBSERVED, MEMORY], out_key=FEATURES, **options)


def make_agents_policy(memory: Any) -> Any:
    """An action for each agent."""
    branch = [("agents", "loc"), ("agents", "scale")]
    actor = ProbabilisticActor(
        TensorDictModule(Head(DTYPE), [FEATURES], branch),
        in_keys=branch,
        out_keys=[ACTION],
        distribution_class=IndependentNormal,
        return_log_prob=True,
    )
    return join(memory, actor)
