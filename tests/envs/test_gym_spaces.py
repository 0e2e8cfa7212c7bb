"""Whatever spaces an environment has: what it receives is in them, and probabilities are exact."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchrl.envs import (
    EnvBase,
    ExplorationType,
    TransformedEnv,
    check_env_specs,
    set_exploration_type,
)
from torchrl.modules.utils import get_env_transforms_from_module

from tests.envs._gym_probe import Probe, is_in
from torchrl_shm import SHMModule
from torchrl_shm.envs import make_gym_env
from torchrl_shm.envs._gym_rows import OneByOne
from torchrl_shm.envs._gym_spaces import is_mask
from torchrl_shm.envs._gym_task import GymTask
from torchrl_shm.networks import get_behavior, make_actor_critic
from torchrl_shm.networks.heads import make_actor
from torchrl_shm.training import LeanClipPPOLoss, RolloutCollector

spaces: Any = gymnasium.spaces
Box, Dict, Discrete, Tuple = spaces.Box, spaces.Dict, spaces.Discrete, spaces.Tuple
MultiBinary, MultiDiscrete = spaces.MultiBinary, spaces.MultiDiscrete
INF = np.inf

ACTIONS = [
    Box(10, 20, (1,), np.float32),
    Box(-1, 1, (2, 3), np.float32),
    Box(-2, 2, (), np.float32),
    Box(-5, -3, (4,), np.float64),
    Box(0, 255, (2, 2), np.uint8),
    Box(-3, 3, (2,), np.int64),
    Box(np.iinfo(np.int64).min, np.iinfo(np.int64).max, (2,), np.int64),
    Box(-INF, INF, (3,), np.float32),
    Box(0, INF, (2,), np.float32),
    Box(-INF, -7, (1, 2), np.float64),
    Box(np.array([-1, 3, -INF], "f4"), np.array([1, INF, 5], "f4"), dtype=np.float32),
    Box(np.finfo(np.float32).min, np.finfo(np.float32).max, (2,), np.float32),
    Box(1, 1, (2,), np.float32),
    Box(-1, 1, (2,), np.float16),
    Discrete(4),
    Discrete(3, start=-1),
    Discrete(1),
    Discrete(300, start=7),
    MultiDiscrete([5, 5]),
    MultiDiscrete([2, 3]),
    MultiDiscrete([1, 4, 2], start=[3, -2, 0]),
    MultiDiscrete([[2, 3, 4], [5, 6, 2]]),
    MultiDiscrete([3, 2], dtype=np.int8),
    MultiBinary(3),
    MultiBinary((2, 2)),
    MultiBinary(1),
]
PICTURE = Box(0, 255, (8, 8, 3), np.uint8)
# the space of an observation, and shape and dtype of each entry that a policy reads
OBSERVATIONS: list[tuple[Any, dict[Any, Any]]] = [
    (Box(-1, 1, (3,), np.float64), {"observation": ((3,), "float32")}),
    (Box(-1, 1, (), np.float32), {"observation": ((1,), "float32")}),
    (Box(0, 9, (2, 2), np.int64), {"observation": ((2, 2), "float32")}),
    (Box(0, 1, (2,), np.bool_), {"observation": ((2,), "float32")}),
    (Box(0, 255, (3,), np.uint8), {"observation": ((3,), "uint8")}),
    (PICTURE, {"pixels": ((8, 8, 3), "uint8")}),
    (Box(0, 255, (4, 9, 9), np.uint8), {"pixels": ((4, 9, 9), "uint8")}),
    (Discrete(5, start=2), {"observation": ((5,), "float32")}),
    (MultiDiscrete([[3, 2], [4, 1]]), {"observation": ((10,), "float32")}),
    (MultiBinary((2, 3)), {"observation": ((2, 3), "float32")}),
    (
        Dict(image=PICTURE, direction=Discrete(4)),
        {"image": ((8, 8, 3), "uint8"), "direction": ((4,), "float32")},
    ),
    (
        Dict(state=Box(-1, 1, (2,)), deep=Dict(wrist=PICTURE, hand=Tuple([MultiBinary(2)]))),
        {
            "state": ((2,), "float32"),
            ("deep", "wrist"): ((8, 8, 3), "uint8"),
            ("deep", "hand", "0"): ((2,), "float32"),
        },
    ),
    (
        Tuple([Discrete(3), Box(0, 1, (2,)), PICTURE]),
        {
            ("observation", "0"): ((3,), "float32"),
            ("observation", "1"): ((2,), "float32"),
            ("observation", "2"): ((8, 8, 3), "uint8"),
        },
    ),
]


@pytest.fixture
def register() -> Iterator[Callable[..., str]]:
    """Registers a probe under a name."""
    made: list[str] = []

    def make(*arguments: Any, **options: Any) -> str:
        id = f"Probe{len(made)}-v0"
        made.append(id)
        gymnasium.register(
            id, entry_point=lambda: Probe(*arguments, **options), disable_env_checker=True
        )
        return id

    yield make
    for id in made:
        gymnasium.registry.pop(id)


def play(env: EnvBase, policy: Any, steps: int) -> Any:
    transformed = TransformedEnv(env, get_env_transforms_from_module(policy))
    return transformed.rollout(steps, policy, break_when_any_done=False)


def task_of(*arguments: Any, **options: Any) -> tuple[Any, Any]:
    """A task with one probe, and the probe."""
    probe = Probe(*arguments, **options)
    return GymTask(OneByOne([probe], "x"), name="x"), probe


def log_prob(space: Any, data: Any, action: Tensor) -> Tensor:
    """The log-probability of raw actions `[..., *shape]`, without torch.distributions."""
    if isinstance(space, Box):
        loc, scale = data["loc"], data["scale"]
        z = (action.flatten(loc.ndim - 1) - loc) / scale
        return (-(z**2) / 2 - scale.log() - np.log(2 * np.pi) / 2).sum(-1)
    logits = data["logits"]
    if "action_mask" in data.keys():
        logits = torch.where(data["action_mask"], logits, -torch.inf)
    if isinstance(space, MultiBinary):
        sizes = [2] * int(np.prod(space.shape))
    else:
        sizes = [int(n) for n in np.ravel(getattr(space, "nvec", getattr(space, "n", 0)))]
    indices = action.reshape(*logits.shape[:-1], len(sizes)).long()
    blocks = logits.split(sizes, -1)
    chosen = [
        block.log_softmax(-1).gather(-1, indices[..., i : i + 1])[..., 0]
        for i, block in enumerate(blocks)
    ]
    return torch.stack(chosen, -1).sum(-1)


@pytest.mark.parametrize("space", ACTIONS, ids=str)
def test_what_an_environment_receives_is_in_its_space(space: Any, register: Any) -> None:
    id = register(space)

    def make(num_envs: int, seed: int | None = None, **options: Any) -> EnvBase:
        return make_gym_env(id, num_envs, previous_action=True, seed=seed)

    check_env_specs(make(2))
    torch.manual_seed(0)
    operator: Any = make_actor_critic(make(2), SHMModule, init_scale=2.0)
    rows = RolloutCollector(
        make, get_behavior(operator), num_envs=2, rollout_length=7, total_frames=14
    )
    (batch,) = rows
    rows.close()
    assert batch["action_log_prob"].shape == (2, 7)
    assert batch["previous_action"].shape[:2] == (2, 7)
    torch.testing.assert_close(
        log_prob(space, batch, batch["action"]), batch["action_log_prob"], rtol=1e-4, atol=1e-4
    )
    # what a loss replays is what acted, and an entropy is one number per step
    batch["advantage"] = torch.ones(2, 7, 1)
    loss = LeanClipPPOLoss(operator.get_policy_operator())
    terms = loss(batch)
    assert float(terms["max_ratio"]) == pytest.approx(1, abs=1e-4)
    (terms["loss_objective"] + terms["loss_entropy"]).backward()
    assert all(bool(p.grad.isfinite().all()) for p in loss.parameters() if p.grad is not None)


@pytest.mark.parametrize(("space", "entries"), OBSERVATIONS, ids=str)
def test_every_entry_of_an_observation_is_kept(space: Any, entries: Any, register: Any) -> None:
    env: Any = make_gym_env(register(Discrete(2), space), 2, seed=0)
    check_env_specs(env)
    assert set(env.policy_keys) == set(entries)
    seen = env.reset()
    for key, (shape, dtype) in entries.items():
        assert seen[key].shape == (2, *shape)
        assert str(seen[key].dtype) == f"torch.{dtype}"
    # a policy can read it
    policy: Any = make_actor_critic(env, SHMModule).get_policy_operator()
    assert play(env, policy, 6).shape == (2, 6)


def test_bounds_are_reached_and_the_middle_is_zero(register: Any) -> None:
    task, probe = task_of(Box(np.array([10, 0]), np.array([20, 1]), dtype=np.float64))
    for action, sent in {(0, 0): (15, 0.5), (-1, 1): (10, 1), (-3, 9): (10, 1)}.items():
        task.step(task.reset().set("action", torch.tensor([action], dtype=torch.float32)))
        assert probe.received[-1].tolist() == list(sent)


@pytest.mark.parametrize(
    ("space", "zero"),
    [
        (Box(10, INF, (1,)), 11),
        (Box(-INF, -10, (1,)), -11),
        (Box(-10, INF, (1,)), 0),
        (Box(-INF, 10, (1,)), 0),
        (Box(-INF, INF, (1,)), 0),
    ],
)
def test_a_single_bound(space: Any, zero: float) -> None:
    task, probe = task_of(space)
    task.step(task.reset().set("action", torch.zeros(1, 1)))
    assert probe.received[0].tolist() == [zero]


@pytest.mark.parametrize("space", [Box(-2, 2, (3,)), Box(-9, 9, (2,), np.int64)], ids=str)
def test_actions_of_other_kinds_of_floats(space: Any) -> None:
    task, probe = task_of(space)
    shape = task.action_spec.shape
    task.step(task.reset().set("action", torch.full(shape, 0.5, dtype=torch.bfloat16)))
    assert set(probe.received[-1].ravel().tolist()) == ({1.0} if space.shape == (3,) else {4})
    with pytest.raises(ValueError, match="actions must be finite, got nan"):
        task.step(task.reset().set("action", torch.full(shape, float("nan"))))


def test_the_largest_whole_numbers() -> None:
    info = np.iinfo(np.int64)
    task, probe = task_of(Box(info.min, info.max, (2,), np.int64))
    for value in (1e20, -1e20):
        task.step(task.reset().set("action", torch.full((1, 2), value)))
        assert (probe.received[-1] * value > 0).all()


@pytest.mark.parametrize("space", [Box(-2, 2, (3,)), MultiDiscrete([2, 3]), Discrete(3)], ids=str)
def test_a_policy_in_half_precision(space: Any) -> None:
    mask = None if isinstance(space, Box) else np.eye(5)[1] if space.shape else np.eye(3)[1]
    task, probe = task_of(space, mask=mask)
    operator: Any = make_actor_critic(task, SHMModule).to(torch.bfloat16)
    data = play(task, operator.get_policy_operator(), 8)
    assert len(probe.received) == 8
    assert data["action"].isfinite().all()


def test_numbers_beyond_float32() -> None:
    task, probe = task_of(Discrete(2), Box(-INF, INF, (2,), np.float64), first=np.zeros(2))
    probe.first = np.array([0, -1e39])
    with pytest.raises(FloatingPointError, match="x emits a number beyond float32, 1e\\+39; scale"):
        task.reset()
    probe.first = np.array([0, INF])
    with pytest.raises(FloatingPointError, match="'observation' is inf in row 0 after a reset"):
        task.reset()


def test_rewards_beyond_float32() -> None:
    class Rich(Probe):
        def step(self, action: Any) -> Any:
            shown, _, *ends = super().step(action)
            return shown, -1e39, *ends

    task = GymTask(OneByOne([Rich(Discrete(2))], "x"), name="x")
    with pytest.raises(
        FloatingPointError, match="a reward of x is beyond float32, -1e\\+39; scale"
    ):
        task.step(task.rand_action(task.reset()))


@pytest.mark.parametrize("shape", [(5,), (20, 20), (7, 7, 3)])
def test_bytes_that_are_parts_of_less_than_255(shape: Any) -> None:
    first = np.resize(np.arange(10, dtype=np.uint8), shape)
    task, _ = task_of(Discrete(2), Box(0, 9, shape, np.uint8), first=first)
    assert torch.equal(task.reset()["observation"][0], torch.from_numpy(first).float() / 9)
    whole, _ = task_of(Discrete(2), Box(0, 255, (5,), np.uint8))
    assert whole.reset()["observation"].dtype == torch.uint8


def test_an_index_is_a_number_of_numpy() -> None:
    task, probe = task_of(Discrete(3, start=1))
    task.step(task.reset().set("action", torch.tensor([2])))
    assert type(probe.received[-1]) is type(Discrete(3).sample())
    assert probe.received[-1].item() == 3


def test_observations_are_exact() -> None:
    space = Tuple([Discrete(3, start=5), MultiDiscrete([2, 3], start=[1, 0])])
    task, _ = task_of(Discrete(2), space, first=(6, np.array([2, 0])))
    seen = task.reset()[0]["observation"]
    assert seen["0"].tolist() == [0, 1, 0]
    assert seen["1"].tolist() == [0, 1, 1, 0, 0]


def test_an_array_that_an_environment_writes_to_again() -> None:
    shown = np.zeros(2, np.float32)
    task, _ = task_of(Discrete(2), first=shown)
    seen = task.reset()["observation"]
    shown[:] = 7
    assert seen.tolist() == [[0, 0]]


def test_an_array_that_environments_share() -> None:
    shared = np.zeros(1, np.float32)

    class Counts(gymnasium.Env[Any, Any]):
        action_space, observation_space = Discrete(2), Box(0, 99, (1,), np.float32)

        def reset(self, *, seed: Any = None, options: Any = None) -> Any:
            shared[0] = 10 * number[id(self)]
            return shared, {}

        def step(self, action: Any) -> Any:
            shared[0] = 10 * number[id(self)] + 1
            return shared, 0.0, False, False, {}

    envs = [Counts(), Counts()]
    number = {id(env): i for i, env in enumerate(envs)}
    data = GymTask(OneByOne(envs, "x"), name="x").rollout(2)
    assert data["observation"][..., 0].tolist() == [[0, 1], [10, 11]]


class TestMasks:
    @pytest.mark.parametrize(
        ("action", "mask", "allowed"),
        [
            (Discrete(4), np.array([0, 1, 0, 1], np.int8), {(1,), (3,)}),
            (Discrete(3, start=5), np.array([1, 0, 0], np.int8), {(5,)}),
            (MultiDiscrete([2, 3]), (np.array([0, 1]), np.array([1, 0, 1])), {(1, 0), (1, 2)}),
            (MultiDiscrete([2, 2]), np.array([1, 0, 0, 1]), {(0, 1)}),
        ],
    )
    @pytest.mark.parametrize("place", ["info", "action_mask", "mask"])
    def test_what_is_forbidden_is_never_done(
        self, action: Any, mask: Any, allowed: Any, place: str, register: Any
    ) -> None:
        if place == "info":
            id = register(action, mask=mask)
        else:
            flat = np.concatenate(mask) if isinstance(mask, tuple) else mask
            seen = Dict({"position": Box(-1, 1, (2,)), place: Mask(flat)})
            id = register(action, seen)
        env: Any = make_gym_env(id, 2, seed=0)
        assert "action_mask" in env.policy_keys
        torch.manual_seed(0)
        policy: Any = make_actor_critic(env, SHMModule).get_policy_operator()
        data = play(env, policy, 40)
        starts = np.ravel(getattr(action, "start", 0))
        done = {tuple((np.ravel(x) + starts).tolist()) for x in data["action"].flatten(0, 1)}
        assert done == allowed
        torch.testing.assert_close(log_prob(action, data, data["action"]), data["action_log_prob"])

    def test_a_mask_that_allows_nothing_allows_everything(self) -> None:
        task, _ = task_of(Discrete(3), mask=np.zeros(3, np.int8))
        assert task.reset()["action_mask"].tolist() == [[True, True, True]]

    def test_a_block_that_allows_nothing(self) -> None:
        """The index is still one of the space, beside a longer block that has more choices."""
        task, probe = task_of(MultiDiscrete([2, 4]), mask=(np.zeros(2), np.array([0, 1, 0, 0])))
        assert task.reset()["action_mask"].tolist() == [[True, True, False, True, False, False]]
        policy: Any = make_actor_critic(task, SHMModule).get_policy_operator()
        torch.manual_seed(0)
        with set_exploration_type(ExplorationType.RANDOM):
            play(task, policy, 60)
        assert {x[0] for x in map(tuple, probe.received)} == {0, 1}
        assert {x[1] for x in map(tuple, probe.received)} == {1}

    def test_it_is_read_whatever_else_is(self) -> None:
        task, probe = task_of(Discrete(4), mask=np.array([0, 0, 1, 0]))
        policy: Any = make_actor_critic(task, SHMModule, policy_keys=["observation"])
        play(task, policy.get_policy_operator(), 20)
        assert set(probe.received) == {2}

    def test_one_that_comes_late(self) -> None:
        task, probe = task_of(Discrete(3))
        probe.mask = np.ones(3)
        with pytest.raises(ValueError, match=r"x has info\['action_mask'\] after a step, and had"):
            task.step(task.rand_action(task.reset()))

    @pytest.mark.parametrize("outer", [lambda x: Dict(agent=x), lambda x: Tuple([Discrete(2), x])])
    def test_one_inside_of_another_entry(self, outer: Any, register: Any) -> None:
        space = outer(Dict(action_mask=MultiBinary(3), position=Box(-1, 1, (2,))))
        with pytest.raises(ValueError, match=r"'action_mask' inside of another one, .*not read"):
            make_gym_env(register(Discrete(3), space))

    def test_flags_beside_others(self) -> None:
        assert is_mask(Tuple([MultiBinary(2), MultiBinary(3)]), 5)
        assert not is_mask(Tuple([MultiBinary(6), Box(-1, 1, (2,))]), 5)

    def test_beside_actions_that_are_no_indices(self, register: Any) -> None:
        space = Dict(action_mask=MultiBinary(2), position=Box(-1, 1, (2,)))
        for action in (Box(-1, 1, (2,)), MultiBinary(2)):
            with pytest.raises(ValueError, match=r"'action_mask', and its actions are no indices"):
                make_gym_env(register(action, space))

    def test_an_entry_that_is_no_mask(self, register: Any) -> None:
        picture = Dict(mask=MultiBinary((4, 4)), position=Box(-1, 1, (2,)))
        env: Any = make_gym_env(register(Discrete(3), picture), 2)
        assert env.policy_keys == ("mask", "position")
        wrong = Dict(action_mask=MultiBinary(4), position=Box(-1, 1, (2,)))
        with pytest.raises(ValueError, match=r"'action_mask'.* a flag, 0 or 1, for each of the 3"):
            make_gym_env(register(Discrete(3), wrong))
        with pytest.raises(ValueError, match=r"'action_mask' has 4 flags.* 3 choices"):
            make_gym_env(register(Discrete(3), mask=np.ones(4)))


class Mask(MultiBinary):
    """Flags that never change."""

    def __init__(self, flags: Any) -> None:
        super().__init__(len(flags))
        self.flags = np.asarray(flags, self.dtype)

    def sample(self, mask: Any = None, probability: Any = None) -> Any:
        return self.flags.copy()


class TestRefusals:
    @pytest.mark.parametrize(
        "space",
        [
            Tuple((Discrete(2), Discrete(3))),
            Dict(a=Discrete(2)),
            spaces.Text(5),
            spaces.Sequence(Discrete(2)),
            spaces.Graph(Discrete(2), None),
            spaces.OneOf([Discrete(2), Box(0, 1)]),
        ],
        ids=lambda space: type(space).__name__,
    )
    def test_actions(self, space: Any, register: Any) -> None:
        with pytest.raises(ValueError, match=r"actions of Probe0-v0 are .*wrap it") as error:
            make_gym_env(register(space))
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize(
        "space",
        [
            spaces.Text(5),
            spaces.Sequence(Discrete(2)),
            spaces.Graph(Discrete(2), None),
            Dict(a=Discrete(2), words=spaces.Text(5)),
            Tuple([Discrete(2), spaces.Sequence(Discrete(2))]),
        ],
        ids=str,
    )
    def test_observations(self, space: Any, register: Any) -> None:
        with pytest.raises(ValueError, match=r"are of no fixed size: .*wrap it") as error:
            make_gym_env(register(Discrete(2), space))
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize(
        "name",
        [
            "reward",
            "shaping",
            "success",
            "memory",
            "theta_index",
            "advantage",
            "_reset",
            "features",
        ],
    )
    def test_names_that_are_taken(self, name: str, register: Any) -> None:
        space = Dict({name: Discrete(2), "position": Discrete(3)})
        with pytest.raises(ValueError, match=rf"entries \['{name}'\], names that TorchRL or this"):
            make_gym_env(register(Discrete(2), space))

    def test_a_previous_action_of_its_own(self, register: Any) -> None:
        id = register(Discrete(2), Dict(previous_action=Box(-1, 1, (2,)), position=Discrete(3)))
        env: Any = make_gym_env(id)
        assert "previous_action" in env.policy_keys
        with pytest.raises(ValueError, match=r"emits \['previous_action'\] itself: leave out"):
            make_gym_env(id, previous_action=True)

    def test_nothing_to_choose(self, register: Any) -> None:
        with pytest.raises(ValueError, match="has no element to choose"):
            make_gym_env(register(Box(-1, 1, (0,))))

    @pytest.mark.parametrize(
        ("space", "first", "message"),
        [
            (Box(-1, 1, (2,)), np.zeros(3), r"shape \(3,\), and its space says \(2,\)"),
            (Box(0, 255, (2,), np.uint8), np.array([0.2, 1]), "0.2, .*no bytes as its space"),
            (Box(0, 1, (2,), np.uint8), np.array([0.2, 1]), "0.2, .*no bytes as its space"),
            (Box(0, 255, (2,), np.uint8), [300, 1], r"emits \[300, 1\], which is no uint8"),
            (Box(-1, 1, (2,)), "warm", "emits 'warm', which is no float32; fix the environment"),
            (Discrete(3), 3, "emits 3, which is not in its space"),
            (Discrete(3), -1, "emits -1, which is not in its space"),
        ],
    )
    def test_observations_outside_of_their_space(
        self, space: Any, first: Any, message: str, register: Any
    ) -> None:
        with pytest.raises(ValueError, match=message):
            make_gym_env(register(Discrete(2), space, first=first))


# a few random spaces of every kind
rows = st.sampled_from([(1,), (3,), (2, 2), (1, 3), (2, 1, 2)])
shapes = rows | st.just(())
ends = st.sampled_from([-20, -1, -0.5, 0, 0.25, 1, 10, 1e4])


@st.composite
def boxes(draw: Any) -> Any:
    shape = draw(shapes)
    kind = np.dtype(draw(st.sampled_from(["f2", "f4", "f8", "i8", "i1", "u1"])))
    pairs = [sorted((draw(ends), draw(ends))) for _ in range(int(np.prod(shape)))]
    low, high = np.array(pairs).T.reshape(2, *shape)
    if kind.kind != "f":
        info = np.iinfo(kind)
        low, high = (np.clip(np.floor(x), info.min, info.max) for x in (low, high))
    else:
        # without one of the bounds, in all parts or in some
        low = np.where(draw(st.booleans()) & (low < 0), -INF, low)
        high = np.where(draw(st.booleans()) & (high > 0), INF, high)
    return Box(low.astype(kind), high.astype(kind), shape, kind)


indices = st.builds(
    lambda n, start: Discrete(n, start=start), st.integers(1, 9), st.integers(-9, 9)
)
several = st.builds(
    lambda shape, few, many, start: MultiDiscrete(
        np.where(np.arange(np.prod(shape)) % 2, few, many).reshape(shape),
        start=np.full(shape, start),
    ),
    rows, st.integers(1, 6), st.integers(1, 6), st.integers(-3, 3),
)  # fmt: skip
bits = rows.map(MultiBinary)
actions = boxes() | indices | several | bits
leaves = actions
names = st.text("abcxyz", min_size=1, max_size=4)
observations = st.recursive(
    leaves,
    lambda inner: (
        st.dictionaries(names, inner, min_size=1, max_size=3).map(Dict)
        | st.lists(inner, min_size=1, max_size=3).map(Tuple)
    ),
    max_leaves=4,
)


@settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "150")), deadline=None, database=None,
    derandomize="FUZZ_EXAMPLES" not in os.environ,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)  # fmt: skip
@given(space=actions, observation=observations, scale=st.sampled_from([0.1, 1.0, 100.0]))
def test_random_spaces(space: Any, observation: Any, scale: float) -> None:
    with warnings.catch_warnings():
        # gymnasium of samples without bounds
        warnings.simplefilter("ignore")
        task, probe = task_of(space, observation)
        actor: Any = make_actor(task.action_spec_unbatched, (3, 6, 4), scale, None)
        # as peaked as a policy gets
        for parameter in actor.parameters():
            parameter.data.mul_(5)
        data = task.reset()
        for key, spec in task.observation_spec.items(True, True):
            assert data[key].shape == spec.shape
            assert data[key].dtype == spec.dtype
        for _ in range(2):
            data["features"], data["embedding"] = torch.randn(1, 3), torch.randn(1, 3)
            with torch.no_grad():
                data = actor(data)
            torch.testing.assert_close(
                log_prob(space, data, data["action"]), data["action_log_prob"],
                rtol=1e-3, atol=1e-3,
            )  # fmt: skip
            assert data["action_log_prob"].shape == (1,)
            data = task.step(data)["next"]
    assert len(probe.received) == 2
    assert all(is_in(space, action) for action in probe.received)
