"""The table of losses: what comes of a memory in each of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torchrl.modules import OneHotCategorical, TanhNormal
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

from tests.modules._losses import NUM_ACTIONS, NUM_SLOTS, Estimated, Parts

ALL = ("actor", "critic", "both", "shared")


class Case(NamedTuple):
    """One row: a loss, and what comes of it."""

    make: Callable[[Parts], Any]
    where: tuple[str, ...] = ALL
    discrete: bool = False
    same: bool = False
    flat: bool = False


NONE: Any = {"reduction": "none"}
SAC: Any = NONE | {"scalar_output_mode": "exclude", "num_qvalue_nets": 1}
ENTROPY: Any = {"target_entropy": -2.0}
BOUNDS: Any = NONE | {"bounds": (-1.0, 1.0), "num_qvalue_nets": 1}
ONE_HOT: Any = {"action_space": "one-hot"}
# its penalty would adapt itself in each pass
PENALTY: Any = {"increment": 1.0, "decrement": 1.0}


def estimated(make: Any) -> Callable[[Parts], Any]:
    more = NONE | (PENALTY if make is KLPENPPOLoss else {})
    return lambda parts: Estimated(make, parts, **more)


def estimating(make: Any, **options: Any) -> Callable[[Parts], Any]:
    more = NONE | (PENALTY if make is KLPENPPOLoss else {})

    def build(parts: Parts) -> Any:
        loss = make(parts.actor(), parts.critic(), **more)
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


def mapped(make: Callable[..., Any], **options: Any) -> dict[str, Case]:
    """A loss that maps its networks over samples, and the same without."""
    name = options.pop("name")
    return {
        name: Case(lambda p: make(p, deactivate_vmap=False), **options),
        f"{name}(deactivate_vmap=True)": Case(lambda p: make(p, deactivate_vmap=True), **options),
    }


ON_POLICY: Any = (PPOLoss, ClipPPOLoss, KLPENPPOLoss, A2CLoss, ReinforceLoss)
CASES: dict[str, Case] = {
    **{f"{make.__name__} after an estimator": Case(estimated(make)) for make in ON_POLICY},
    **{f"{make.__name__}": Case(estimating(make)) for make in ON_POLICY},
    **{
        f"{make.__name__}, deactivate_vmap=True": Case(estimating(make, deactivate_vmap=True))
        for make in ON_POLICY
    },
    "BCLoss": Case(lambda p: BCLoss(p.actor(), **NONE), ("actor",)),
    "SACLoss": Case(lambda p: SACLoss(p.actor(TanhNormal), p.q_value(), **ENTROPY, **SAC)),
    "SACLoss(value_network=...)": Case(
        lambda p: SACLoss(p.actor(TanhNormal), p.q_value(), p.critic(), **ENTROPY, **SAC),
        same=True,
    ),
    "SACLoss(skip_done_states=True)": Case(
        lambda p: SACLoss(
            p.actor(TanhNormal), p.q_value(), skip_done_states=True, **ENTROPY, **SAC
        ),
        flat=True,
    ),
    "DiscreteSACLoss": Case(
        lambda p: DiscreteSACLoss(
            p.actor(OneHotCategorical),
            p.critic("action_value", size=NUM_ACTIONS),
            num_actions=NUM_ACTIONS,
            **ONE_HOT,
            **SAC,
        ),
        discrete=True,
    ),
    "CrossQLoss": Case(lambda p: CrossQLoss(p.actor(TanhNormal), p.q_value(), **ENTROPY, **SAC)),
    "TQCLoss": Case(
        lambda p: TQCLoss(
            p.actor(TanhNormal), p.q_value(5), top_quantiles_to_drop_per_net=1, **ENTROPY, **SAC
        )
    ),
    **mapped(
        lambda p, **more: REDQLoss(
            p.actor(TanhNormal), p.q_value(), sub_sample_len=1, **ENTROPY, **SAC, **more
        ),
        name="REDQLoss",
        same=True,
    ),
    "DDPGLoss": Case(lambda p: DDPGLoss(p.deterministic(), p.q_value(), **NONE)),
    **mapped(
        lambda p, **more: TD3Loss(p.deterministic(), p.q_value(), **BOUNDS, **more),
        name="TD3Loss",
        same=True,
    ),
    **mapped(
        lambda p, **more: TD3BCLoss(p.deterministic(), p.q_value(), **BOUNDS, **more),
        name="TD3BCLoss",
        same=True,
    ),
    "IQLLoss": Case(
        lambda p: IQLLoss(p.actor(TanhNormal), p.q_value(), p.critic(), **SAC), same=True
    ),
    "DiscreteIQLLoss": Case(
        lambda p: DiscreteIQLLoss(
            p.actor(OneHotCategorical),
            p.critic("state_action_value", size=NUM_ACTIONS),
            p.critic(),
            **ONE_HOT,
            **SAC,
        ),
        discrete=True,
    ),
    **mapped(
        lambda p, **more: CQLLoss(
            p.actor(TanhNormal),
            p.q_value(),
            num_random=2,
            scalar_output_mode="exclude",
            **ENTROPY,
            **NONE,
            **more,
        ),
        name="CQLLoss",
        same=True,
    ),
    "DiscreteCQLLoss": Case(
        lambda p: DiscreteCQLLoss(p.q_values(), **ONE_HOT, **NONE), ("critic",), discrete=True
    ),
    "DQNLoss": Case(
        lambda p: DQNLoss(p.q_values(), **ONE_HOT, **NONE), ("critic",), discrete=True
    ),
    "DQNLoss(double_dqn=True)": Case(
        lambda p: DQNLoss(p.q_values(), double_dqn=True, **ONE_HOT, **NONE),
        ("critic",),
        discrete=True,
    ),
    "DistributionalDQNLoss": Case(
        lambda p: DistributionalDQNLoss(p.q_distribution(), gamma=0.9, **NONE),
        ("critic",),
        discrete=True,
        flat=True,
    ),
}
for made in (TD0Estimator, TD1Estimator, TDLambdaEstimator, GAE, VTrace):
    kinds: Any = {
        "": {},
        "(deactivate_vmap=True)": {"deactivate_vmap": True},
        "(shifted=True)": {"shifted": True, "shifted_budget": NUM_SLOTS},
    }
    for suffix, options in kinds.items():
        CASES[made.__name__ + suffix] = Case(estimator(made, **options), ("critic",))
