"""What every batched environment keeps to."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torchrl.envs import EnvBase, check_env_specs

from tests.envs._helpers import MAKERS, inject, random_action, step
from torchrl_shm.envs import BatchedEnv, WindEnv
from torchrl_shm.envs.popgym import POPGymEnv

RESET = torch.tensor([True, False, True, False, False])
# equal on every device to the last bit
EXACT = ("Wind", "KeyToDoor", "VisualMatch", "VisualMatchActive")

pytestmark = pytest.mark.parametrize("name", MAKERS)


def started(name: str, seed: int = 0, steps: int = 0) -> BatchedEnv:
    env = MAKERS[name](5, seed=seed)
    env.reset()
    for _ in range(steps):
        step(env, random_action(env))
    return env


def draws_in_steps(name: str) -> bool:
    """Whether resets to one layout and steps may differ by what they draw."""
    return name.startswith("Noisy") or name == "MultiarmedBandit"


def keeps_layout(env: BatchedEnv) -> bool:
    return set(env._layout()) <= set(env._running())


def layout(env: BatchedEnv) -> dict[str, Tensor]:
    """What was drawn; all of the state where an environment keeps it in another form."""
    state = env._running()
    return {name: state[name].clone() for name in (env._layout() if keeps_layout(env) else state)}


def same_rows(first: TensorDictBase, second: TensorDictBase, rows: Tensor) -> bool:
    names = set(first.keys()) & set(second.keys())
    return all(torch.equal(first[name][rows], second[name][rows]) for name in names)


def test_specs_and_rollout(name: str) -> None:
    env = MAKERS[name](5)
    check_env_specs(env)
    data = env.rollout(1_000)
    assert data["next", "done"].any()
    assert len(data[0]) <= getattr(env, "num_episodes", 1) * env.max_steps


def test_partial_reset(name: str) -> None:
    env = started(name, steps=3)
    before = step(env, random_action(env))
    state = {key: value.clone() for key, value in env._running().items()}
    after = env.reset(before.exclude("reward").clone().set("_reset", RESET[:, None]))
    assert same_rows(after, before, ~RESET)
    for key, value in env._running().items():
        assert torch.equal(value[~RESET], state[key][~RESET])
    # what a whole reset to the same layout shows
    if keeps_layout(env) and not draws_in_steps(name):
        assert same_rows(after, inject(MAKERS[name](5), **layout(env)), RESET)
    assert any((value[RESET] != state[key][RESET]).any() for key, value in layout(env).items())


def test_rows_that_wait_stay_as_they_are(name: str) -> None:
    env = started(name)
    before, state = step(env, random_action(env)), env._running()
    action = {"action": random_action(env), "_step": RESET}
    after = env.step(TensorDict(action, batch_size=[5]))["next"]
    assert same_rows(after.exclude("reward"), before, ~RESET)
    assert not after["reward"][~RESET].any()
    for key, value in env._running().items():
        assert torch.equal(value[~RESET], state[key][~RESET])


def test_stored_data_are_not_written_to(name: str) -> None:
    env = MAKERS[name](5, seed=0)
    data, stored, copies = env.reset(), [], []
    for t in range(12):
        if t == 3:
            data = env.reset(data.set("_reset", RESET[:, None]))
        data["action"] = random_action(env)
        transition, data = env.step_and_maybe_reset(data)
        stored.append(transition)
        copies.append(transition.clone())
    assert all((x == y).all() for x, y in zip(stored, copies, strict=True))


def test_rewards_may_be_changed_in_place(name: str) -> None:
    env, twin = started(name), started(name)
    for _ in range(6):
        action = random_action(env)
        ours, theirs = step(env, action), step(twin, action)
        assert (ours == theirs).all()
        ours["reward"] += 100


def test_seed_alone_decides(name: str) -> None:
    states = torch.get_rng_state(), np.random.get_state()[1]
    found: list[list[dict[str, Tensor]]] = []
    for seed in (3, 3, 4):
        env = started(name, seed=seed)
        step(env, torch.zeros_like(env.action_spec.zero()))
        found.append([])
        for _ in range(8):
            env.reset()
            found[-1].append(layout(env))
    first, again, other = found
    same = lambda a, b: all(torch.equal(x[k], y[k]) for x, y in zip(a, b, strict=True) for k in x)  # noqa: E731
    assert same(first, again)
    assert not same(first, other)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])


def through_state_dict(env: BatchedEnv, make: Callable[..., BatchedEnv]) -> BatchedEnv:
    file = io.BytesIO()
    torch.save(env.state_dict(), file)
    file.seek(0)
    fresh = make(env.num_envs, seed=99)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    return fresh


@pytest.mark.parametrize(
    "duplicate",
    [
        through_state_dict,
        lambda env, make: copy.deepcopy(env),
        lambda env, make: pickle.loads(pickle.dumps(env)),
    ],
    ids=["state_dict", "deepcopy", "pickle"],
)
@pytest.mark.parametrize("steps", [None, 5], ids=["fresh", "running"])
def test_copies_go_on_as_the_original(name: str, duplicate: Any, steps: int | None) -> None:
    env = MAKERS[name](5, seed=1) if steps is None else started(name, seed=1, steps=steps)
    twin = duplicate(env, MAKERS[name])
    if steps is None:
        assert (env.reset() == twin.reset()).all()
    for _ in range(15):
        action = random_action(env)
        ours, theirs = step(env, action), step(twin, action)
        assert (ours == theirs).all()
        if ours["done"].all():
            assert (env.reset() == twin.reset()).all()
    for key, value in layout(env).items():
        assert torch.equal(value, layout(twin)[key])


def test_pictures(name: str) -> None:
    env = MAKERS[name](3, seed=0)
    for moment in range(3):
        _ = step(env, random_action(env)) if moment else env.reset()
        plane, pictures = env.plane(), [env.render(index) for index in range(3)]
        if isinstance(env, POPGymEnv):
            # figures draw its numbers
            assert (plane, pictures) == (None, [None] * 3)
        elif plane is not None:
            assert plane.goal.shape == (3, 2)
            assert (plane.drift is not None) == isinstance(env, WindEnv)
        else:
            for picture in pictures:
                assert (picture.dtype, picture.device.type) == (torch.uint8, "cpu")
                assert picture.shape[2:] == (3,)
                assert len(picture.unique()) > 2


class Calls(TorchDispatchMode):
    """Names of the operations that were called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_nothing_waits_for_a_value(name: str) -> None:
    """No operation hands a value to Python or has a result whose shape depends on values."""
    env = MAKERS[name](5)
    # the CPU may check actions and draw row by row, other devices do neither
    env._looks = False
    env.reset()
    action = random_action(env)
    with Calls() as calls:
        for _ in range(2):
            env._step(TensorDict({"action": action}, batch_size=[5]))
        env._step(TensorDict({"action": action, "_step": RESET}, batch_size=[5]))
        env._reset(TensorDict({"_reset": RESET}, batch_size=[5]))
        env._reset(None)
    assert len(calls.names) > 30
    forbidden = {"_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "equal"}
    assert not forbidden & set(calls.names)


def test_to_another_device_moves_all(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    env = started(name, seed=3)
    action = random_action(env)
    # the meta device is everywhere, but has neither specs nor generators
    seeds: list[int] = []
    move = lambda env, device: env.__dict__.update(_device=torch.device(device))  # noqa: E731
    monkeypatch.setattr(EnvBase, "to", move)
    monkeypatch.setattr(type(env), "_set_seed", lambda env, seed: seeds.append(seed))
    assert env.to("meta") is env
    assert seeds == [3]
    tensors = [value for value in vars(env).values() if isinstance(value, Tensor)]
    assert {x.device.type for x in (*tensors, *env._running().values())} == {"meta"}
    start = TensorDict({"action": action.to("meta")}, batch_size=[5])
    assert {entry.device.type for entry in env._step(start).values()} == {"meta"}


@contextmanager
def no_waiting() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_cuda(name: str) -> None:
    """Moves there, steps as on the CPU, and never makes the CPU wait."""
    env, there = started(name), MAKERS[name](5, seed=0).to("cuda")
    there._state = {key: value.cuda() for key, value in env._running().items()}
    for _ in range(6):
        action = random_action(env)
        ours = step(env, action)
        start = TensorDict({"action": action.cuda()}, batch_size=[5], device="cuda")
        with no_waiting():
            theirs = there._step(start)
        for key, value in theirs.items():
            if name in EXACT:
                assert torch.equal(value.cpu(), ours[key])
            elif not draws_in_steps(name):
                torch.testing.assert_close(value.cpu(), ours[key])
    mask = TensorDict({"_reset": RESET.cuda()}, batch_size=[5], device="cuda")
    with no_waiting():
        there._reset(mask)
        there._reset(None)
    picture = there.render()
    assert picture is None or picture.device.type == "cpu"
    check_env_specs(MAKERS[name](5).to("cuda"))
