"""Small environments, policies and collections that the tests of memories share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import Tensor, nn
from torch.testing import assert_close
from torchrl.collectors import Collector
from torchrl.data import Categorical, Composite, OneHot, Unbounded
from torchrl.envs import EnvBase
from torchrl.modules import (
    ActorValueOperator,
    IndependentNormal,
    ProbabilisticActor,
    ValueOperator,
    set_recurrent_mode,
)
from torchrl.objectives.value import GAE

from torchrl_shm.modules import SHM, MemoryModule, SHMModule

# step by step against one sequence, through the module
STEP: Any = {"rtol": 1e-5, "atol": 1e-6}
EXACT: Any = {"rtol": 1e-10, "atol": 1e-12}

SIZE = 5
# keys and queries are divided by their sum, which may be tiny: float32 would ask for tolerances
# through which an error could slip
DTYPE = torch.float64


class WalkEnv(EnvBase):
    """Random walks that the action pushes, and whose episodes end at different times.

    Episode `n` of environment `b` lasts `3 + (5 b + 7 n) % 11` steps; the odd ones terminate, the
    others are truncated.
    """

    def __init__(
        self,
        num_envs: int | None = 3,
        *,
        dtype: torch.dtype = DTYPE,
        device: str | None = "cpu",
        key: NestedKey = "observation",
        endless: bool = False,
        num_actions: int | None = None,
    ) -> None:
        batch = torch.Size(() if num_envs is None else (num_envs,))
        super().__init__(device=device, batch_size=batch)
        self.key = key
        self.dtype = dtype
        self.endless = endless
        plane, flag = torch.Size((*batch, SIZE)), torch.Size((*batch, 1))
        self.observation_spec = Composite({key: Unbounded(plane, dtype=dtype)}, shape=batch)
        if num_actions is None:
            self.action_spec = Unbounded(torch.Size((*batch, 2)), dtype=dtype)
        else:
            self.action_spec = OneHot(num_actions, shape=torch.Size((*batch, num_actions)))
        self.reward_spec = Unbounded(flag, dtype=dtype)
        flags = ("done", "terminated", "truncated")
        self.full_done_spec = Composite(
            {name: Categorical(2, shape=flag, dtype=torch.bool) for name in flags}, shape=batch
        )
        self.place = torch.zeros(plane, dtype=dtype)
        self.step_count = torch.zeros(flag, dtype=torch.int64)
        self.episode = torch.zeros(flag, dtype=torch.int64)
        self.number = torch.arange(batch.numel()).view(flag)
        self._set_seed(0)

    def _set_seed(self, seed: int | None) -> None:
        self.generator = torch.Generator().manual_seed(seed or 0)

    def _noise(self) -> Tensor:
        return torch.randn(self.place.shape, generator=self.generator, dtype=self.dtype)

    def _reset(self, tensordict: TensorDictBase | None, **kwargs: Any) -> TensorDictBase:
        mask = None if tensordict is None else tensordict.get("_reset", None)
        mask = torch.ones_like(self.step_count, dtype=torch.bool) if mask is None else mask
        mask = mask.reshape(self.step_count.shape)
        self.place = torch.where(mask, self._noise(), self.place)
        self.step_count = self.step_count.masked_fill(mask, 0)
        self.episode = self.episode + mask
        return self._emit(torch.zeros_like(mask))

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        push = tensordict.get("action").to(self.dtype).mean(-1, keepdim=True)
        self.place = 0.7 * self.place + 0.1 * push + self._noise()
        self.step_count = self.step_count + 1
        done = self.step_count >= 3 + (5 * self.number + 7 * self.episode) % 11
        data = self._emit(done & (not self.endless))
        return data.set("reward", self.place[..., :1].clone())

    def _emit(self, done: Tensor) -> TensorDictBase:
        odd = self.episode % 2 == 1
        entries = {"done": done, "terminated": done & odd, "truncated": done & ~odd}
        data = TensorDict(entries, self.batch_size, device=self.device)
        return data.set(self.key, self.place.clone())


def make_env(policy: Any, **options: Any) -> Any:
    """An environment that primes the memories of a policy."""
    make: Any = WalkEnv
    return make(policy=policy, **options)


class EnvFactory:
    """Makes environments in workers, which receive it by pickling."""

    def __init__(self, make: Callable[..., EnvBase] = WalkEnv, **options: Any) -> None:
        self.make = make
        self.options = options

    def __call__(self) -> EnvBase:
        return self.make(**self.options)


def make_memory(memory_size: int = 4, **options: Any) -> Any:
    """A memory from `observation` to `features` whose gates matter from the start."""
    options.setdefault("in_key", "observation")
    options.setdefault("out_key", "features")
    options.setdefault("num_theta", 7)
    options.setdefault("dtype", DTYPE)
    if "in_keys" in options:
        del options["in_key"]
    if "out_keys" in options:
        del options["out_key"]
    module = SHMModule(SIZE, 6, memory_size=memory_size, **options)
    enlarge_theta(module)
    return module


def enlarge_theta(module: nn.Module, factor: float = 2.0) -> None:
    """Released theta are so small that hardly anything depends on the choice."""
    for cell in module.modules():
        if isinstance(cell, SHM) and isinstance(cell.theta, nn.Parameter):
            with torch.no_grad():
                cell.theta.mul_(factor)


class Head(nn.Module):
    def __init__(self, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 2, dtype=dtype)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.linear(x), torch.full((2,), 0.5, dtype=x.dtype).expand(*x.shape[:-1], 2)


def make_actor(
    features: NestedKey = "features", dtype: torch.dtype = DTYPE, *, memory: Any = None
) -> Any:
    """A stochastic action head that writes `action_log_prob`, after a memory of its own perhaps."""
    head: Any = TensorDictModule(Head(dtype), [features], ["loc", "scale"])
    return ProbabilisticActor(
        head if memory is None else join(memory, head),
        in_keys=["loc", "scale"],
        distribution_class=IndependentNormal,
        return_log_prob=True,
    )


def join(*modules: Any) -> Any:
    """One module that runs others in turn."""
    return TensorDictSequential(*modules)


def make_policy(memory: Any = None, dtype: torch.dtype = DTYPE) -> Any:
    memory = make_memory(dtype=dtype) if memory is None else memory
    return join(memory, make_actor(memory.out_keys[0], dtype))


def make_critic(features: NestedKey = "features", dtype: torch.dtype = DTYPE) -> Any:
    return ValueOperator(nn.Linear(6, 1, dtype=dtype), in_keys=[features])


def make_shared(memory: Any = None, dtype: torch.dtype = DTYPE) -> Any:
    """Actor and critic around one memory."""
    memory = make_memory(dtype=dtype) if memory is None else memory
    features = memory.out_keys[0]
    return ActorValueOperator(memory, make_actor(features, dtype), make_critic(features, dtype))


def estimate(batch: Any, critic: Any) -> Any:
    """Advantages as recipes compute them: one pass of the memory over each sequence."""
    truncated = batch["next", "done"] & ~batch["next", "terminated"]
    estimator = GAE(
        gamma=0.9,
        lmbda=0.8,
        value_network=critic,
        shifted=True,
        shifted_budget=1 + int(truncated.sum(-2).max()),
    )
    batch = batch.refine_names(..., "time").exclude("features", "state_value", "loc", "scale")
    with torch.no_grad(), set_recurrent_mode(True):
        return estimator(batch)


def collect(
    policy: Any, env: Any = None, *, num_steps: int = 10, num_batches: int = 3, **options: Any
) -> list[Any]:
    """Batches of sequences `[B, num_steps]`, most of which start in mid-episode."""
    env = WalkEnv() if env is None else env
    lanes = env.batch_size.numel() if isinstance(env, EnvBase) else options.pop("num_lanes")
    frames = lanes * num_steps
    options = {
        "auto_register_policy_transforms": True,
        "total_frames": frames * num_batches,
    } | options
    collector = Collector(env, policy, frames_per_batch=frames, **options)
    try:
        # nothing comes out where the collector fills a buffer
        return [batch.clone() for batch in collector if batch is not None]
    finally:
        collector.shutdown()


def replay(module: Any, batch: Any) -> Any:
    """What recurrent mode computes from collected data; all other entries are kept."""
    outputs = [key for key in module.out_keys if key not in module.in_keys and key != "action"]
    with torch.no_grad(), set_recurrent_mode(True):
        return module(batch.exclude(*outputs))


def make_sequence(batch: tuple[int, ...] = (3, 9), dtype: torch.dtype = DTYPE) -> Any:
    """Random observations with resets at every start and in mid-sequence."""
    is_init = torch.rand(*batch, 1) < 0.2
    is_init[..., 0, :] = True
    return TensorDict(
        {"observation": torch.randn(*batch, SIZE, dtype=dtype), "is_init": is_init}, batch
    )


def step_through(module: MemoryModule, data: Any) -> Any:
    """What a collector with a primer would stack from step mode on `data` `[..., T]`."""
    memory = None
    steps = []
    for step in data.unbind(-1):
        step = step.copy()
        if memory is not None:
            step.set(module.memory_key, memory)
        step = module(step)
        memory = step.get(module.next_memory_key)
        steps.append(step.exclude(module.memory_key))
    return torch.stack(steps, data.ndim - 1)


def make_inputs(cell: Any, batch: int = 3, steps: int = 11) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, a memory that was used before, and resets, also at the first step."""
    x = torch.randn(batch, steps, cell.input_size, dtype=DTYPE)
    with torch.no_grad():
        _, memory, _ = cell(torch.randn(batch, 5, cell.input_size, dtype=DTYPE))
    is_init = torch.rand(batch, steps) < 0.2
    if batch:
        is_init[0, 0], is_init[-1, 0] = True, False
    return x.requires_grad_(), memory.requires_grad_(), is_init


