"""The losses of soft actor-critic behind memories, and the copies that make its targets."""

from __future__ import annotations

import copy
import math
from typing import Any, Literal

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictSequential as Sequential
from torch import Tensor
from torch.nn import functional as F
from torchrl.objectives import DiscreteSACLoss, SACLoss, SoftUpdate

from torchrl_shm.checks import ACTION_MASK, check_option
from torchrl_shm.modules import unroll
from torchrl_shm.networks import SoftOperator

ActorDivergence = Literal["reverse", "forward"]
"""How a policy over an index is led to the softmax of action values: by `"reverse"`, the divergence
KL(policy || softmax), as in SAC, or by `"forward"`, KL(softmax || policy); see
`UnrolledDiscreteSACLoss`."""


def unroll_features(backbone: Any, sample: TensorDictBase) -> TensorDictBase:
    """Run embeddings and memories over sequences, as `unroll` does, or what stands for memories.

    Args:
        backbone: what stands before the heads of an actor, a critic or both. Where a feed-forward
            network stands for a memory (`memory=mlp`), there is nothing but a clock to unroll.
        sample: sequences `[B, T]`.

    Returns:
        A shallow copy, with features of every observation, and under `"next"` those of what came
        next, through which no gradient flows.

    Raises:
        KeyError: an input, what came next, or the reset flags are missing.
        ValueError: the data are no sequences, or `"next"` is several steps later, see `unroll`.

    Examples:
        >>> from torchrl_shm import SHMModule, WindEnv
        >>> from torchrl_shm.networks import get_behavior, make_soft_actor_critic
        >>> from torchrl_shm.training import RolloutCollector, unroll_features
        >>> operator = make_soft_actor_critic(WindEnv(4), SHMModule)
        >>> sizes = {"num_envs": 4, "rollout_length": 10, "total_frames": 40}
        >>> (batch,) = RolloutCollector(WindEnv, get_behavior(operator), **sizes)
        >>> unroll_features(operator.actor, batch)["next", "features"].shape
        torch.Size([4, 10, 64])
    """
    parts: list[Any] = list(backbone)
    memories = [part for part in parts if hasattr(part, "make_tensordict_primer")]
    others = [part for part in parts if part not in memories]
    # whatever was computed of the sample before
    data = sample.exclude(*(("next", key) for part in others for key in part.out_keys))
    data = unroll(backbone, data) if memories else data
    # what leads to no memory was not run
    made = data.keys(True)
    plain = Sequential(*(part for part in others if ("next", part.out_keys[0]) not in made))
    with torch.no_grad():
        came_next = plain(data.get("next").copy())
    for key in plain.out_keys:
        data.set(("next", key), came_next.get(key))
    return plain(data)


class UnrolledSACLoss(SACLoss):
    """`torchrl.objectives.SACLoss` on features of memories, which `unroll_features` has written.

    TorchRL's loss holds the parameters of the critic fixed while the actor learns. The critic's
    features are work of its memory as well, which TorchRL cannot know; here they are held, too.
    """

    def actor_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of the actor; see TorchRL's loss."""
        return super().actor_loss(_hold_features(self, tensordict))


