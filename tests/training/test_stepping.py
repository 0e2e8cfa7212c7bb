"""Batches that pass through dictionaries are those of TorchRL's own loop."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hydra_zen import instantiate
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.collectors import Collector
from torchrl.data import Unbounded
from torchrl.envs import (
    EnvBase,
    ExplorationType,
    RewardSum,
    StepCounter,
    TensorDictPrimer,
    Transform,
    TransformedEnv,
)
from torchrl.modules import GRUModule

from torchrl_shm import SHMModule, TMazeEnv, WindEnv
from torchrl_shm.configs import MEMORIES as CONFIGS
from torchrl_shm.envs.popgym import NoisyPositionOnlyCartPoleEnv, RepeatPreviousEnv
from torchrl_shm.networks import get_behavior, make_actor_critic
from torchrl_shm.torchrl_private import get_carrier
from torchrl_shm.training import RolloutCollector
from torchrl_shm.training.finite import FiniteSteps
from torchrl_shm.training.stepping import FiniteRewardSum, SteppingCollector, make_plan

ENVS: dict[str, Callable[..., EnvBase]] = {
    "all end together": partial(RepeatPreviousEnv, 4),
    "end one by one": partial(NoisyPositionOnlyCartPoleEnv, 5, max_steps=20),
    "alone": partial(NoisyPositionOnlyCartPoleEnv, 1),
    "layouts are drawn for all": partial(TMazeEnv, 3, length=4),
    "actions are numbers": partial(WindEnv, 3, max_steps=9),
}


def make_gru_of_torchrl(
    input_size: int, output_size: int, *, in_key: Any, out_key: Any, device: Any, **options: Any
) -> Any:
    memory_key = options.pop("memory_key", "recurrent_state")
    keys = {"in_keys": [in_key, memory_key, "is_init"], "out_keys": [out_key, ("next", memory_key)]}
    return GRUModule(input_size, output_size, **keys, device=device)


MEMORIES: dict[str, Any] = {
    **{state: partial(SHMModule, state=state) for state in ("lean", "stored", "zero")},
    "of TorchRL": make_gru_of_torchrl,
}


def make(
    kind: type[Collector], name: str, memory: Any, *others: Transform, **options: Any
) -> Collector:
    env = ENVS[name](seed=1)
    torch.manual_seed(2)
    network = {"shared_memory": True, "time_size": 0}
    network = {key: options.pop(key, default) for key, default in network.items()}
    operator = make_actor_critic(env, memory, **network)
    policy: Any = options.pop("get_policy", get_behavior)(operator)
    transformed = TransformedEnv(env, FiniteSteps())
    for transform in (FiniteRewardSum(), *others):
        transformed.append_transform(transform)
    frames = 30 * env.batch_size[0]
    sizes = {"frames_per_batch": frames, "total_frames": 2 * frames}
    options = {"device": "cpu", "track_traj_ids": False} | sizes | options
    return kind(transformed, policy, auto_register_policy_transforms=True, **options)


def check_same(name: str, memory: Any, *others: Callable[[], Transform], **options: Any) -> bool:
    """Collect in both ways, and return whether the loop of this package was taken."""
    collected: list[Any] = []
    plans: list[bool] = []
    for kind in (Collector, SteppingCollector):
        collector = make(kind, name, memory, *(other() for other in others), **options)
        batches: list[TensorDictBase] = []
        for batch in collector:
            plans.append(make_plan(collector) is not None)
            batches.append(batch)
            # what the next batch starts from, without what the policy writes anew
            carrier: Any = get_carrier(collector)
            env = collector.env
            read = (*env.observation_spec.keys(True, True), *env.full_done_spec.keys(True, True))
            batches.append(carrier.select(*read).clone())
        collected.append((batches, torch.get_rng_state(), collector.env.base_env.state_dict()))
    (theirs, their_rng, their_env), (ours, our_rng, our_env) = collected
    assert torch.equal(their_rng, our_rng)
    assert_equal(our_env, their_env)
    for expected, batch in zip(theirs, ours, strict=True):
        assert (batch.shape, batch.names) == (expected.shape, expected.names)
        assert (batch.device, batch["next"].device if "next" in batch else None) == (
            expected.device, expected["next"].device if "next" in expected else None,
        )  # fmt: skip
        assert_equal(*(dict(x.items(True, True)) for x in (batch, expected)))
    assert sum(int(batch["next", "done"].sum()) for batch in ours[::2])
    return plans[-1]


def assert_equal(ours: Any, theirs: Any) -> None:
    assert ours.keys() == theirs.keys()
    for key, expected in theirs.items():
        if isinstance(expected, dict):
            assert_equal(ours[key], expected)
            continue
        assert torch.equal(ours[key], expected), key
        assert (ours[key].dtype, ours[key].device) == (expected.dtype, expected.device), key


slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "memory"),
    [
        # every task with one memory, and every memory in one task
        pytest.param(x, y, marks=() if x == "end one by one" or y == "lean" else slow)
        for x in ENVS
        for y in MEMORIES
    ],
)
def test_same_data(name: str, memory: str) -> None:
    assert check_same(name, MEMORIES[memory])


@pytest.mark.parametrize("memory", ["mlp", pytest.param("gru", marks=slow), "lru", "frame_stack"])
def test_same_data_of_other_memories(memory: str) -> None:
    assert check_same("end one by one", instantiate(CONFIGS[memory]))


def test_two_memories() -> None:
    assert check_same("end one by one", SHMModule, shared_memory=False)


def test_the_step_of_the_episode() -> None:
    assert check_same("end one by one", MEMORIES["lean"], time_size=4)


def test_devices_that_are_not_given() -> None:
    assert check_same("end one by one", SHMModule, device=None)


@pytest.mark.parametrize(
    "name",
    [
        "end one by one",
        *(pytest.param(x, marks=slow) for x in ("all end together", "actions are numbers")),
    ],
)
def test_numbers_of_episodes(name: str) -> None:
    assert check_same(name, SHMModule, track_traj_ids=True)


@pytest.mark.parametrize(
    "name",
    [
        "layouts are drawn for all",
        pytest.param("end one by one", marks=slow),
        pytest.param("actions are numbers", marks=slow),
    ],
)
def test_every_batch_starts_with_a_reset(name: str) -> None:
    for memory in ("lean", "of TorchRL"):
        assert check_same(name, MEMORIES[memory], reset_at_each_iter=True)
    assert check_same(name, MEMORIES["lean"], reset_at_each_iter=True, track_traj_ids=True)


def test_the_most_likely_actions() -> None:
    kind = ExplorationType.DETERMINISTIC
    assert check_same("end one by one", SHMModule, exploration_type=kind)


class Copying(TensorDictModuleBase):
    """Returns another TensorDict than it was given, with one more entry from some step on.

    Args:
        policy: what chooses the action.
        start: the step.
    """

    def __init__(self, policy: Any, start: int) -> None:
        super().__init__()
        self.policy, self.start, self.calls = policy, start, 0
        self.in_keys, self.out_keys = policy.in_keys, [*policy.out_keys, "extra"]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        self.calls += 1
        out = self.policy(tensordict.copy())
        return out.set("extra", torch.ones(out.shape)) if self.calls > self.start else out


def get_full_policy(operator: Any) -> Any:
    return operator.get_policy_operator()


def get_watched(operator: Any) -> Any:
    behavior = get_behavior(operator)
    behavior.register_forward_hook(lambda module, args, out: out.set("seen", out["action"] + 1))
    behavior.out_keys = [*behavior.out_keys, "seen"]
    return behavior


def get_patched(operator: Any) -> Any:
    behavior = get_behavior(operator)
    layer: Any = behavior.module[-2]
    forward = layer.forward
    layer.forward = lambda data: forward(data).update({"logits": data["logits"] * 2})
    return behavior


@pytest.mark.parametrize("get_policy", [get_full_policy, get_watched, get_patched])
def test_other_policies_run_on_tensordicts(get_policy: Any) -> None:
    assert check_same("end one by one", SHMModule, get_policy=get_policy)


@pytest.mark.parametrize(
    ("memory", "start"),
    [
        ("lean", 0),
        ("stored", 2),
        *(pytest.param(*x, marks=slow) for x in (("lean", 2), ("stored", 0))),
    ],
)
def test_policies_that_return_a_copy(memory: str, start: int) -> None:
    options = {"get_policy": lambda x: Copying(get_behavior(x), start), "use_buffers": False}
    assert check_same("end one by one", MEMORIES[memory], **options)


@pytest.mark.parametrize(
    "other",
    [
        partial(StepCounter, 6),
        pytest.param(partial(RewardSum, in_keys=["reward"], out_keys=["total"]), marks=slow),
        pytest.param(
            partial(TensorDictPrimer, {"x": Unbounded(5)}, default_value=1.0, expand_specs=True),
            marks=slow,
        ),
    ],
)
def test_other_transforms_go_the_way_of_torchrl(other: Any) -> None:
    assert not check_same("end one by one", SHMModule, other)


@pytest.mark.parametrize(
    "options",
    [
        {"init_random_frames": 150},
        pytest.param({"compact_obs": True}, marks=slow),
        pytest.param({"set_truncated": True}, marks=slow),
        {"pre_collect_hook": lambda: None},
    ],
    ids=lambda options: next(iter(options)),
)
def test_other_options_go_the_way_of_torchrl(options: Any) -> None:
    taken = check_same("end one by one", SHMModule, **options)
    # the second batch is no longer random
    assert taken == ("init_random_frames" in options)


def test_what_changes_between_batches() -> None:
    """Transforms and hooks are seen when the next batch begins."""
    collector: Any = make(SteppingCollector, "end one by one", SHMModule, total_frames=600)
    batches = iter(collector)
    next(batches)
    assert make_plan(collector) is not None
    seen: list[Any] = []
    collector.policy.module[0][0].register_forward_hook(lambda *args: seen.append(args))
    next(batches)
    assert len(seen) == 30
    collector.env.append_transform(StepCounter(3))
    assert make_plan(collector) is None


@pytest.mark.parametrize("memory", ["lean", "stored"])
def test_goes_on_as_the_loop_of_torchrl(memory: str) -> None:
    """A collector that goes on from the state of one of TorchRL's collects the same."""
    torch.manual_seed(3)
    policy = get_behavior(make_actor_critic(ENVS["alone"](), MEMORIES[memory]))
    collectors: list[Any] = [
        RolloutCollector(
            partial(NoisyPositionOnlyCartPoleEnv, max_steps=20), policy, num_envs=3,
            rollout_length=12, total_frames=144, device="cpu",
        )
        for _ in range(2)
    ]  # fmt: skip
    first, second = (iter(collector) for collector in collectors)
    # with a hook, TorchRL's
    collectors[0]._collector.pre_collect_hook = lambda: None
    for _ in range(2):
        next(first)
    state, generator = copy.deepcopy(collectors[0].state_dict()), torch.get_rng_state()
    expected = list(first)
    collectors[1].load_state_dict(state)
    torch.set_rng_state(generator)
    for batch, other in zip(second, expected, strict=True):
        for x in (batch, other):
            # their clocks count the steps of another object
            x.exclude("memory_lean_index", ("next", "memory_lean_index"), inplace=True)
        assert_equal(*(dict(x.items(True, True)) for x in (batch, other)))


