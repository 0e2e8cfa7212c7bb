"""The clipped objective of proximal policy optimization, with little around it."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from torchrl.objectives import ClipPPOLoss


class LeanClipPPOLoss(ClipPPOLoss):
    """`torchrl.objectives.ClipPPOLoss` of one action, without what few runs look at.

    Equal losses and gradients. What is left out costs a tenth of an update with small networks:
    parameters are not swapped in, so there is no `functional=True`; the effective sample size and
    the explained variance are not computed. The value loss is the squared error.

    Args:
        actor_network: the policy, with `get_dist`.
        critic_network: the critic, which may read what the policy has written.
        clip_epsilon: clipping range of the probability ratio.
        entropy_coeff: weight of the entropy bonus.
        critic_coeff: weight of the value loss.

    Examples:
        >>> from torchrl_shm import SHMModule, WindEnv
        >>> from torchrl_shm.networks import make_actor_critic
        >>> from torchrl_shm.training import LeanClipPPOLoss
        >>> operator = make_actor_critic(WindEnv(4), SHMModule)
        >>> loss = LeanClipPPOLoss(operator.get_policy_operator(), operator.get_value_head())
        >>> loss.functional
        False
    """

    def __init__(
        self,
        actor_network: Any,
        critic_network: Any,
        *,
        clip_epsilon: float = 0.2,
        entropy_coeff: float = 0.01,
        critic_coeff: float = 1.0,
    ) -> None:
        super().__init__(
            actor_network,
            critic_network,
            clip_epsilon=clip_epsilon,
            entropy_coeff=entropy_coeff,
            critic_coeff=critic_coeff,
            loss_critic_type="l2",
            functional=False,
        )

    @property
    def in_keys(self) -> list[NestedKey]:
        """Entries that `forward` reads."""
        keys: Any = self.tensor_keys
        data = (keys.action, keys.sample_log_prob, keys.advantage, keys.value_target)
        actor, critic = self.actor_network, self.critic_network
        rest = [key for key in critic.in_keys if key not in actor.out_keys]
        return [*dict.fromkeys([*actor.in_keys, *rest, *data])]

    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """Compute the losses.

        Args:
            tensordict: sequences `[B, T]` with advantages `[B, T, 1]` and value targets.

        Returns:
            `loss_objective`, `loss_critic` and `loss_entropy`, whose sum is to be minimized, and
            `entropy`, `kl_approx`, `clip_fraction`, `max_ratio` and `mean_ratio` to look at.
        """
        keys: Any = self.tensor_keys
        data, actor, critic = tensordict.copy(), self.actor_network, self.critic_network
        dist = actor.get_dist(data)
        log_weight = dist.log_prob(data.get(keys.action)) - data.get(keys.sample_log_prob)
        clipped = log_weight.clamp(*self._clip_bounds)
        advantage = data.get(keys.advantage).squeeze(-1)
        ratio = log_weight.exp()
        gain = torch.minimum(ratio * advantage, clipped.exp() * advantage)
        entropy = dist.entropy().mean()
        value = critic(data).get(keys.value)
        error = torch.nn.functional.mse_loss(value, data.get(keys.value_target))
        with torch.no_grad():
            watched = {
                "entropy": entropy.detach(),
                "kl_approx": -log_weight.mean(),
                "clip_fraction": (clipped != log_weight).to(log_weight.dtype).mean(),
                "max_ratio": ratio.max(),
                "mean_ratio": ratio.mean(),
            }
        losses = {
            "loss_objective": -gain.mean(),
            "loss_critic": self.critic_coeff * error,
            "loss_entropy": -self.entropy_coeff * entropy,
        }
        return TensorDict(losses | watched)
