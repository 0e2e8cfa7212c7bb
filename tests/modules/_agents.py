"""An environment with two agents, and what the tests of several agents do with it."""

from __future__ import annotations

from typing import Any, Literal

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor
from torch.testing import assert_close
from torchrl.data import Categorical, Composite, Unbounded
from torchrl.envs import EnvBase
from torchrl.modules import IndependentNormal, ProbabilisticActor, set_recurrent_mode

from tests.modules._helpers import DTYPE, EXACT, SIZE, Head, join, make_memory, replay

AGENTS = 2
OBSERVED, MEMORY, FEATURES = (("agents", leaf) for leaf in ("observation", "memory", "features"))
ACTION, FLAGS = ("agents", "action"), ("agents", "is_init")


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

        def in_branch(name: str, size: int) -> Any:
            spec = Unbounded(torch.Size((*agents, size)), dtype=dtype)
            return Composite(agents=Composite({name: spec}, shape=agents), shape=batch)

        self.observation_spec = in_branch("observation", SIZE)
        self.action_spec = in_branch("action", 2)
        self.reward_spec = in_branch("reward", 1)
        done_spec: Any = Composite(shape=batch)
        if done != "root":
            done_spec["agents"] = Composite(shape=agents)
        for name in ("done", "terminated"):
            for node in {"root": [()], "both": [(), ("agents",)], "agents": [("agents",)]}[done]:
                shape = torch.Size((*(agents if node else batch), 1))
                done_spec[(*node, name)] = Categorical(2, shape=shape, dtype=torch.bool)
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
        return data.set(("agents", "reward"), self.place[..., :1].clone())

    def _emit(self, done: Tensor) -> TensorDictBase:
        agents = TensorDict({"observation": self.place.clone()}, self.place.shape[:-1])
        data = TensorDict({"agents": agents}, self.batch_size)
        if self.done != "agents":
            data.update({"done": done, "terminated": done.clone()})
        if self.done != "root":
            flags = self._agents(done)
            agents.update({"done": flags.clone(), "terminated": flags.clone()})
        return data


def make(done: str = "root", **options: Any) -> Any:
    """A memory whose flags are where the environment has them."""
    is_init_key: Any = FLAGS if done == "agents" else "is_init"
    keys: list[Any] = [OBSERVED, MEMORY]
    return make_memory(in_keys=keys, out_key=FEATURES, is_init_key=is_init_key, **options)


def make_agents_policy(memory: Any) -> Any:
    """An action of each agent, which writes its log-probability."""
    branch: list[Any] = [("agents", "loc"), ("agents", "scale")]
    return ProbabilisticActor(
        join(memory, TensorDictModule(Head(DTYPE), [FEATURES], branch)),
        in_keys=branch,
        out_keys=[ACTION],
        distribution_class=IndependentNormal,
        return_log_prob=True,
    )


def make_data(batch: tuple[int, ...], flags: Any = "is_init") -> Any:
    """Random sequences with resets, at the root or of each agent."""
    agents = (*batch, AGENTS)
    branch = TensorDict({"observation": torch.randn(*agents, SIZE, dtype=DTYPE)}, agents)
    data = TensorDict({"agents": branch}, batch)
    is_init = torch.rand(*(batch if flags == "is_init" else agents), 1) < 0.2
    is_init[(slice(None),) * (len(batch) - 1) + (0,)] = True
    return data.set(flags, is_init)


def log_prob(policy: Any, batch: Any) -> Any:
    with torch.no_grad(), set_recurrent_mode(True):
        return policy.get_dist(batch.exclude(FEATURES)).log_prob(batch[ACTION])


def assert_replayed(module: Any, policy: Any, batches: list[Any]) -> None:
    for batch in batches:
        is_init = batch[module.is_init_key].squeeze(-1)
        if is_init.ndim == 2:
            is_init = is_init.unsqueeze(-1).expand(*is_init.shape, AGENTS)
        # with state="zero" what was carried over from the last batch is forgotten
        known = is_init.cumsum(1) > 0 if module.state == "zero" else torch.ones_like(is_init)
        assert known.any()
        features = replay(module, batch)[FEATURES]
        assert_close(features[known], batch[FEATURES][known], **EXACT)
        expected = batch["agents", "action_log_prob"]
        assert_close(log_prob(policy, batch)[known], expected[known], **EXACT)