def assert_same(
    found: Any, expected: Any, inputs: list[Tensor], others: Any = None, **tolerance: Any
) -> None:
    """Equal values, and equal gradients of a random combination of them.

    Those of the expected values are taken with respect to `others`, if given.
    """
    tolerance = tolerance or EXACT
    assert_close(tuple(found), tuple(expected), **tolerance)
    weights = [torch.randn_like(value) for value in expected]
    actual = torch.autograd.grad(tuple(found), inputs, weights, retain_graph=True)
    others = inputs if others is None else others
    wanted = torch.autograd.grad(tuple(expected), others, weights, retain_graph=True)
    assert_close(actual, wanted, **tolerance)


class Trace(nn.Module):
    """A memory cell that uses nothing of the library; each way to break it is one method."""

    memory_shape = (SIZE,)
    num_choices: int | None = None
    input_size = SIZE

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(SIZE, SIZE)

    def carry(self, memory: Tensor) -> Tensor:
        """What a step leaves to the next one."""
        return memory

    def start(self, memory: Tensor) -> Tensor:
        """The memory with which a sequence starts, computed from the given one."""
        return memory

    def reset(self, memory: Tensor, is_init: Tensor) -> Tensor:
        """What a reset leaves of the memory."""
        return torch.where(is_init, 0, memory)

    def read(self, memory: Tensor) -> Tensor:
        """The output of a step."""
        return memory

    def read_sequence(self, y: Tensor) -> Tensor:
        """The outputs of a sequence."""
        return y

    def step(
        self, x: Tensor, memory: Tensor | None = None, choice: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        memory = torch.zeros_like(x) if memory is None else memory
        memory = 0.5 * self.carry(memory) + torch.tanh(self.linear(x))
        return self.read(memory), memory, None

    def forward(
        self,
        x: Tensor,
        memory: Tensor | None = None,
        is_init: Tensor | None = None,
        choice: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        memory = torch.zeros_like(x[:, 0]) if memory is None else self.start(memory)
        outputs: list[Tensor] = []
        for t in range(x.shape[1]):
            if is_init is not None:
                memory = self.reset(memory, is_init[:, t, None])
            y, memory, _ = self.step(x[:, t], memory)
            outputs.append(y)
        return self.read_sequence(torch.stack(outputs, 1)), memory, None


def run_steps(cell: Any, x: Tensor, memory: Tensor, is_init: Tensor, index: Any) -> Any:
    """A sequence one step after the other, on a cell: outputs and final memory."""
    outputs: list[Tensor] = []
    for t in range(x.shape[1]):
        first = is_init[:, t].view(-1, *(1 for _ in cell.memory_shape))
        memory = torch.where(first, 0, memory)
        y, memory, _ = cell.step(x[:, t], memory, None if index is None else index[:, t])
        outputs.append(y)
    return torch.stack(outputs, 1), memory
