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

EXACT = "exact"


class Refused(NamedTuple):
    """An error: its reason, as the documentation lists them, and its message."""

    reason: str
    message: str


UNROLL = r".*torchrl_shm\.unroll\(module, rollouts\)"
NEXT = Refused("next", r"run over next observations, which lack the first of every ep" + UNROLL)
FLAT = Refused("flat", r"run over next observations, which may lack steps, being flat" + UNROLL)
VMAP = Refused("vmap", r"vmap cannot cut.*deactivate_vmap=True.*shifted=True" + UNROLL)
START = Refused("keys", r"start in mid-episode.*a loss dropped the keys" + UNROLL)
FLAGS = Refused("keys", r"'is_init' are missing.*If a loss dropped them" + UNROLL)
# TorchRL's own: it selects the critic's entries from the actor's
KEYS = Refused("keys", r"key \"critic_memory\" not found")
STEPS = Refused("steps", r"lack steps, or hold them twice" + UNROLL)
DETACHED = "detached"

# outcomes with state="lean", "stored" and "zero"
Outcomes = tuple[Any, Any, Any]
ALWAYS: Outcomes = (EXACT, EXACT, EXACT)
STORED: Outcomes = (NEXT, EXACT, NEXT)
MAPPED: Outcomes = (NEXT, VMAP, NEXT)


class Case(NamedTuple):
    """A loss, and what comes of a memory in it.

    Attributes:
        make: builds it from its networks.
        outcomes: where the memory is, and what comes of it with each state.
        unrolled: what comes of it through `unroll`.
        discrete: whether actions are choices.
        same: whether it gives all networks the entries of the actor alone.
        flat: whether it takes no dimension but time.
    """

    make: Callable[[Parts], Any]
    outcomes: dict[str, Outcomes]
    unrolled: str = EXACT
    discrete: bool = False
    same: bool = False
    flat: bool = False


def everywhere(outcomes: Outcomes) -> dict[str, Outcomes]:
    return dict.fromkeys(("actor", "critic", "both", "shared"), outcomes)


NONE: Any = {"reduction": "none"}
SAC: Any = NONE | {"scalar_output_mode": "exclude", "num_qvalue_nets": 1}
ENTROPY: Any = {"target_entropy": -2.0}
BOUNDS: Any = NONE | {"bounds": (-1.0, 1.0), "num_qvalue_nets": 1}
ONE_HOT: Any = {"action_space": "one-hot"}
NO_VMAP: Any = {"deactivate_vmap": True}
TD3: dict[str, Outcomes] = {
    "actor": STORED,
    "critic": (FLAGS, FLAGS, FLAGS),
    "both": (START, START, START),
    "shared": MAPPED,
}
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


