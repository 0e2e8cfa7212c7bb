"""Networks of losses, with memories or as the heads that stand behind `unroll`."""

from __future__ import annotations

from typing import Any

import torch
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.modules import (
    DistributionalQValueActor,
    IndependentNormal,
    NormalParamExtractor,
    OneHotCategorical,
    ProbabilisticActor,
    QValueActor,
)
from torchrl.objectives.value import GAE

from tests.modules._helpers import DTYPE, SIZE, join, make_memory

NUM_ACTIONS = 4
FEATURES = 6
SIZES = {"actor": 4, "critic": 5, "shared": 4}
# of shifted estimators: one, and one for each truncation of a sequence
NUM_SLOTS = 8


class Parts:
    """What a loss is made of.

    Args:
        where: who has a memory: `"actor"`, `"critic"`, `"both"`, one each, or `"shared"`, one for
            both. The others read the observation.
        state: of the memories.
        heads: whether the networks are heads that read features, and run no memory.
        same: whether all heads read the same entries, although each uses its own.
        options: of the memories.
    """

    def __init__(
        self, where: str, state: Any, *, heads: bool = False, same: bool = False, **options: Any
    ) -> None:
        self.heads = heads
        self.same = same and heads
        names = {"both": ("actor", "critic")}.get(where, (where,))
        options.setdefault("calibration", "neural")
        self.memories: dict[str, Any] = {}
        for name in names:
            keys: Any = {"in_keys": ["observation", f"{name}_memory"]}
            keys["out_key"] = f"{name}_features"
            self.memories[name] = make_memory(SIZES[name], state=state, **keys, **options)

    def memory_of(self, name: str) -> Any:
        """The memory of the actor or the critic, or `None`."""
        return self.memories.get("shared", self.memories.get(name))

    def entries(self, name: str) -> tuple[list[Any], int]:
        """What a head reads, its own entry first, and the size of that."""
        mine, other = (
            "observation" if memory is None else memory.out_keys[0]
            for memory in map(self.memory_of, (name, "critic" if name == "actor" else "actor"))
        )
        size = SIZE if mine == "observation" else FEATURES
        return [mine, *([other] if self.same and other != mine else [])], size

    def behind(self, name: str, head: Any) -> Any:
        """A head behind the memory of the network, if it has one and is to run it."""
        memory = self.memory_of(name)
        return head if self.heads or memory is None else join(memory, head)

    def actor(self, distribution: Any = IndependentNormal) -> Any:
        """A stochastic actor."""
        entries, size = self.entries("actor")
        keys: Any
        if distribution is OneHotCategorical:
            net, keys = Layer(size, NUM_ACTIONS), ["logits"]
        else:
            net, keys = Layer(size, 4, NormalParamExtractor()), ["loc", "scale"]
        return ProbabilisticActor(
            self.behind("actor", TensorDictModule(net, entries, keys)),
            in_keys=keys,
            distribution_class=distribution,
            return_log_prob=True,
        )

    def deterministic(self) -> Any:
        """An actor that writes its action."""
        entries, size = self.entries("actor")
        net = Layer(size, 2, nn.Tanh())
        return self.behind("actor", TensorDictModule(net, entries, ["action"]))

    def critic(self, out: str = "state_value", *, size: int = 1) -> Any:
        """A critic of states, or of all actions."""
        entries, width = self.entries("critic")
        return self.behind("critic", TensorDictModule(Layer(width, size), entries, [out]))

    def q_value(self, size: int = 1) -> Any:
        """A critic of an action, or quantiles of its value."""
        (mine, *others), width = self.entries("critic")
        entries = [mine, "action", *others]
        net = TensorDictModule(Layer(width + 2, size), entries, ["state_action_value"])
        return self.behind("critic", net)

    def q_values(self) -> Any:
        """The values of all actions, and the best of them."""
        entries, width = self.entries("critic")
        net = Layer(width, NUM_ACTIONS)
        return self.behind("critic", QValueActor(net, in_keys=entries, action_space="one-hot"))

    def q_distribution(self) -> Any:
        """Distributions of the values of all actions."""
        entries, width = self.entries("critic")
        shape = nn.Sequential(nn.Unflatten(-1, (3, NUM_ACTIONS)), nn.LogSoftmax(-2))
        head = TensorDictModule(Layer(width, 3 * NUM_ACTIONS, shape), entries, ["action_value"])
        # the loss looks for the action space at the outermost module
        return DistributionalQValueActor(
            self.behind("critic", head),
            support=torch.linspace(-2, 2, 3, dtype=DTYPE),
            action_space="one-hot",
            make_log_softmax=False,
        )


class Layer(nn.Module):
    """A linear layer over concatenated inputs, of which it uses the first."""

    def __init__(self, num_inputs: int, num_outputs: int, after: nn.Module | None = None) -> None:
        super().__init__()
        self.linear = nn.Linear(num_inputs, num_outputs, dtype=DTYPE)
        self.after = nn.Identity() if after is None else after

    def forward(self, *inputs: Tensor) -> Any:
        x = torch.cat([x.to(DTYPE) for x in inputs], -1)[..., : self.linear.in_features]
        return self.after(self.linear(x))


class Estimated:
    """A loss after a shifted estimator, as recipes run them."""

    def __init__(self, make: Any, parts: Parts, **options: Any) -> None:
        self.value_network = parts.critic()
        self.loss = make(parts.actor(), self.value_network, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loss, name)

    def __call__(self, data: Any) -> Any:
        options: Any = {"lmbda": 0.8, "shifted": True, "shifted_budget": NUM_SLOTS}
        estimator = GAE(gamma=0.9, value_network=self.value_network, **options)
        with torch.no_grad():
            data = estimator(data)
        return self.loss(data)
