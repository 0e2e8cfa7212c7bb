"""An actor and a critic around one memory, or with a memory each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from math import log
from typing import Any

import torch
from tensordict import NestedKey
from tensordict.nn import (
    AddStateIndependentNormalScale,
    ProbabilisticTensorDictSequential,
    TensorDictModule,
    TensorDictModuleBase,
)
from tensordict.nn import TensorDictSequential as Sequential
from torch import distributions, nn
from torchrl.data import (
    Bounded,
    Categorical,
    Composite,
    MultiCategorical,
    TensorSpec,
    Unbounded,
)
from torchrl.envs import EnvBase
from torchrl.modules import (
    ActorCriticWrapper,
    ActorValueOperator,
    IndependentNormal,
    ProbabilisticActor,
    ValueOperator,
)

MemoryFactory = Callable[..., TensorDictModuleBase]
"""Makes a memory module from `input_size`, `output_size`, `in_key`, `out_key` and `device`, and,
where the critic has a memory of its own, `memory_key`."""


@dataclass(frozen=True)
class EnvSpecs:
    """What a policy has to know of its environment; stands in where there is none.

    Attributes:
        observation_spec_unbatched: specs of the entries that the policy reads.
        action_spec_unbatched: spec of the action.
        policy_keys: keys of the entries, in the order in which the policy reads them.
    """

    observation_spec_unbatched: Composite
    action_spec_unbatched: TensorSpec
    policy_keys: Sequence[NestedKey]

    @classmethod
    def of(
        cls, env: EnvBase | EnvSpecs, policy_keys: Sequence[NestedKey] | None = None
    ) -> EnvSpecs:
        """Take from an environment what a policy has to know.

        Args:
            env: the environment.
            policy_keys: observation entries that the policy reads. `None` is the environment's
                own choice, its attribute `policy_keys`, or `["observation"]` where it has none.

        Returns:
            The specs of those entries and of the action.

        Raises:
            KeyError: a policy key is not an observation of the environment.

        Examples:
            >>> from torchrl_shm import WindEnv
            >>> from torchrl_shm.networks import EnvSpecs
            >>> EnvSpecs.of(WindEnv(4)).policy_keys
            ['observation', 'previous_action']
        """
        observations = env.observation_spec_unbatched
        chosen: Sequence[NestedKey] = (
            getattr(env, "policy_keys", ("observation",)) if policy_keys is None else policy_keys
        )
        keys = list(chosen)
        available = set(observations.keys(True, True))
        missing = [key for key in keys if key not in available]
        if missing:
            raise KeyError(
                f"{missing} of policy_keys are not observations of the environment, "
                f"which has {sorted(map(str, available))}"
            )
        read: Any = {key: observations[key] for key in keys}
        return cls(Composite(read), env.action_spec_unbatched, keys)


def make_actor_critic(
    env: EnvBase | EnvSpecs,
    memory: MemoryFactory,
    *,
    policy_keys: Sequence[NestedKey] | None = None,
    embedding_size: int = 64,
    hidden_sizes: Sequence[int] = (64, 64),
    init_scale: float = 0.3,
    shared_memory: bool = True,
    device: torch.device | str | None = None,
) -> ActorValueOperator | ActorCriticWrapper:
    """Build embedding -> memory -> {action head, value head}.

    Both heads also read the embedding of the current step, as in the authors' meta-RL networks
    (repository `thaihungle/SHM`, `pomdp-baselines/policies/models`). Continuous actions are
    Gaussian with a learned standard deviation, and the environment clips them; discrete ones are
    categorical, independent of each other where there are several.

    Args:
        env: environment whose specs give the sizes, or these alone. Its action is continuous, of
            shape `[A]`, or an index (`Categorical`), or several indices (`MultiCategorical` of
            equal sizes).
        memory: factory of the memory module, with as many outputs as inputs.
        policy_keys: observation entries that the policy reads, flattened and concatenated; bytes
            are scaled to [0, 1]. `None` is the environment's own choice, see `EnvSpecs.of`.
        embedding_size: features per step that the memory reads and writes.
        hidden_sizes: widths of the hidden layers of each head.
        init_scale: initial standard deviation of continuous actions, in units of the action.
        shared_memory: whether embedding and memory serve both heads. If not, the critic has its
            own, whose entries start with `critic_`.
        device: device of the parameters.

    Returns:
        The operator; `get_policy_operator()` gives the actor, `get_value_operator()` the critic,
        `get_value_head()` what is left of the critic where the actor has run already, and
        `get_behaviour` what collects. Entries: `embedding`, `features`, `loc` and `scale` or
        `logits`, `action`, `state_value`.

    Raises:
        KeyError: a policy key is not an observation of the environment.
        TypeError: actions of this kind are not supported.

    Examples:
        >>> from torchrl_shm import SHMModule, WindEnv
        >>> from torchrl_shm.networks import make_actor_critic
        >>> keys = ["observation", "previous_action"]
        >>> operator = make_actor_critic(WindEnv(4), SHMModule, policy_keys=keys)
        >>> operator.get_value_head().out_keys
        ['state_value']
    """
    specs = EnvSpecs.of(env, policy_keys)
    keys = specs.policy_keys
    shapes = [specs.observation_spec_unbatched[key].shape for key in keys]

    def backbone(prefix: str, **options: Any) -> Sequential:
        embed: Any = TensorDictModule(
            _Embedding(shapes, embedding_size, device), list(keys), [f"{prefix}embedding"]
        )
        module: Any = memory(
            input_size=embedding_size,
            output_size=embedding_size,
            in_key=f"{prefix}embedding",
            out_key=f"{prefix}features",
            device=device,
            **options,
        )
        return Sequential(embed, module)

    def value_head(prefix: str) -> ValueOperator:
        in_keys = [f"{prefix}{key}" for key in _HEAD_KEYS]
        return ValueOperator(_Head((*sizes, 1), 1.0, device), in_keys=in_keys)

    sizes = (2 * embedding_size, *hidden_sizes)
    common = backbone("")
    actor = _make_actor(specs.action_spec_unbatched, sizes, init_scale, device)
    if shared_memory:
        return ActorValueOperator(common, actor, value_head(""))
    policy: list[Any] = [*common, *actor]
    critic: list[Any] = [*backbone(_CRITIC, memory_key=f"{_CRITIC}memory"), value_head(_CRITIC)]
    return ActorCriticWrapper(ProbabilisticTensorDictSequential(*policy), Sequential(*critic))


def get_behaviour(operator: ActorValueOperator | ActorCriticWrapper) -> TensorDictModuleBase:
    """Take from an operator what collects data.

    Args:
        operator: what `make_actor_critic` returned.

    Returns:
        The policy. Where the critic has a memory of its own, that runs as well, so that the rows
        carry the memory with which they start.

    Examples:
        >>> from torchrl_shm import SHMModule, WindEnv
        >>> from torchrl_shm.networks import get_behaviour, make_actor_critic
        >>> operator = make_actor_critic(WindEnv(4), SHMModule, shared_memory=False)
        >>> "critic_features" in get_behaviour(operator).out_keys
        True
    """
    policy: Any = operator.get_policy_operator()
    if isinstance(operator, ActorValueOperator):
        return policy
    critic: Any = operator.get_value_operator()
    parts: list[Any] = [*list(critic)[:-1], *policy]
    return ProbabilisticTensorDictSequential(*parts)


# entries of a critic's own embedding and memory
_CRITIC = "critic_"
_HEAD_KEYS: list[NestedKey] = ["features", "embedding"]


def _make_actor(
    spec: TensorSpec, sizes: tuple[int, ...], init_scale: float, device: torch.device | str | None
) -> ProbabilisticActor:
    head: list[Any]
    if isinstance(spec, (Bounded, Unbounded)) and spec.dtype.is_floating_point:
        size = spec.shape[-1]
        scale = AddStateIndependentNormalScale(size, init_value=log(init_scale)).to(device)
        head = [
            TensorDictModule(_Head((*sizes, size), 0.01, device), _HEAD_KEYS, ["loc"]),
            TensorDictModule(scale, ["loc"], ["loc", "scale"]),
        ]
        in_keys, distribution = ["loc", "scale"], IndependentNormal
    elif isinstance(spec, Categorical) and not spec.shape:
        head = [TensorDictModule(_Head((*sizes, spec.n), 0.01, device), _HEAD_KEYS, ["logits"])]
        in_keys, distribution = ["logits"], distributions.Categorical
    elif isinstance(spec, MultiCategorical) and len(set(spec.nvec.tolist())) == 1:
        count, choices = spec.shape[-1], int(spec.nvec[0])
        net = _Head((*sizes, count * choices), 0.01, device)
        head = [TensorDictModule(net, _HEAD_KEYS, ["logits"])]
        in_keys, distribution = ["logits"], partial(_independent_categoricals, count=count)
    else:
        raise TypeError(
            f"actions like {spec} are not supported: it takes a continuous action, an index "
            "(Categorical), or several indices of equal sizes (MultiCategorical); TorchRL's "
            "GymEnv makes indices with categorical_action_encoding=True"
        )
    return ProbabilisticActor(
        Sequential(*head),
        in_keys=in_keys,
        distribution_class=distribution,
        return_log_prob=True,
        cache_dist=False,
    )


def _independent_categoricals(logits: torch.Tensor, *, count: int) -> distributions.Distribution:
    """`count` indices, each with its own block of logits."""
    blocks = logits.unflatten(-1, (count, -1))
    return distributions.Independent(distributions.Categorical(logits=blocks), 1)


class _Embedding(nn.Module):
    def __init__(
        self,
        shapes: Sequence[torch.Size],
        output_size: int,
        device: torch.device | str | None,
    ) -> None:
        super().__init__()
        self.dims = [len(shape) for shape in shapes]
        size = sum(shape.numel() for shape in shapes)
        self.linear = nn.Linear(size, output_size, device=device)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        flat = [
            self._number(x).flatten(x.ndim - dims) if dims > 1 else self._number(x)
            for x, dims in zip(inputs, self.dims, strict=True)
        ]
        return torch.tanh(self.linear(torch.cat(flat, -1)))

    def _number(self, x: torch.Tensor) -> torch.Tensor:
        dtype = self.linear.weight.dtype
        return x.to(dtype) / 255 if x.dtype == torch.uint8 else x.to(dtype)


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
