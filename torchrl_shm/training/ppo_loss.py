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

# where TorchRL's losses look for a mask
_MASK_KEY = ("collector", "mask")
_RATIO_TOLERANCE = 1e-2


class LeanClipPPOLoss(ClipPPOLoss):
    """`torchrl.objectives.ClipPPOLoss` of one action, without what few runs look at.

    Equal losses and gradients. What is left out costs a tenth of an update with small networks:
    parameters are not swapped in, so there is no `functional=True`; the effective sample size and
    the explained variance are not computed. The value loss is the squared error.

    As there, steps at which the entry `("collector", "mask")`, bool `[B, T]`, is false are in no
    loss, where there is such an entry. Here they are not in `entropy` either; all else that is
    returned is of all steps.

    Args:
        actor_network: the policy, with `get_dist`.
        critic_network: the critic, which may read what the policy has written; `None` where
            advantages come from elsewhere, and nothing has to be learned for them.
        clip_epsilon: clipping range of the probability ratio.
        entropy_coeff: weight of the entropy bonus.
        critic_coeff: weight of the value loss.
        kl_coeff: weight of the divergence from the policy that acted, KL(now, then), estimated
            from its actions; 0 for none. TorchRL's loss has no such term.

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
        critic_network: Any | None = None,
        *,
        clip_epsilon: float = 0.2,
        entropy_coeff: float = 0.01,
        critic_coeff: float = 1.0,
        kl_coeff: float = 0.0,
    ) -> None:
        super().__init__(
            actor_network,
            critic_network,
            clip_epsilon=clip_epsilon,
            entropy_coeff=entropy_coeff,
            critic_coeff=None if critic_network is None else critic_coeff,
            loss_critic_type="l2",
            functional=False,
        )
        self.kl_coeff = kl_coeff

    @property
    def in_keys(self) -> list[NestedKey]:
        """Entries that `forward` reads; the mask is not among them, for it may be missing."""
        keys: Any = self.tensor_keys
        data = [keys.action, keys.sample_log_prob, keys.advantage]
        actor, critic = self.actor_network, self.critic_network
        rest = []
        if critic is not None:
            rest = [key for key in critic.in_keys if key not in actor.out_keys]
            data.append(keys.value_target)
        return [*dict.fromkeys([*actor.in_keys, *rest, *data])]

    @property
    def out_keys(self) -> list[NestedKey]:
        """Entries that `forward` returns."""
        critic = [] if self.critic_network is None else ["loss_critic"]
        divergence = ["loss_kl"] if self.kl_coeff else []
        return [
            "loss_objective", *critic, "loss_entropy", *divergence, "entropy", "kl_approx",
            "clip_fraction", "max_ratio", "mean_ratio",
        ]  # fmt: skip

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Compute the losses.

        Args:
            tensordict: sequences `[B, T]` with advantages `[B, T, 1]` and value targets.

        Returns:
            `loss_objective`, `loss_critic`, `loss_entropy` and `loss_kl` as far as there are any,
            whose sum is to be minimized, and `entropy`, `kl_approx`, `clip_fraction`, `max_ratio`
            and `mean_ratio` to look at.

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
        mask = tensordict.get(_MASK_KEY, None)
        entropy = _mean(dist.entropy(), mask)
        entries = {"loss_objective": -_mean(gain, mask)}
        if value is not None:
            target, reduction = tensordict[keys.value_target], "mean" if mask is None else "none"
            error = F.mse_loss(value, target, reduction=reduction)
            error = error if mask is None else _mean(error.squeeze(-1), mask)
            entries["loss_critic"] = critic_coeff * error
        entries["loss_entropy"] = -entropy_coeff * entropy
        if self.kl_coeff:
            # actions are of the policy of then, hence the weight ratio; what is subtracted has the
            # mean 0 and makes every term positive
            divergence = ratio * log_ratio - (ratio - 1)
            entries["loss_kl"] = self.kl_coeff * _mean(divergence, mask)
        entries["entropy"] = entropy.detach()
        with torch.no_grad():
            entries["kl_approx"] = -log_ratio.mean()
            entries["clip_fraction"] = (clipped != ratio).to(ratio.dtype).mean()
            entries["max_ratio"] = ratio.max()
            entries["mean_ratio"] = ratio.mean()
        return pack(entries, torch.Size(()), None)

    def run_networks(self, tensordict: TensorDictBase) -> tuple[Distribution, Tensor | None]:
        """Run the policy and the critic, in recurrent mode, and write nothing to the data.

        Args:
            tensordict: sequences `[B, T]`.

        Returns:
            The distribution of the action, and the value `[B, T, 1]`; `None` without a critic.

        Raises:
            KeyError: an entry is missing.
        """
        actor, critic, key = self.actor_network, self.critic_network, self.tensor_keys.value
        head = critic is None or (isinstance(critic, Layer) and takes_entries(critic))
        if not (isinstance(actor, Policy) and head and actor.takes_entries):
            data = tensordict.copy()
            dist = actor.get_dist(data)
            return dist, None if critic is None else critic(data).get(key)
        entries = Entries(tensordict.items(), tensordict.shape)
        actor.run_networks(entries)
        if critic is not None:
            critic.run(entries)
        value = None if critic is None else entries[key]
        return actor.build_dist_from_params(entries), value


def _mean(x: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over steps `[B, T]`, or over those of them that count."""
    if mask is None:
        return x.mean()
    return torch.where(mask, x, 0.0).sum() / mask.sum().clamp(min=1)


def check_ratio(terms: Any) -> float:
    """Stop if the policy of a loss is not the policy that acted.

    To be called with the first minibatch of a batch: nothing was learned from the batch yet, so a
    probability ratio that is off by more than rounding means that recurrent mode has lost the
    memory or the gates.

    Args:
        terms: what `LeanClipPPOLoss` returned, with `max_ratio` and `mean_ratio`.

    Returns:
        The largest ratio.

    Raises:
        RuntimeError: the largest or the mean ratio is off by more than 0.01.

    Examples:
        >>> import torch
        >>> from torchrl_shm.training import check_ratio
        >>> check_ratio({"max_ratio": torch.tensor(1.0), "mean_ratio": torch.tensor(1.0)})
        1.0
    """
    ratio, mean = float(terms["max_ratio"]), float(terms["mean_ratio"])
    if not max(abs(ratio - 1), abs(mean - 1)) <= _RATIO_TOLERANCE:
        raise RuntimeError(
            f"the probability ratio of a first minibatch is {ratio} at most and {mean} on average, "
            "not 1: recurrent mode does not repeat what acted. memory.state=zero forgets sequences "
            "that start in mid-episode; for a memory of your own run torchrl_shm.check_memory"
        )
    return ratio
