"""An actor and a critic of action values, with a memory each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from tensordict import NestedKey
from tensordict.nn import TensorDictSequential as Sequential
from torch import Tensor, nn
from torchrl.data import Bounded, Categorical, TensorSpec
from torchrl.envs import EnvBase
from torchrl.modules import ProbabilisticActor, TanhNormal

from torchrl_shm.networks.backbone import CRITIC, BackboneMaker, MemoryFactory, check_sizes
from torchrl_shm.networks.encoder import EncoderFactory
from torchrl_shm.networks.heads import HEAD_KEYS, Head, make_actor
from torchrl_shm.networks.policy import Layer, Policy
from torchrl_shm.networks.specs import EnvSpecs

# smallest and largest logarithm of a standard deviation before the action is squashed
_LOG_SCALE = (-5.0, 2.0)


class SoftOperator(nn.Module):
    """What `make_soft_actor_critic` makes.

    Args:
        actor: embedding and memory of the actor.
        head: the action head.
        critic: embedding and memory of the critic.
        make_q_head: makes a new head of the critic.
        policy_keys: observation entries that both read.
        discrete: whether the action is an index.
        action_size: number of choices of an index, or of parts of a continuous action.

    Attributes:
        actor: embedding and memory of the actor, which write `embedding` and `features`.
        head: the action head, which reads them.
        critic: embedding and memory of the critic, which write `critic_embedding` and
            `critic_features`.
        policy_keys: observation entries that both read.
        discrete: whether the action is an index.
        action_size: number of choices of an index, or of parts of a continuous action.
    """

    # `nn.Module` declares what it does not know as tensors
    actor: Any
    head: Any
    critic: Any

    def __init__(
        self,
        actor: Sequential,
        head: ProbabilisticActor,
        critic: Sequential,
        make_q_head: Callable[[], Layer],
        *,
        policy_keys: Sequence[NestedKey],
        discrete: bool,
        action_size: int,
    ) -> None:
        super().__init__()
        self.actor, self.head, self.critic = actor, head, critic
        self.policy_keys = list(policy_keys)
        self.discrete, self.action_size = discrete, action_size
        self._make_q_head = make_q_head

    def get_policy_operator(self) -> Policy:
        """The actor with what stands before it."""
        return Policy(*self.actor, *self.head)

    def make_q_heads(self, count: int = 2) -> list[Layer]:
        """Make new heads of the critic, for a loss that keeps them.

        Args:
            count: how many.

        Returns:
            Layers that read features of the critic, and the action where it is continuous, and
            write `state_action_value`, or `action_value` of all actions where it is an index.
        """
        return [self._make_q_head() for _ in range(count)]


def make_soft_actor_critic(
    env: EnvBase | EnvSpecs,
    memory: MemoryFactory,
    *,
    actor_memory: MemoryFactory | str | None = None,
    policy_keys: Sequence[NestedKey] | None = None,
    time_size: int = 0,
    encoder: EncoderFactory | str = "auto",
    normalize: bool = False,
    embedding_size: int = 64,
    hidden_sizes: Sequence[int] = (128, 128),
    device: torch.device | str | None = None,
) -> SoftOperator:
    """Build embedding -> memory -> action head, and the same for action values, beside it.

    Heads also read the embedding of the current step. Continuous actions are Gaussian and squashed
    into their bounds by tanh, with a mean and a standard deviation that depend on the state; an
    index is categorical. An untrained actor draws actions that are uniform within a few percent.

    Args:
        env: environment whose specs give the sizes, or these specs alone. Its action is
            continuous and bounded, of any shape, or an index (`Categorical`).
        memory: factory of the memory module, with as many outputs as inputs.
        actor_memory: the same for the actor, where it has another kind than the critic. A name
            is refused: the command line makes a factory of it where it is written with a slash.
        policy_keys: observation entries that both read; see `make_actor_critic`.
        time_size: number of sines and cosines of the step of the episode that both read as well,
            see `Clock`; 0 for none.
        encoder: what makes the embeddings; see `make_actor_critic`.
        normalize: whether entries of floats are standardized; see `make_actor_critic`.
        embedding_size: features per step that the memories read and write.
        hidden_sizes: widths of the hidden layers of each head.
        device: device of the parameters.

    Returns:
        The operator; `get_policy_operator()` gives the actor, and `get_behavior` the part that
        collects data, in which the critic's memory runs as well.

    Raises:
        KeyError: a policy key is not an observation of the environment.
        TypeError: actions of this kind are not supported, `actor_memory` is a name, or `encoder`
            makes no module.
        ValueError: a size is not positive, `time_size` is odd or negative, an observation has a
            name that the networks write, the encoder does not suit the entries, or a memory refuses
            so few features.

    Examples:
        >>> from torchrl_shm import SHMModule, TMazeEnv, WindEnv
        >>> from torchrl_shm.networks import make_soft_actor_critic
        >>> operator = make_soft_actor_critic(WindEnv(4), SHMModule)
        >>> operator.make_q_heads()[0].in_keys
        ['critic_features', 'critic_embedding', 'action']
        >>> make_soft_actor_critic(TMazeEnv(4), SHMModule).discrete
        True
    """
    check_sizes(embedding_size, hidden_sizes)
    if isinstance(actor_memory, str):
        raise TypeError(
            f"network.actor_memory={actor_memory!r} makes no memory: on the command line write "
            f"network/actor_memory={actor_memory}, with a slash"
        )
    backbone = BackboneMaker(
        env, policy_keys, time_size, encoder, normalize, embedding_size, device
    )
    spec: Any = backbone.specs.action_spec_unbatched
    sizes = (embedding_size, 2 * embedding_size)
    discrete = isinstance(spec, Categorical) and not spec.shape
    if discrete:
        action_size = spec.n
        actor_head = make_actor(
            spec, (*sizes, *hidden_sizes), 1.0, device, mask_size=backbone.specs.mask_size
        )
    else:
        actor_head = _make_squashed_actor(spec, (*sizes, *hidden_sizes), device)
        action_size = spec.shape.numel()
    q_keys: list[NestedKey] = [f"{CRITIC}{key}" for key in HEAD_KEYS]

    def make_q_head() -> Layer:
        if discrete:
            q_sizes = (*sizes, *hidden_sizes, action_size)
            return Layer(Head(q_sizes, 1.0, device), q_keys, ["action_value"])
        q_sizes = (sizes[0], sizes[1] + action_size, *hidden_sizes, 1)
        head = _ActionHead(q_sizes, len(spec.shape), device)
        return Layer(head, [*q_keys, "action"], ["state_action_value"])

    return SoftOperator(
        backbone(actor_memory or memory),
        actor_head,
        backbone(memory, CRITIC),
        make_q_head,
        policy_keys=backbone.specs.policy_keys,
        discrete=discrete,
        action_size=action_size,
    )


def _make_squashed_actor(
    spec: TensorSpec, sizes: tuple[int, ...], device: torch.device | str | None
) -> ProbabilisticActor:
    """A Gaussian squashed into the bounds of a continuous action."""
    if not isinstance(spec, Bounded) or not spec.dtype.is_floating_point:
        raise TypeError(
            f"actions of {type(spec).__name__} {list(spec.shape)} are not supported by this "
            "network: it takes a continuous action with bounds, or an index (Categorical); "
            "PPO and REINFORCE take all others"
        )
    box: Any = spec.space
    net: Any = _SquashedHead((*sizes, 2 * spec.shape.numel()), spec.shape, device)
    head: Any = Layer(net, HEAD_KEYS, ["loc", "scale"])
    return ProbabilisticActor(
        Sequential(head),
        in_keys=["loc", "scale"],
        distribution_class=TanhNormal,
        distribution_kwargs={
            "low": box.low.to(device),
            "high": box.high.to(device),
            "event_dims": len(spec.shape),
        },
        return_log_prob=True,
        cache_dist=False,
    )


class _SquashedHead(Head):
    """Mean and standard deviation of each part of an action of any shape."""

    def __init__(
        self, sizes: Sequence[int], shape: torch.Size, device: torch.device | str | None
    ) -> None:
        super().__init__(sizes, 0.01, device)
        self.shape = shape

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, features: Tensor, *inputs: Tensor
    ) -> tuple[Tensor, Tensor]:
        loc, log_scale = (
            x.reshape(*x.shape[:-1], *self.shape)
            for x in super().forward(features, *inputs).chunk(2, -1)
        )
        return loc, log_scale.clamp(*_LOG_SCALE).exp()


class _ActionHead(Head):
    """A head whose last input is an action of any shape."""

    def __init__(
        self, sizes: Sequence[int], action_dims: int, device: torch.device | str | None
    ) -> None:
        super().__init__(sizes, 1.0, device)
        self.action_dims = action_dims

    def forward(self, features: Tensor, *inputs: Tensor) -> Tensor:
        *rest, action = inputs
        action = action.reshape(*action.shape[: action.ndim - self.action_dims], -1)
        return super().forward(features, *rest, action)