ON_POLICY: Any = (PPOLoss, ClipPPOLoss, KLPENPPOLoss, A2CLoss, ReinforceLoss)
CASES: dict[str, Case] = {
    **{
        f"{make.__name__} after a shifted estimator": Case(
            estimated(make), {"both": ALWAYS, "shared": ALWAYS}
        )
        for make in ON_POLICY
    },
    **{
        f"{make.__name__} that estimates": Case(
            estimating(make), everywhere(MAPPED) | {"actor": ALWAYS}
        )
        for make in ON_POLICY
    },
    **{
        f"{make.__name__} that estimates with deactivate_vmap=True": Case(
            estimating(make, deactivate_vmap=True), {"both": STORED, "shared": STORED}
        )
        for make in ON_POLICY
    },
    "BCLoss": Case(lambda p: BCLoss(p.actor(), **NONE), {"actor": ALWAYS}),
    "DQNLoss": Case(
        lambda p: DQNLoss(p.q_values(), **ONE_HOT, **NONE), {"critic": STORED}, discrete=True
    ),
    "DQNLoss(double_dqn=True)": Case(
        lambda p: DQNLoss(p.q_values(), double_dqn=True, **ONE_HOT, **NONE),
        {"critic": STORED},
        discrete=True,
    ),
    "DistributionalDQNLoss": Case(
        lambda p: DistributionalDQNLoss(p.q_distribution(), gamma=0.9, **NONE),
        {"critic": (NEXT, FLAT, NEXT)},
        discrete=True,
        flat=True,
    ),
    "DiscreteCQLLoss": Case(
        lambda p: DiscreteCQLLoss(p.q_values(), **ONE_HOT, **NONE),
        {"critic": STORED},
        discrete=True,
    ),
    "SACLoss": Case(
        lambda p: SACLoss(p.actor(TanhNormal), p.q_value(), **ENTROPY, **SAC), everywhere(STORED)
    ),
    "SACLoss(skip_done_states=True)": Case(
        lambda p: SACLoss(
            p.actor(TanhNormal), p.q_value(), skip_done_states=True, **ENTROPY, **SAC
        ),
        everywhere((NEXT, FLAT, NEXT)),
        flat=True,
    ),
    "SACLoss(value_network=...)": Case(
        lambda p: SACLoss(p.actor(TanhNormal), p.q_value(), p.critic(), **ENTROPY, **SAC),
        everywhere(MAPPED) | {"actor": (NEXT, FLAGS, NEXT)},
        same=True,
    ),
    "DiscreteSACLoss": Case(
        lambda p: DiscreteSACLoss(
            p.actor(OneHotCategorical),
            p.critic("action_value", size=NUM_ACTIONS),
            num_actions=NUM_ACTIONS,
            **ONE_HOT,
            **SAC,
        ),
        everywhere(STORED),
        discrete=True,
    ),
    "CrossQLoss": Case(
        lambda p: CrossQLoss(p.actor(TanhNormal), p.q_value(), **ENTROPY, **SAC),
        everywhere(STORED),
    ),
    "TQCLoss": Case(
        lambda p: TQCLoss(
            p.actor(TanhNormal), p.q_value(5), top_quantiles_to_drop_per_net=1, **ENTROPY, **SAC
        ),
        everywhere(STORED),
    ),
    "REDQLoss": Case(
        lambda p: REDQLoss(p.actor(TanhNormal), p.q_value(), sub_sample_len=1, **ENTROPY, **SAC),
        everywhere(MAPPED) | {"critic": (KEYS, KEYS, KEYS)},
        same=True,
    ),
    "REDQLoss with deactivate_vmap=True": Case(
        lambda p: REDQLoss(
            p.actor(TanhNormal), p.q_value(), sub_sample_len=1, **ENTROPY, **SAC, **NO_VMAP
        ),
        everywhere(STORED) | {"critic": (KEYS, KEYS, KEYS), "both": (NEXT, KEYS, NEXT)},
        same=True,
    ),
    "DDPGLoss": Case(
        lambda p: DDPGLoss(p.deterministic(), p.q_value(), **NONE), everywhere(STORED), DETACHED
    ),
    "TD3Loss": Case(lambda p: TD3Loss(p.deterministic(), p.q_value(), **BOUNDS), TD3, same=True),
    "TD3Loss with deactivate_vmap=True": Case(
        lambda p: TD3Loss(p.deterministic(), p.q_value(), **BOUNDS, **NO_VMAP),
        TD3 | {"shared": STORED},
        same=True,
    ),
    "TD3BCLoss": Case(
        lambda p: TD3BCLoss(p.deterministic(), p.q_value(), **BOUNDS), TD3, same=True
    ),
    "TD3BCLoss with deactivate_vmap=True": Case(
        lambda p: TD3BCLoss(p.deterministic(), p.q_value(), **BOUNDS, **NO_VMAP),
        TD3 | {"shared": STORED},
        same=True,
    ),
    "IQLLoss": Case(
        lambda p: IQLLoss(p.actor(TanhNormal), p.q_value(), p.critic(), **SAC),
        {
            "actor": ALWAYS,
            "critic": (NEXT, FLAGS, NEXT),
            "both": (NEXT, START, NEXT),
            "shared": STORED,
        },
        same=True,
    ),
    "DiscreteIQLLoss": Case(
        lambda p: DiscreteIQLLoss(
            p.actor(OneHotCategorical),
            p.critic("state_action_value", size=NUM_ACTIONS),
            p.critic(),
            **ONE_HOT,
            **SAC,
        ),
        everywhere(STORED) | {"actor": ALWAYS},
        discrete=True,
    ),
    "CQLLoss": Case(
        lambda p: CQLLoss(
            p.actor(TanhNormal),
            p.q_value(),
            num_random=2,
            scalar_output_mode="exclude",
            **ENTROPY,
            **NONE,
        ),
        everywhere((NEXT, STEPS, NEXT)) | {"critic": (NEXT, FLAGS, NEXT)},
        same=True,
    ),
}
ESTIMATORS: Any = (TD0Estimator, TD1Estimator, TDLambdaEstimator, GAE, VTrace)
for made in ESTIMATORS:
    name = made.__name__
    CASES[name] = Case(estimator(made), {"critic": MAPPED})
    CASES[f"{name} with deactivate_vmap=True"] = Case(
        estimator(made, deactivate_vmap=True), {"critic": STORED}
    )
    shifted = estimator(made, shifted=True, shifted_budget=NUM_SLOTS)
    CASES[f"{name} with shifted=True"] = Case(shifted, {"critic": ALWAYS})
