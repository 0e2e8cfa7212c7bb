"""Networks in TensorDict's contract, with little around the tensors.

Small networks take less time than what TensorDict's own modules do around them: each of these looks
for whatever a function may return (dataclasses, data frames, files), and each policy makes a
distribution that checks its arguments. The modules of this file know what they get.
"""

from __future__ import annotations

from typing import Any

from tensordict import NestedKey, TensorDictBase
from tensordict.nn import (
    TensorDictModule,
    TensorDictModuleBase,
    TensorDictSequential,
    dispatch,
)
from torch.distributions import Distribution
from torchrl.envs import ExplorationType
from torchrl.envs.utils import exploration_type
from torchrl.modules import ActorValueOperator, SafeProbabilisticTensorDictSequential

COMPUTED_KEYS: tuple[NestedKey, ...] = (
    "embedding", "features", "critic_embedding", "critic_features", "loc", "scale", "logits",
)  # fmt: skip
"""Entries that a loss computes again, so that nobody collects them."""


class Layer(TensorDictModule):
    """A network that maps entries to an entry, or to several.

    Args:
        module: maps tensors to a tensor, or to a tuple of them.
        in_keys: entries that it reads.
        out_keys: entries that it writes.
    """

    @dispatch(auto_batch_size=False)
    def forward(  # pyright: ignore[reportIncompatibleVariableOverride]
        self, tensordict: TensorDictBase
    ) -> TensorDictBase:
        """Run the network and write what it returns.

        Args:
            tensordict: data of any shape.

        Returns:
            The same TensorDict.

        Raises:
            KeyError: an entry is missing.
        """
        y = self.module(*[tensordict[key] for key in self.in_keys])
        keys = self.out_keys
        for key, x in zip(keys, (y,) if len(keys) == 1 else y, strict=True):
            tensordict.set(key, x)
        return tensordict


class Policy(SafeProbabilisticTensorDictSequential):
    """Networks, and behind them the distribution of the action.

    Args:
        *parts: the networks, and a `ProbabilisticTensorDictModule` of one action.
    """

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        # beside the registered modules, which hold them once already
        vars(self)["_networks"] = [leaf for part in parts[:-1] for leaf in _leaves(part)]

    def get_dist_params(
        self, tensordict: TensorDictBase, tensordict_out: None = None, **kwargs: Any
    ) -> TensorDictBase:
        """Run the networks.

        Args:
            tensordict: data of any shape.
            tensordict_out: not used, as in a policy that writes to its input.
            **kwargs: not used.

        Returns:
            The same TensorDict.
        """
        for network in vars(self)["_networks"]:
            tensordict = network(tensordict)
        return tensordict

    def build_dist_from_params(self, tensordict: TensorDictBase) -> Distribution:
        """Make the distribution from what the networks have written."""
        return self._head.get_dist(tensordict)

    @dispatch(auto_batch_size=False)
    def forward(  # pyright: ignore[reportIncompatibleVariableOverride]
        self, tensordict: TensorDictBase
    ) -> TensorDictBase:
        """Choose actions: random ones, or the most likely, as the exploration type says.

        Args:
            tensordict: data of any shape.

        Returns:
            The same TensorDict.
        """
        return self._act(tensordict)

    def _act(self, tensordict: TensorDictBase) -> TensorDictBase:
        tensordict, head = self.get_dist_params(tensordict), self._head
        if exploration_type() is not ExplorationType.RANDOM:
            return head(tensordict)
        dist = head.get_dist(tensordict)
        action = dist.sample()
        tensordict.set(head.dist_sample_keys[0], action)
        tensordict.set(head.log_prob_keys[0], dist.log_prob(action))
        return tensordict

    @property
    def _head(self) -> Any:
        return self.module[-1]


class Behavior(Policy):
    """A policy that collects data, and leaves out what every loss computes again.

    Args:
        *parts: as in `Policy`.
    """

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self._computed = [key for key in self.out_keys if key in COMPUTED_KEYS]
        self.out_keys = [key for key in self.out_keys if key not in COMPUTED_KEYS]

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Choose actions, and write nothing that is not to be collected.

        Args:
            tensordict: data of any shape.

        Returns:
            The same TensorDict.
        """
        tensordict = self._act(tensordict)
        for key in self._computed:
            tensordict.del_(key)
        return tensordict


class Operator(ActorValueOperator):
    """An embedding and a memory, and an actor and a critic behind them."""

    def get_policy_operator(self) -> Policy:
        """The actor with what stands before it."""
        backbone, actor, _ = self.module
        return Policy(backbone, *actor.module)  # pyright: ignore[reportGeneralTypeIssues]


def _leaves(part: Any) -> list[TensorDictModuleBase]:
    """The modules that a sequence of sequences runs one after the other."""
    if type(part).forward is TensorDictSequential.forward:
        return [leaf for child in part for leaf in _leaves(child)]
    return [part]
