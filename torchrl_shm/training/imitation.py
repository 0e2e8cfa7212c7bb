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
    """Keeps sequences with an unexpected success, and raises the probability of what they did.

    Where an agent has learned that it will fail, a critic with a memory expects the failure, every
    action is as good as expected, and nothing is learned from any of them. A success by chance is
    then one sequence among hundreds, in one batch. Here it is kept, and learned from until it is
    expected.

    The surprise of a step is `max(return - value, 0)`, with the return of then and the value of
    now. Its priority is that times the probability of acting otherwise: what the policy would do
    by itself needs no imitation, however slow the critic. Else the many successes of what is being
    learned take the places of the few of what is not. A sequence has the priority of its foremost
    step, is drawn in proportion to the square of it, and gets the one of now when it is drawn.

    Where many small rewards lie on the way, a return is above the expected one by the luck of them
    all, which grows with the way and then hides a success. With `trace_decay` a step has the
    priority of its own surprise, without that of the steps that follow: what is left is the
    temporal difference. It is exact when a sequence is added; later, targets of then and values of
    now mix, by the less the closer lambda is to 1.

    Where rewards are divided by a running scale, returns are kept in the task's own units.

    Sources: Oh et al., Self-Imitation Learning (ICML 2018), here on whole sequences of an on-policy
    algorithm; Schaul et al., Prioritized Experience Replay (ICLR 2016), for priorities that are
    renewed as they are drawn.

    Args:
        loss: the loss of the algorithm, whose networks are run.
        coeff: weight of the imitation; 0 keeps nothing and costs nothing. A great one learns the
            few sequences by heart. Surprises are in units of how much they differ in a batch. Where
            the critic's targets reach further than the advantages of the policy they differ more,
            so the same surprise weighs less.
        sequences_per_minibatch: how many of the sequences are drawn for a gradient step.
        num_sequences: how many are kept, those with the greatest priority.
        trace_decay: discount times lambda of the estimator that made the targets, for priorities of
            single steps; 0 for those of all that follows a step.

    Raises:
        ValueError: `coeff` is negative or not finite, a number is not positive, or
            `trace_decay` is not between 0 and 1.

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
    # new sequences of a batch, as a part of those that are kept: one batch may not replace all
    _NEW = 1 / 8

    def __init__(
        self,
        loss: LeanClipPPOLoss,
        *,
        coeff: float,
        sequences_per_minibatch: int = 4,
        num_sequences: int = 256,
        trace_decay: float = 0.0,
    ) -> None:
        if not 0 <= coeff < math.inf:
            raise ValueError(f"coeff={coeff} must be a finite number that is not negative")
        check_count("sequences_per_minibatch", sequences_per_minibatch)
        check_count("num_sequences", num_sequences)
        if not 0 <= trace_decay <= 1:
            raise ValueError(f"trace_decay={trace_decay} must be between 0 and 1")
        self.coeff = coeff
        self.sequences_per_minibatch = sequences_per_minibatch
        self.num_sequences = num_sequences
        self.trace_decay = trace_decay
        self._loss = loss
        self._kept: TensorDictBase | None = None
        self._priority = torch.zeros(0)
        # of the surprises of a batch, which are divided by it, as the algorithm's advantages are by
        # theirs: the larger of the two where the critic looks further ahead than the policy
        self._spread = 1.0
        # of the rewards: what the values of now are in units of
        self._scale = 1.0

    def add(self, batch: TensorDictBase, scale: float = 1.0) -> None:
        """Keep those of greatest priority among the sequences of a batch and those kept before.

        Args:
            batch: sequences `[B, T]` with the entries that the loss reads, the target of the value
                and the value, and with `trace_decay` also `is_init`.
            scale: by which the rewards of the batch were divided.

        Raises:
            KeyError: an entry is missing; targets and values come from a value estimator.
        """
        if not self.coeff:
            return
        keys: Any = self._loss.tensor_keys
        gain = batch[keys.value_target] - batch[keys.value]
        # what is not finite is for the check of the algorithm to name
        gain = gain.nan_to_num(0.0, 0.0, 0.0).squeeze(-1)
        self._spread, self._scale = float(gain.std()), scale
        priority = self._prioritize(gain, batch, batch[keys.sample_log_prob])
        new = priority.topk(min(len(batch), math.ceil(self.num_sequences * self._NEW)))
        entries = set(self._loss.in_keys) - {keys.advantage, keys.sample_log_prob}
        if self.trace_decay:
            entries.add("is_init")
        kept = batch.select(*entries, strict=False)[new.indices]
        kept[keys.value_target] = kept[keys.value_target] * scale
        priority = new.values
        if self._kept is not None:
            kept = torch.cat([self._kept, kept])
            priority = torch.cat([self._priority, priority])
        best = priority.topk(min(len(priority), self.num_sequences)).indices
        self._kept, self._priority = kept[best], priority[best]

    def loss(self) -> Tensor:
        """Draw sequences, compute the loss, and renew their priorities.

        Returns:
            A scalar with gradients for the policy and the critic; 0 where nothing is kept.
        """
        if self._kept is None:
            return torch.zeros(())
        count = min(self.sequences_per_minibatch, len(self._kept))
        # where nothing is surprising, all are as good
        drawn = torch.multinomial(self._priority.square() + 1e-6, count)
        sequences = self._kept[drawn]
        keys: Any = self._loss.tensor_keys
        with set_recurrent_mode(True):
            dist, value = self._loss.run_networks(sequences)
        assert value is not None, "what was expected takes a critic"
        log_prob = dist.log_prob(sequences[keys.action])
        gain = (sequences[keys.value_target] / self._scale - value).squeeze(-1)
        surprise = gain.clamp(min=0)
        with torch.no_grad():
            self._priority[drawn] = self._prioritize(gain, sequences, log_prob)
        actor = -(log_prob * surprise.detach() / max(self._spread, 1e-6)).mean()
        return self.coeff * (actor + self._CRITIC_COEFF * surprise.square().mean())

    def _prioritize(self, gain: Tensor, data: TensorDictBase, log_prob: Tensor) -> Tensor:
        """Priority of sequences `[B]` from what their steps brought beyond the value."""
        if self.trace_decay:
            goes_on = ~data["is_init"][:, 1:].squeeze(-1)
            after = gain[:, 1:] * goes_on
            gain = gain - self.trace_decay * torch.nn.functional.pad(after, (0, 1))
        # a density above 1 is as good as certain
        otherwise = (1 - log_prob.exp()).clamp(min=0)
        return (gain.clamp(min=0) * otherwise).nan_to_num(0.0).amax(1) * self._scale

    def state_dict(self) -> dict[str, Any]:
        """Return what was kept."""
        kept = {} if self._kept is None else self._kept.to_dict()
        return {
            "kept": kept, "priority": self._priority, "spread": self._spread, "scale": self._scale,
        }  # fmt: skip

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned.

        Args:
            state_dict: of an object with the same options.
        """
        device = next(self._loss.parameters()).device
        self._priority = state_dict["priority"].to(device)
        self._spread, self._scale = state_dict["spread"], state_dict["scale"]
        kept, keys = state_dict["kept"], self._loss.tensor_keys
        shape = kept[keys.value_target].shape[:2] if kept else ()
        self._kept = TensorDict(kept, shape).to(device) if kept else None
