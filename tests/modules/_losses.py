"""Losses and value estimators of TorchRL, each with a memory where it can take one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

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
    TanhNormal,
)
from torchrl.objectives import (
    A2CLoss,
    BCLoss,
    ClipPPOLoss,
    CQLLoss,
    CrossQLoss,
    DDPGLoss,
    DiscreteCQLLoss,
    DiscreteIQLLoss,
    DiscreteSACLoss,
    DistributionalDQNLoss,
    DQNLoss,
    IQLLoss,
    KLPENPPOLoss,
    PPOLoss,
    REDQLoss,
    ReinforceLoss,
    SACLoss,
    TD3BCLoss,
    TD3Loss,
    TQCLoss,
    ValueEstimators,
)
from torchrl.objectives.value import GAE, TD0Estimator, TD1Estimator, TDLambdaEstimator, VTrace

from tests.modules._helpers import DTYPE, SIZE, join, make_memory

NUM_ACTIONS = 4
FEATURES = 6
# of shifted estimators: one, and one for each truncation of a sequence
NUM_SLOTS = 8
NONE: Any = {"reduction": "none"}
SAC: Any = NONE | {"scalar_output_mode": "exclude"}


class Parts:
    """The networks of a loss: with their memories, or the heads alone that stand behind `unroll`.

    Args:
        where: which of `"actor"` and `"critic"` have a memory; the others read the observation.
        state: of the memories.
        heads: whether the networks are heads that read features.
        options: of the memories.
    """

    def __init__(self, where: str, state: Any, *, heads: bool = False, **options: Any) -> None:
        self.heads = heads
        self.memories: dict[str, Any] = {}
        for size, name in ((4, "actor"), (5, "critic")):
            if where in (name, "both"):
                keys = {
                    "in_keys": ["observation", f"{name}_memory"],
                    "out_key": f"{name}_features",
                }
                self.memories[name] = make_memory(size, state=state, **keys, **options)

    def reads(self, name: str) -> tuple[str, int]:
        """The entry that a head reads, and its size."""
        return (f"{name}_features", FEATURES) if name in self.memories else ("observation", SIZE)

    def behind(self, name: str, head: Any) -> Any:
        """A head behind the memory of the network, if it has one and is to run it."""
        return head if self.heads or name not in self.memories else join(self.memories[name], head)

    def actor(self, distribution: Any = IndependentNormal) -> Any:
        """A stochastic actor."""
        key, size = self.reads("actor")
        if distribution is OneHotCategorical:
            net: nn.Module = nn.Linear(size, NUM_ACTIONS, dtype=DTYPE)
            keys = ["logits"]
        else:
            linear = nn.Linear(size, 4, dtype=DTYPE)
            net, keys = nn.Sequential(linear, NormalParamExtractor()), ["loc", "scale"]
        return ProbabilisticActor(
            self.behind("actor", TensorDictModule(net, [key], keys)),
            in_keys=keys,
            distribution_class=distribution,
            return_log_prob=True,
        )

    def deterministic(self) -> Any:
        """An actor that writes its action."""
        key, size = self.reads("actor")
        net = nn.Sequential(nn.Linear(size, 2, dtype=DTYPE), nn.Tanh())
        return self.behind("actor", TensorDictModule(net, [key], ["action"]))

    def critic(self, out: str = "state_value", *, size: int = 1, others: Any = ()) -> Any:
        """A critic: a state's value, an action's with `others=["action"]`, or all actions'."""
        key, width = self.reads("critic")
        net = Critic(width + 2 * len(others), size)
        return self.behind("critic", TensorDictModule(net, [key, *others], [out]))

    def q_values(self) -> Any:
        """The values of all actions, and the best of them."""
        key, width = self.reads("critic")
        net = nn.Linear(width, NUM_ACTIONS, dtype=DTYPE)
        return self.behind("critic", QValueActor(net, in_keys=[key], action_space="one-hot"))

    def q_distribution(self) -> Any:
        """Distributions of the values of all actions."""
        key, width = self.reads("critic")
        atoms = torch.linspace(-2, 2, 3, dtype=DTYPE)
        linear = nn.Linear(width, 3 * NUM_ACTIONS, dtype=DTYPE)
        net = nn.Sequential(linear, nn.Unflatten(-1, (3, NUM_ACTIONS)), nn.LogSoftmax(-2))
        head = DistributionalQValueActor(net, in_keys=[key], support=atoms, action_space="one-hot")
        return self.behind("critic", head)


class Critic(nn.Module):
    """A layer over concatenated inputs."""

    def __init__(self, num_inputs: int, num_outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(num_inputs, num_outputs, dtype=DTYPE)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.linear(torch.cat(inputs, -1))


class Case(NamedTuple):
    """One row of the table: a loss, and what comes of it."""

    make: Callable[[Parts], Any]
    where: tuple[str, ...] = ("actor", "critic", "both")
    discrete: bool = False


def q_value(parts: Parts) -> Any:
    return parts.critic("state_action_value", others=["action"])


class Estimated:
    """A loss after an estimator, as recipes run them."""

    def __init__(self, loss: Any, critic: Any) -> None:
        self.loss = loss
        self.value_network = critic

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loss, name)

    def __call__(self, data: Any) -> Any:
        options: Any = {"lmbda": 0.8, "shifted": True, "shifted_budget": NUM_SLOTS}
        estimator = GAE(gamma=0.9, value_network=self.value_network, **options)
        with torch.no_grad():
            data = estimator(data)
        return self.loss(data)


