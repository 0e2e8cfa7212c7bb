"""Networks in TensorDict's contract, with little around the tensors.

Small networks take less time than what TensorDict's own modules do around them: each of these looks
for whatever a function may return (dataclasses, data frames, files), and each policy makes a
distribution that checks its arguments. The modules of this file know what they get.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
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
    "time", "embedding", "features", "critic_embedding", "critic_features",
)  # fmt: skip
"""Entries that every loss computes again, so that nobody collects them."""


class Entries(dict[Any, Any]):
    """Tensors by key, with the methods of a TensorDict that networks of this package call.

    Args:
        entries: tensors of the batch shape.
        shape: the batch shape.
    """

    set = dict[Any, Any].__setitem__

    def __init__(self, entries: Any, shape: torch.Size) -> None:
        super().__init__(entries)
        self.shape = shape


class Layer(TensorDictModule):
    """A network that maps entries to an entry, or to several.

    Args:
        module: maps tensors to a tensor, or to a tuple of them.
        in_keys: entries that it reads.
        out_keys: entries that it writes.
    """

    def __init__(self, module: Any, in_keys: list[NestedKey], out_keys: list[NestedKey]) -> None:
        super().__init__(module, in_keys, out_keys)

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
        self.run(tensordict)
        return tensordict

    def run(self, entries: Any) -> None:
        """Do the same with anything that has `get` and `set`, such as `Entries`.

        Args:
            entries: tensors by key.

        Raises:
            KeyError: an entry is missing.
        """
        # not by `self.module`, whose look-up takes as long as a small operation
        module: Any = self._modules["module"]
        y = module(*[entries[key] for key in self.in_keys])
        keys = self.out_keys
        for key, x in zip(keys, (y,) if len(keys) == 1 else y, strict=True):
            entries.set(key, x)


class Policy(SafeProbabilisticTensorDictSequential):
    """Networks, and behind them the distribution of the action.

    Args:
        *parts: the networks, and a `ProbabilisticTensorDictModule` of one action.
    """

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        # beside the registered modules, which hold them once already
        vars(self)["_networks"] = [leaf for part in parts[:-1] for leaf in _leaves(part)]
        vars(self)["_head"] = head = self.module[-1]
        # whether the head wants one action and its log-probability, as those of `make_actor` do
        self._draws = getattr(head, "return_log_prob", False) and head.num_samples is None
        self._flat = all(
            isinstance(key, str) or (len(key) == 2 and key[0] == "next")
            for key in (*self.in_keys, *self.out_keys)
        )

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

    @property
    def networks(self) -> list[TensorDictModuleBase]:
        """The networks, one by one, as they run."""
        return list(vars(self)["_networks"])

    @property
    def takes_entries(self) -> bool:
        """Whether `run_networks` does what `get_dist_params` does."""
        networks = vars(self)["_networks"]
        return (
            self._flat
            and not torch.compiler.is_compiling()
            and all(takes_entries(network) for network in networks)
        )

    def run_networks(self, entries: Entries) -> None:
        """Run the networks without a TensorDict, which takes a tenth of the time of small ones.

        Args:
            entries: what they read, to which is added what they write.
        """
        for network in vars(self)["_networks"]:
            network.run(entries)

    def build_dist_from_params(self, tensordict: Any) -> Distribution:
        """Make the distribution from what the networks have written."""
        return vars(self)["_head"].get_dist(tensordict)

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
        tensordict, head = self.get_dist_params(tensordict), vars(self)["_head"]
        if not self._draws or exploration_type() is not ExplorationType.RANDOM:
            return head(tensordict)
        self._draw_action(tensordict)
        return tensordict

    def _draw_action(self, entries: Any) -> None:
        head = vars(self)["_head"]
        dist = head.get_dist(entries)
        # a gradient may flow through the action where one is recorded
        reparameterize = dist.has_rsample and torch.is_grad_enabled()
        action = dist.rsample() if reparameterize else dist.sample()
        entries.set(head.dist_sample_keys[0], action)
        entries.set(head.log_prob_keys[0], dist.log_prob(action))


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
    def forward(  # pyright: ignore[reportIncompatibleVariableOverride]
        self, tensordict: TensorDictBase
    ) -> TensorDictBase:
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

    @property
    def draws_from_entries(self) -> bool:
        """Whether `draw` does what `forward` does; in a compiled or watched policy it does not."""
        random = exploration_type() is ExplorationType.RANDOM
        return self._draws and random and self.takes_entries and _is_passed_by(self, "draw")

    def draw(self, entries: Entries) -> dict[str, Any]:
        """Do the same without a TensorDict.

        Args:
            entries: what the networks read, to which is added what is to be collected.

        Returns:
            What the networks write for the next step, by key without `"next"`.
        """
        self.run_networks(entries)
        self._draw_action(entries)
        for key in self._computed:
            del entries[key]
        # also what is not declared, as the role of a memory
        handed_on = [key for key in entries if not isinstance(key, str)]
        return {key[1]: entries.pop(key) for key in handed_on}


class Operator(ActorValueOperator):
    """An embedding and a memory, and an actor and a critic behind them."""

    def get_policy_operator(self) -> Policy:
        """The actor with what stands before it."""
        backbone, actor, _ = self.module
        return Policy(backbone, *actor.module)  # pyright: ignore[reportGeneralTypeIssues]


def takes_entries(network: Any) -> bool:
    """Whether a network's `run` does what the network does when it is called."""
    return _is_passed_by(network, "run")


def _is_passed_by(network: Any, method: str) -> bool:
    """Whether a method may be called instead of the network, by all that it was made into."""
    return _defines_first(type(network), method) and not (
        # what watches a network must see it called
        network._forward_hooks or network._forward_pre_hooks or "forward" in vars(network)
    )


@cache
def _defines_first(kind: type, method: str) -> bool:
    """Whether no class derived from the one that has a method has another `forward`."""
    names = [name for base in kind.__mro__ for name in (method, "forward") if name in vars(base)]
    return names[0] == method


def _leaves(part: Any) -> list[TensorDictModuleBase]:
    """The modules that a sequence of sequences runs one after the other."""
    if type(part).forward is TensorDictSequential.forward:
        return [leaf for child in part for leaf in _leaves(child)]
    return [part]
