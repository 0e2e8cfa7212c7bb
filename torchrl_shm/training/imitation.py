"""Sequences that turned out better than expected, to be learned from again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.modules import set_recurrent_mode

from torchrl_shm.checks import check_count
from torchrl_shm.training.ppo_loss import LeanClipPPOLoss


class SelfImitation:
    """Keeps the sequences with the greatest surprise, and raises the probability of what they did.

    Where an agent has learned that it will fail, a critic with a memory expects the failure, every
    action is as good as expected, and nothing is learned from any of them. A success by chance is
    then one sequence among hundreds, in one batch. Here it is kept, and learned from until it is
    expected. The surprise of a step is `max(return - value, 0)`, with the return of then and the
    value of now; that of a sequence is the one of its most surprising step. Where rewards are
    divided by a running scale, returns are kept in the task's own units.

    Source: Oh et al., Self-Imitation Learning (ICML 2018), on whole sequences of an on-policy
    algorithm.

    Args:
        loss: the loss of the algorithm, whose networks are run.
        coeff: weight of the imitation; 0 keeps nothing and costs nothing.
        sequences_per_minibatch: how many of the sequences are drawn for a gradient step.
        num_sequences: how many are kept.

    Raises:
        ValueError: `coeff` is negative or not finite, or a number is not positive.

    Examples:
        >>> from torchrl_shm import SHMModule, WindEnv
        >>> from torchrl_shm.networks import make_actor_critic
        >>> from torchrl_shm.training import LeanClipPPOLoss, SelfImitation
        >>> operator = make_actor_critic(WindEnv(4), SHMModule)
        >>> loss = LeanClipPPOLoss(operator.get_policy_operator(), operator.get_value_head())
        >>> SelfImitation(loss, coeff=0.1).loss()
        tensor(0.)
    """

    # of the square of the surprise, by which the critic learns to expect it
    _CRITIC_COEFF = 0.05

    def __init__(
        self,
        loss: LeanClipPPOLoss,
        *,
        coeff: float,
        sequences_per_minibatch: int = 4,
        num_sequences: int = 64,
    ) -> None:
        if not 0 <= coeff < math.inf:
            raise ValueError(f"coeff={coeff} must be a finite number that is not negative")
        check_count("sequences_per_minibatch", sequences_per_minibatch)
        check_count("num_sequences", num_sequences)
        self.coeff = coeff
        self.sequences_per_minibatch = sequences_per_minibatch
        self.num_sequences = num_sequences
        self._loss = loss
        self._kept: TensorDictBase | None = None
        self._surprise = torch.zeros(0)
        # advantages of the algorithm are normalized, and those of here in the same way
        self._spread = 1.0
        # of the rewards: what the values of now are in units of
        self._scale = 1.0

    def add(self, batch: TensorDictBase, scale: float = 1.0) -> None:
        """Keep the most surprising sequences of a batch and of those kept before.

        Args:
            batch: sequences `[B, T]` with the entries that the loss reads, the target of the value
                and the value.
            scale: by which the rewards of the batch were divided.

        Raises:
            KeyError: an entry is missing; targets and values come from a value estimator.
        """
        if not self.coeff:
            return
        keys: Any = self._loss.tensor_keys
        gain = batch[keys.value_target] - batch[keys.value]
        # what is not finite is for the check of the algorithm to name
        gain = gain.nan_to_num(0.0, 0.0, 0.0)
        self._spread, self._scale = float(gain.std()), scale
        surprise = gain.clamp(min=0).flatten(1).amax(1)
        # a batch may not replace all that was kept at once
        most = surprise.topk(min(len(batch), max(1, self.num_sequences // 4)))
        kept = batch.select(*self._loss.in_keys, strict=False)[most.indices]
        kept[keys.value_target] = kept[keys.value_target] * scale
        surprise = most.values
        if self._kept is not None:
            with torch.no_grad():
                _, again = self._run(self._kept)
            kept = torch.cat([self._kept, kept])
            surprise = torch.cat([again.amax(1), surprise])
        best = surprise.topk(min(len(surprise), self.num_sequences)).indices
        self._kept, self._surprise = kept[best], surprise[best]

    def loss(self) -> Tensor:
        """Draw sequences, the more often the more surprising, and compute the loss.

        Returns:
            A scalar with gradients for the policy and the critic; 0 where nothing is kept.
        """
        if self._kept is None:
            return torch.zeros(())
        count = min(self.sequences_per_minibatch, len(self._kept))
        # where nothing is surprising, all are as good
        drawn = torch.multinomial(self._surprise + 1e-6, count)
        log_prob, surprise = self._run(self._kept[drawn])
        actor = -(log_prob * surprise.detach() / max(self._spread, 1e-6)).mean()
        return self.coeff * (actor + self._CRITIC_COEFF * surprise.square().mean())

    def _run(self, sequences: TensorDictBase) -> tuple[Tensor, Tensor]:
        """Log-probability of the actions, and surprise, both `[B, T]`."""
        keys: Any = self._loss.tensor_keys
        with set_recurrent_mode(True):
            dist, value = self._loss.run_networks(sequences)
        target = sequences[keys.value_target] / self._scale
        surprise = (target - value).clamp(min=0).squeeze(-1)
        return dist.log_prob(sequences[keys.action]), surprise

    def state_dict(self) -> dict[str, Any]:
        """Return what was kept."""
        kept = {} if self._kept is None else self._kept.to_dict()
        return {
            "kept": kept, "surprise": self._surprise, "spread": self._spread, "scale": self._scale,
        }  # fmt: skip

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned.

        Args:
            state_dict: of an object with the same options.
        """
        device = next(self._loss.parameters()).device
        self._surprise = state_dict["surprise"].to(device)
        self._spread, self._scale = state_dict["spread"], state_dict["scale"]
        kept, keys = state_dict["kept"], self._loss.tensor_keys
        shape = kept[keys.value_target].shape[:2] if kept else ()
        self._kept = TensorDict(kept, shape).to(device) if kept else None