def test_an_interrupted_batch_goes_on() -> None:
    collector = make(SteppingCollector, "alone", SHMModule)
    env: Any = collector.env.base_env
    calls: list[Any] = []
    advance = env.advance

    def interrupted(action: Any) -> Any:
        calls.append(action)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return advance(action)

    vars(env)["advance"] = interrupted
    with pytest.raises(KeyboardInterrupt):
        collector.rollout()
    carrier: Any = get_carrier(collector)
    assert torch.equal(carrier["observation"], env._observe(env._state)["observation"])
    assert not collector.rollout()["is_init"][:, 0].any()


def test_only_what_starts_is_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    """TorchRL's own loop is not taken, and episodes are drawn where they start."""
    collector = make(SteppingCollector, "end one by one", SHMModule)
    env: Any = collector.env
    drawn: list[int] = []
    draw = env.base_env._draw
    monkeypatch.setattr(env.base_env, "_draw", lambda count: (drawn.append(count), draw(count))[1])
    for name in ("_step", "_reset"):
        monkeypatch.setattr(TransformedEnv, name, None)
    batch = collector.rollout()
    assert drawn == [n for n in batch["next", "done"].sum((0, 2)).tolist() if n]
    assert 0 < max(drawn) < 5
    assert batch["is_init"].sum() == 5 + batch["next", "done"][:, :-1].sum()


class Overriding(WindEnv):
    """Has a step of its own."""

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        return super()._step(tensordict).set("reward", torch.full((2, 1), 7.0))


def test_an_environment_with_a_step_of_its_own() -> None:
    behavior = get_behavior(make_actor_critic(Overriding(2), SHMModule))
    sizes: Any = {"num_envs": 2, "rollout_length": 3, "total_frames": 6}
    (batch,) = RolloutCollector(Overriding, behavior, **sizes)
    assert batch["next", "reward"].eq(7).all()
