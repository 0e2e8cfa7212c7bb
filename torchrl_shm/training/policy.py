"""An actor and a critic around one memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import log
from typing import Any

import torch
from tensordict import NestedKey
from tensordict.nn import AddStateIndependentNormalScale, TensorDictModule, TensorDictModuleBase
from tensordict.nn import TensorDictSequential as Sequential
from torch import nn
from torchrl.data import Bounded, Unbounded
from torchrl.envs import EnvBase
from torchrl.modules import ActorValueOperator, IndependentNormal, ProbabilisticActor, ValueOperator

MemoryFactory = Callable[..., TensorDictModuleBase]
"""Makes a memory module from `input_size`, `output_size`, `in_key`, `out_key` and `device`."""


def make_actor_critic(
    env: EnvBase,
    memory: MemoryFactory,
    *,
    policy_keys: Sequence[NestedKey],
    embedding_size: int = 64,
    hidden_sizes: Sequence[int] = (64, 64),
    init_scale: float = 0.3,
    device: torch.device | str | None = None,
) -> ActorValueOperator:
    """Build embedding -> memory -> {action head, value head} with one shared memory.

    Both heads also read the embedding of the current step, as in the authors' meta-RL networks
    (repository `thaihungle/SHM`, `pomdp-baselines/policies/models`). Actions are Gaussian with a
    learned standard deviation; the environment clips them.

    Args:
        env: environment whose specs give the sizes; its action is continuous, of shape `[A]`.
        memory: factory of the memory module, with as many outputs as inputs.
        policy_keys: observation entries that the policy reads, concatenated.
        embedding_size: features per step that the memory reads and writes.
        hidden_sizes: widths of the hidden layers of each head.
        init_scale: initial standard deviation of the actions, in units of the action.
        device: device of the parameters.

    Returns:
        The operator; `get_policy_operator()`, `get_value_operator()` and `get_value_head()` give
        its parts. Entries: `embedding`, `features`, `loc`, `scale`, `action`, `state_value`.

    Raises:
        KeyError: a policy key is not an observation of the environment.
        TypeError: the action is not continuous.

    Examples:
        >>> from torchrl_shm import SHMModule, WindEnv
        >>> from torchrl_shm.training import make_actor_critic
        >>> keys = ["observation", "previous_action"]
        >>> operator = make_actor_critic(WindEnv(4), SHMModule, policy_keys=keys)
        >>> operator.get_value_head().out_keys
        ['state_value']
    """
    action_spec = env.action_spec_unbatched
    if not isinstance(action_spec, (Bounded, Unbounded)) or not action_spec.dtype.is_floating_point:
        raise TypeError(f"the action of {env} is {action_spec}; only continuous ones are supported")
    observations = env.observation_spec_unbatched
    available = set(observations.keys(True, True))
    missing = [key for key in policy_keys if key not in available]
    if missing:
        raise KeyError(
            f"{missing} of policy_keys are not observations of the environment, "
            f"which has {sorted(map(str, available))}"
        )
    input_size = sum(observations[key].shape[-1] for key in policy_keys)
    embed: Any = TensorDictModule(
        _Embedding(input_size, embedding_size, device), list(policy_keys), ["embedding"]
    )
    memory_module: Any = memory(
        input_size=embedding_size,
        output_size=embedding_size,
        in_key="embedding",
        out_key="features",
        device=device,
    )
    head_keys: list[NestedKey] = ["features", "embedding"]
    action_size = action_spec.shape[-1]
    scale = AddStateIndependentNormalScale(action_size, init_value=log(init_scale)).to(device)
    sizes = (2 * embedding_size, *hidden_sizes)
    action_head: list[Any] = [
        TensorDictModule(_Head((*sizes, action_size), 0.01, device), head_keys, ["loc"]),
        TensorDictModule(scale, ["loc"], ["loc", "scale"]),
    ]
    actor = ProbabilisticActor(
        Sequential(*action_head),
        in_keys=["loc", "scale"],
        distribution_class=IndependentNormal,
        return_log_prob=True,
        cache_dist=False,
    )
    critic = ValueOperator(_Head((*sizes, 1), 1.0, device), in_keys=head_keys)
    return ActorValueOperator(Sequential(embed, memory_module), actor, critic)


class _Embedding(nn.Module):
    def __init__(
        self, input_size: int, output_size: int, device: torch.device | str | None
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(input_size, output_size, device=device)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.linear(torch.cat(inputs, -1)))


class _Head(nn.Module):
    """A tanh network over concatenated inputs, orthogonal as is usual for PPO."""

    def __init__(
        self, sizes: Sequence[int], gain: float, device: torch.device | str | None
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for size, next_size in pairwise(sizes):
            linear = nn.Linear(size, next_size, device=device)
            nn.init.orthogonal_(linear.weight, 2**0.5)
            nn.init.zeros_(linear.bias)
            layers += [linear, nn.Tanh()]
        # the last layer has its own gain and no activation
        layers.pop()
        last: Any = layers[-1]
        nn.init.orthogonal_(last.weight, gain)
        self.layers = nn.Sequential(*layers)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.layers(torch.cat(inputs, -1))