class UnrolledDiscreteSACLoss(DiscreteSACLoss):
    """`torchrl.objectives.DiscreteSACLoss` on features of memories; see `UnrolledSACLoss`.

    With `divergence="forward"` the loss of the actor is KL(softmax(Q / temperature) || policy), the
    mean over all steps; Q is the lower one of both heads. TorchRL's loss, the reverse form, is
    KL(policy || softmax(Q / temperature)) times the temperature, but for what does not depend on
    the policy. It has no gradient left where the policy has become sure. A policy whose memory does
    not yet tell two situations apart, in which opposite actions are right, is drawn to and fro by
    it until it is sure of one of them, and stays. In the forward form it takes the mean of what is
    right, and learns as soon as the memory does.

    Source of the forward form: [Chan et al., 2022](https://arxiv.org/abs/2107.08285).

    Args:
        divergence: see `ActorDivergence`.
        *args: those of TorchRL's loss.
        **kwargs: those of TorchRL's loss.

    Raises:
        ValueError: `divergence` is unknown; or it is "forward" and the `reduction` is not "mean".

    Examples:
        >>> from torchrl_shm import SHMModule, TMazeEnv
        >>> from torchrl_shm.networks import make_soft_actor_critic
        >>> from torchrl_shm.training import UnrolledDiscreteSACLoss
        >>> operator = make_soft_actor_critic(TMazeEnv(4), SHMModule)
        >>> loss = UnrolledDiscreteSACLoss(
        ...     operator.head, operator.make_q_heads(), action_space="categorical",
        ...     target_entropy=0.4, divergence="forward",
        ... )
    """

    def __init__(self, *args: Any, divergence: ActorDivergence = "reverse", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        check_option("divergence", divergence, ActorDivergence)
        if divergence == "forward" and self.reduction != "mean":
            raise ValueError(f"divergence='forward' needs reduction='mean', not {self.reduction!r}")
        self.divergence = divergence

    def actor_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of the actor.

        Args:
            tensordict: sequences `[B, T]` with what `unroll_features` writes.

        Returns:
            The loss, a scalar, and minus the entropy of the policy as `log_prob`, `[B, T]`.
        """
        held = _hold_features(self, tensordict)
        if self.divergence == "reverse":
            return super().actor_loss(held)
        with self.actor_network_params.to_module(self.actor_network):
            policy = self.actor_network.get_dist(held.copy())
        log_prob = policy.logits
        with torch.no_grad():
            target = self._least_action_values(held) / self._alpha
            if ACTION_MASK in self.actor_network.in_keys:
                mask: Tensor = held.get(ACTION_MASK)
                target = target.masked_fill(~mask.flatten(2), -math.inf)
        divergence = F.kl_div(log_prob, target.softmax(-1), reduction="none").sum(-1)
        return divergence.mean(), {"log_prob": (policy.probs * log_prob).sum(-1).detach()}

    def _least_action_values(self, tensordict: TensorDictBase) -> Tensor:
        """The lower one of what the heads expect of each action, `[B, T, A]`."""
        entries = tensordict.select(*self.qvalue_network.in_keys)
        values: list[Tensor] = []
        for head in self.qvalue_network_params.data.unbind(0):
            with head.to_module(self.qvalue_network):
                values.append(self.qvalue_network(entries.copy())[self.tensor_keys.action_value])
        return torch.stack(values).amin(0)


def _hold_features(loss: Any, tensordict: TensorDictBase) -> TensorDictBase:
    held = tensordict.copy()
    for key in loss.qvalue_network.in_keys:
        held.set(key, tensordict.get(key).detach())
    return held


def make_sac_loss(
    operator: SoftOperator,
    *,
    gamma: float,
    temperature: float | None = None,
    initial_temperature: float = 0.1,
    max_temperature: float | None = None,
    target_entropy: float | None = None,
    divergence: ActorDivergence = "reverse",
) -> Any:
    """Build the loss that suits the action: continuous, or an index.

    Args:
        operator: the networks, to which the loss adds two heads of the critic.
        gamma: discount factor.
        temperature: weight of the entropy; `None` learns it.
        initial_temperature: where a learned one starts.
        max_temperature: bound on a learned one; `None` is none.
        target_entropy: entropy at which a learned temperature aims, in nats; `None` is minus the
            number of parts of a continuous action, and 0.3 of the largest one of an index.
        divergence: how the actor learns from action values, see `ActorDivergence`.

    Returns:
        The loss, `UnrolledSACLoss` or `UnrolledDiscreteSACLoss`, which reads sequences `[B, T]`
        with what `unroll_features` writes, and gives `loss_actor`, `loss_qvalue`, `loss_alpha`.

    Raises:
        ValueError: `divergence` is unknown, or "forward" and the action is continuous.

    Examples:
        >>> from torchrl_shm import SHMModule, WindEnv
        >>> from torchrl_shm.networks import make_soft_actor_critic
        >>> from torchrl_shm.training import make_sac_loss
        >>> loss = make_sac_loss(make_soft_actor_critic(WindEnv(4), SHMModule), gamma=0.9)
        >>> loss.out_keys
        ['loss_actor', 'loss_qvalue', 'loss_alpha', 'alpha', 'entropy']
    """
    options: dict[str, Any] = {
        "loss_function": "l2",
        "alpha_init": initial_temperature if temperature is None else temperature,
        "fixed_alpha": temperature is not None,
        "max_alpha": max_temperature,
    }
    check_option("algo.actor_divergence", divergence, ActorDivergence)
    if divergence == "forward" and not operator.discrete:
        raise ValueError(
            "algo.actor_divergence=forward is for actions that are an index: of a continuous one "
            "the softmax of action values has no closed form; use reverse"
        )
    heads: Any = operator.make_q_heads()
    if operator.discrete:
        largest = math.log(operator.action_size)
        options["target_entropy"] = 0.3 * largest if target_entropy is None else target_entropy
        options |= {"action_space": "categorical", "divergence": divergence}
        loss = UnrolledDiscreteSACLoss(operator.head, heads, **options)
    else:
        target = -float(operator.action_size) if target_entropy is None else target_entropy
        loss = UnrolledSACLoss(operator.head, heads, target_entropy=target, **options)
    loss.make_value_estimator(gamma=gamma)
    return loss


class SlowCritic:
    """A critic that follows the one that learns: its embedding and memory, and its heads.

    Targets are made of what it expects. Its memory is a network of its own, so that targets change
    as slowly as TorchRL's target networks mean them to; these are only the heads.

    Args:
        operator: the networks.
        loss: their loss, which holds the heads.
        tau: part of the way to the learning critic that a step goes.

    Examples:
        >>> from torchrl_shm import SHMModule, WindEnv
        >>> from torchrl_shm.networks import make_soft_actor_critic
        >>> from torchrl_shm.training import SlowCritic, make_sac_loss
        >>> operator = make_soft_actor_critic(WindEnv(4), SHMModule)
        >>> slow = SlowCritic(operator, make_sac_loss(operator, gamma=0.9), tau=0.005)
        >>> slow.step()
    """

    def __init__(
        self,
        operator: SoftOperator,
        loss: UnrolledSACLoss | UnrolledDiscreteSACLoss,
        *,
        tau: float,
    ) -> None:
        self._critic = operator.critic
        self._heads = SoftUpdate(loss, tau=tau)
        self._tau = tau
        self.critic: Sequential = copy.deepcopy(operator.critic).requires_grad_(False)

    @torch.no_grad()
    def unroll_next(self, sample: TensorDictBase, data: TensorDictBase) -> TensorDictBase:
        """Put what came next as this critic remembers it in the place of what it replaces.

        Args:
            sample: sequences `[B, T]`.
            data: what `unroll_features` made of them with the learning networks.

        Returns:
            `data`, with the features of this critic under `"next"`.
        """
        slow = unroll_features(self.critic, sample)
        for key in ("critic_embedding", "critic_features"):
            data.set(("next", key), slow.get(("next", key)))
        return data

    @torch.no_grad()
    def step(self) -> None:
        """Follow the learning critic."""
        for slow, fast in zip(self.critic.parameters(), self._critic.parameters(), strict=True):
            slow.lerp_(fast, self._tau)
        # statistics of the observations, which are those by which the actor reads them
        for slow, fast in zip(self.critic.buffers(), self._critic.buffers(), strict=True):
            slow.copy_(fast)
        self._heads.step()

    def state_dict(self) -> dict[str, Any]:
        """Return the parameters of the memory; those of the heads are the loss's."""
        return self.critic.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned.

        Args:
            state_dict: of a critic with the same networks.
        """
        self.critic.load_state_dict(state_dict)
