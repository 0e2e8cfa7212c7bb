"""An actor and a critic around one memory, or with a memory each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tensordict import NestedKey
from tensordict.nn import TensorDictSequential as Sequential
from torchrl.envs import EnvBase
from torchrl.modules import ActorCriticWrapper, ActorValueOperator

from torchrl_shm.networks.backbone import CRITIC, BackboneMaker, MemoryFactory, check_sizes
from torchrl_shm.networks.encoder import EncoderFactory
from torchrl_shm.networks.heads import HEAD_KEYS, ActionScale, Head, make_actor
from torchrl_shm.networks.policy import Behavior, Layer, Operator, Policy
from torchrl_shm.networks.soft_actor_critic import SoftOperator
from torchrl_shm.networks.specs import EnvSpecs


def make_actor_critic(
    env: EnvBase | EnvSpecs,
    memory: MemoryFactory,
    *,
    policy_keys: Sequence[NestedKey] | None = None,
    time_size: int = 0,
    encoder: EncoderFactory | str = "auto",
    normalize: bool = False,
    embedding_size: int = 64,
    hidden_sizes: Sequence[int] = (64, 64),
    init_scale: float = 0.3,
    action_scale: ActionScale = "global",
    shared_memory: bool = True,
    device: torch.device | str | None = None,
) -> ActorValueOperator | ActorCriticWrapper:
    """Build embedding -> memory -> {action head, value head}.

    Both heads also read the embedding of the current step, as in the authors' meta-RL networks
    (repository `thaihungle/SHM`, `pomdp-baselines/policies/models`). Continuous actions are
    Gaussian with a learned standard deviation, and the environment clips them; discrete ones are
    categorical, independent of each other where there are several. Where `policy_keys` name an
    entry `action_mask`, bool with a flag for every choice, what it forbids is never chosen.

    Args:
        env: environment whose specs give the sizes, or these specs alone. Its action is
            continuous, an index or several (`Categorical`, `MultiCategorical`), or bits
            (`Binary`), of any shape.
        memory: factory of the memory module, with as many outputs as inputs.
        policy_keys: observation entries that the policy reads. `None` is the environment's own
            choice, see `EnvSpecs.of`.
        time_size: number of sines and cosines of the step of the episode, which the embedding
            reads as well, see `Clock`; 0 for none.
        encoder: what makes the embedding. `"auto"` sends images, `[H, W, C]` or `[C, H, W]`,
            through a small convolution, and flattens and concatenates the others; `"flat"` flattens
            images, too; `"fourier"` flattens and adds waves, see `FourierEncoder`; `"image"` wants
            an image. Or what makes an `nn.Module` of your own, see
            `EncoderFactory`. Bytes become [0, 1] in all but the last.
        normalize: whether entries of floats but images are standardized by what the collector has
            seen, see `Normalized`.
        embedding_size: features per step that the memory reads and writes.
        hidden_sizes: widths of the hidden layers of each head.
        init_scale: initial standard deviation of continuous actions, in units of the action.
        action_scale: `"global"` learns one standard deviation of continuous actions for all states,
            `"state"` computes it from the features of each, down to a fifteenth of `init_scale`.
        shared_memory: whether embedding and memory serve both heads. If not, the critic has its
            own, whose entries start with `critic_`.
        device: device of the parameters.

    Returns:
        The operator; `get_policy_operator()` gives the actor, `get_value_operator()` the critic,
        `get_value_head()` the part of the critic that remains to be run after the actor, and
        `get_behavior` the part that collects data. Entries: `embedding`, `features`, `loc` and
        `scale` or `logits`, `action`, `state_value`.

    Raises:
        KeyError: a policy key is not an observation of the environment.
        TypeError: actions of this kind are not supported, or `encoder` makes no module.
        ValueError: a size or `init_scale` is not positive, `action_scale` is unknown, `time_size`
            is odd or negative, an observation has a name that the networks write, the encoder does
            not suit the entries, the action mask does not fit the action, or the memory refuses so
            few features.

    Examples:
        >>> from torchrl_shm import SHMModule, WindEnv
        >>> from torchrl_shm.networks import make_actor_critic
        >>> keys = ["observation", "previous_action"]
        >>> operator = make_actor_critic(WindEnv(4), SHMModule, policy_keys=keys)
        >>> operator.get_value_head().out_keys
        ['state_value']
    """
    if not init_scale > 0:
        raise ValueError(f"network.init_scale={init_scale} must be positive")
    check_sizes(embedding_size, hidden_sizes)
    backbone = BackboneMaker(
        env, policy_keys, time_size, encoder, normalize, embedding_size, device
    )

    def value_head(prefix: str) -> Layer:
        in_keys: list[Any] = [f"{prefix}{key}" for key in HEAD_KEYS]
        head = Head((*sizes, 1), 1.0, device, trains_inputs=True)
        return Layer(head, in_keys, ["state_value"])

    sizes = (embedding_size, 2 * embedding_size, *hidden_sizes)
    common = backbone(memory)
    specs = backbone.specs
    actor = make_actor(
        specs.action_spec_unbatched, sizes, init_scale, device, specs.mask_size, action_scale
    )
    if shared_memory:
        return Operator(common, actor, value_head(""))
    policy: list[Any] = [*common, *actor]
    critic: list[Any] = [*backbone(memory, CRITIC), value_head(CRITIC)]
    return ActorCriticWrapper(Policy(*policy), Sequential(*critic))


def get_behavior(operator: ActorValueOperator | ActorCriticWrapper | SoftOperator) -> Behavior:
    """Take the part of an operator that collects data.

    Args:
        operator: what `make_actor_critic` or `make_soft_actor_critic` returned.

    Returns:
        The policy, which writes nothing that every loss computes again (see `Behavior`). Where the
        critic has a memory of its own, that memory runs as well, so that every sequence records the
        memory with which it starts.

    Examples:
        >>> from torchrl_shm import SHMModule, WindEnv
        >>> from torchrl_shm.networks import get_behavior, make_actor_critic
        >>> operator = make_actor_critic(WindEnv(4), SHMModule, shared_memory=False)
        >>> "critic_memory_role" in get_behavior(operator).out_keys
        True
    """
    policy: Any = operator.get_policy_operator()
    if isinstance(operator, ActorValueOperator):
        return Behavior(*policy.module)
    if isinstance(operator, SoftOperator):
        before: list[Any] = list(operator.critic)
    else:
        # without the value head
        critic: Any = operator.get_value_operator()
        before = list(critic)[:-1]
    return Behavior(*before, *policy)
