"""The clipped objective of proximal policy optimization, with little around it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from tensordict import NestedKey, TensorDictBase
from torch import Tensor
from torch.distributions import Distribution
from torchrl.objectives import ClipPPOLoss

from torchrl_shm.networks.policy import Entries, Layer, Policy, takes_entries
from torchrl_shm.torchrl_private import pack


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

    @property
    def out_keys(self) -> list[NestedKey]:
        """Entries that `forward` returns."""
        return [
            "loss_objective", "loss_critic", "loss_entropy", "entropy", "kl_approx",
            "clip_fraction", "max_ratio", "mean_ratio",
        ]  # fmt: skip

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Compute the losses.

        Args:
            tensordict: sequences `[B, T]` with advantages `[B, T, 1]` and value targets.

        Returns:
            `loss_objective`, `loss_critic` and `loss_entropy`, whose sum is to be minimized, and
            `entropy`, `kl_approx`, `clip_fraction`, `max_ratio` and `mean_ratio` to look at.

        Raises:
            KeyError: an entry is missing; advantages and targets come from a value estimator.
        """
        keys: Any = self.tensor_keys
        # buffers, which may change while training
        epsilon: Any = self.clip_epsilon
        critic_coeff: Any = self.critic_coeff
        entropy_coeff: Any = self.entropy_coeff
        dist, value = self.run_networks(tensordict)
        log_ratio = dist.log_prob(tensordict[keys.action]) - tensordict[keys.sample_log_prob]
        ratio = log_ratio.exp()
        clipped = ratio.clamp(1 - epsilon, 1 + epsilon)
        advantage = tensordict[keys.advantage].squeeze(-1)
        gain = torch.minimum(ratio * advantage, clipped * advantage)
        entropy = dist.entropy().mean()
        error = F.mse_loss(value, tensordict[keys.value_target])
        entries = {
            "loss_objective": -gain.mean(),
            "loss_critic": critic_coeff * error,
            "loss_entropy": -entropy_coeff * entropy,
            "entropy": entropy.detach(),
        }
        with torch.no_grad():
            entries["kl_approx"] = -log_ratio.mean()
            entries["clip_fraction"] = (clipped != ratio).to(ratio.dtype).mean()
            entries["max_ratio"] = ratio.max()
            entries["mean_ratio"] = ratio.mean()
        return pack(entries, torch.Size(()), None)

    def run_networks(self, tensordict: TensorDictBase) -> tuple[Distribution, Tensor]:
        """Run the policy and the critic, in recurrent mode, and write nothing to the data.

        Args:
            tensordict: sequences `[B, T]`.

        Returns:
            The distribution of the action, and the value `[B, T, 1]`.

        Raises:
            KeyError: an entry is missing.
        """
        actor, critic, key = self.actor_network, self.critic_network, self.tensor_keys.value
        if not (
            isinstance(actor, Policy)
            and isinstance(critic, Layer)
            and actor.takes_entries
            and takes_entries(critic)
        ):
            data = tensordict.copy()
            dist = actor.get_dist(data)
            return dist, critic(data).get(key)
        entries = Entries(tensordict.items(), tensordict.shape)
        actor.run_networks(entries)
        critic.run(entries)
        return actor.build_dist_from_params(entries), entries[key]
