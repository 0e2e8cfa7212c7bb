"""Networks in TensorDict's contract, with little around the tensors.

TensorDict's own modules cost more than the small networks in them: each looks for what it may have
been given (tuples, dataclasses, data frames), and each policy makes distributions that check their
arguments. These do the same for networks of which all of that is known.
"""

from __future__ import annotations

from typing import Any

from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictModuleBase, TensorDictSequential, dispatch
from torch import distributions
from torchrl.envs import ExplorationType
from torchrl.envs.utils import exploration_type
from torchrl.modules import ActorValueOperator, SafeProbabilisticTensorDictSequential


COMPUTED_KEYS = ("embedding", "features", "critic_embedding", "critic_features", "loc", "scale", "logits")
"""Entries that a loss computes again from what was collected."""


class Layer(TensorDictModule):
    """A network that reads entries and writes one, or several.

    Args:
        module: maps tensors to a tensor, or to a tuple of them.
        in_keys: entries that it reads.
        out_keys: entries that it writes.
    """

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Run the network and write what it returns."""
        y = self.module(*[tensordict.get(key) for key in self.in_keys])
        keys = self.out_keys
        for key, x in zip(keys, (y,) if len(keys) == 1 else y, strict=True):
            tensordict.set(key, x)
        return tensordict


class Policy(SafeProbabilisticTensorDictSequential):
    """Deterministic parts and the distribution of the action behind them."""

    def __init__(self, *parts: TensorDictModuleBase) -> None:
        super().__init__(*parts)
        # not in the list of modules, which would hold them twice
        vars(self)["_leaves"] = [leaf for part in parts[:-1] for leaf in _leaves(part)]

    def get_dist_params(
        self, tensordict: TensorDictBase, tensordict_out: None = None, **kwargs: Any
    ) -> TensorDictBase:
        """Run all but the distribution."""
        for leaf in vars(self)["_leaves"]:
            tensordict = leaf(tensordict)
        return tensordict

    def build_dist_from_params(self, tensordict: TensorDictBase) -> distributions.Distribution:
        """Make the distribution from its parameters."""
        return self.module[-1].get_dist(tensordict)

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Draw an action, or take the most likely one, as the exploration type says."""
        head: Any = self.module[-1]
        tensordict = self.get_dist_params(tensordict)
        if exploration_type() != ExplorationType.RANDOM:
            return head(tensordict)
        dist = head.get_dist(tensordict)
        action = dist.sample()
        tensordict.set(head.dist_sample_keys[0], action)
        tensordict.set(head.log_prob_keys[0], dist.log_prob(action))
        return tensordict


class Behavior(Policy):
    """A policy that collects data: it leaves out what every loss computes again."""

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Run one step."""
        tensordict = super().forward(tensordict)
        for key in COMPUTED_KEYS:
            tensordict.pop(key, None)
        return tensordict


class Operator(ActorValueOperator):
    """Embedding and memory, with an actor and a critic behind them."""

    def get_policy_operator(self) -> Policy:
        """The actor, with embedding and memory."""
        return Policy(self.module[0], *self.module[1].module)


def _leaves(part: Any) -> list[TensorDictModuleBase]:
    if isinstance(part, TensorDictSequential) and type(part).forward is TensorDictSequential.forward:
        return [leaf for child in part for leaf in _leaves(child)]
    return [part]