def estimated(make: Any) -> Callable[[Parts], Any]:
    def build(parts: Parts) -> Any:
        critic = parts.critic()
        more = PENALTY if make is KLPENPPOLoss else {}
        return Estimated(make(parts.actor(), critic, **NONE, **more), critic)

    return build


def estimating(make: Any, **options: Any) -> Callable[[Parts], Any]:
    def build(parts: Parts) -> Any:
        more = PENALTY if make is KLPENPPOLoss else {}
        loss = make(parts.actor(), parts.critic(), **NONE, **more)
        loss.make_value_estimator(ValueEstimators.TD0, gamma=0.9, **options)
        return loss

    return build


def estimator(
    make: Any, *, deactivate_vmap: bool = False, **options: Any
) -> Callable[[Parts], Any]:
    def build(parts: Parts) -> Any:
        more: dict[str, Any] = {}
        if make in (GAE, TDLambdaEstimator):
            more["lmbda"] = 0.8
        if make is VTrace:
            more["actor_network"] = parts.actor()
        module = make(gamma=0.9, value_network=parts.critic(), **more, **options)
        module.deactivate_vmap = deactivate_vmap
        return module

    return build


ACTION: Any = {"bounds": (-1.0, 1.0)}
ONE_HOT: Any = {"action_space": "one-hot"}

# its penalty adapts itself in each pass
PENALTY: Any = {"increment": 1.0, "decrement": 1.0}
ON_POLICY: Any = (PPOLoss, ClipPPOLoss, KLPENPPOLoss, A2CLoss, ReinforceLoss)
CASES: dict[str, Case] = {
    **{f"{make.__name__} after an estimator": Case(estimated(make)) for make in ON_POLICY},
    **{f"{make.__name__}": Case(estimating(make)) for make in ON_POLICY},
    **{
        f"{make.__name__}, deactivate_vmap=True": Case(estimating(make, deactivate_vmap=True))
        for make in ON_POLICY
    },
    "BCLoss": Case(lambda p: BCLoss(p.actor(), **NONE), ("actor",)),
    "SACLoss": Case(
        lambda p: SACLoss(
            p.actor(TanhNormal), q_value(p), num_qvalue_nets=1, target_entropy=-2.0, **SAC
        )
    ),
    "DiscreteSACLoss": Case(
        lambda p: DiscreteSACLoss(
            p.actor(OneHotCategorical),
            p.critic("action_value", size=NUM_ACTIONS),
            num_actions=NUM_ACTIONS,
            num_qvalue_nets=1,
            **ONE_HOT,
            **SAC,
        ),
        discrete=True,
    ),
    "CrossQLoss": Case(
        lambda p: CrossQLoss(
            p.actor(TanhNormal), q_value(p), num_qvalue_nets=1, target_entropy=-2.0, **SAC
        )
    ),
    "TQCLoss": Case(
        lambda p: TQCLoss(
            p.actor(TanhNormal),
            p.critic("state_action_value", size=5, others=["action"]),
            num_qvalue_nets=1,
            top_quantiles_to_drop_per_net=1,
            target_entropy=-2.0,
            **SAC,
        )
    ),
    "REDQLoss": Case(
        lambda p: REDQLoss(
            p.actor(TanhNormal),
            q_value(p),
            num_qvalue_nets=1,
            sub_sample_len=1,
            target_entropy=-2.0,
            **SAC,
        )
    ),
    "DDPGLoss": Case(lambda p: DDPGLoss(p.deterministic(), q_value(p), **NONE)),
    "TD3Loss": Case(
        lambda p: TD3Loss(p.deterministic(), q_value(p), num_qvalue_nets=1, **ACTION, **NONE)
    ),
    "TD3BCLoss": Case(
        lambda p: TD3BCLoss(p.deterministic(), q_value(p), num_qvalue_nets=1, **ACTION, **NONE)
    ),
    "IQLLoss": Case(
        lambda p: IQLLoss(p.actor(TanhNormal), q_value(p), p.critic(), num_qvalue_nets=1, **SAC)
    ),
    "DiscreteIQLLoss": Case(
        lambda p: DiscreteIQLLoss(
            p.actor(OneHotCategorical),
            p.critic("state_action_value", size=NUM_ACTIONS),
            p.critic(),
            num_qvalue_nets=1,
            **ONE_HOT,
            **SAC,
        ),
        discrete=True,
    ),
    "CQLLoss": Case(
        lambda p: CQLLoss(p.actor(TanhNormal), q_value(p), target_entropy=-2.0, num_random=2, **SAC)
    ),
    "DiscreteCQLLoss": Case(
        lambda p: DiscreteCQLLoss(p.q_values(), **ONE_HOT, **NONE), ("critic",), discrete=True
    ),
    "DQNLoss": Case(lambda p: DQNLoss(p.q_values(), **ONE_HOT, **NONE), ("critic",), discrete=True),
    "DQNLoss(double_dqn=True)": Case(
        lambda p: DQNLoss(p.q_values(), double_dqn=True, **ONE_HOT, **NONE),
        ("critic",),
        discrete=True,
    ),
    "DistributionalDQNLoss": Case(
        lambda p: DistributionalDQNLoss(p.q_distribution(), gamma=0.9, **NONE),
        ("critic",),
        discrete=True,
    ),
}
for made in (TD0Estimator, TD1Estimator, TDLambdaEstimator, GAE, VTrace):
    for suffix, given in (
        ("", {}),
        ("(deactivate_vmap=True)", {"deactivate_vmap": True}),
        ("(shifted=True)", {"shifted": True, "shifted_budget": NUM_SLOTS}),
    ):
        CASES[made.__name__ + suffix] = Case(estimator(made, **given), ("critic",))
