"""What the data tell of a start: slices without their memory, and random first frames."""

from typing import Any

import pytest
import torch
from tensordict import TensorDictBase
from torch.testing import assert_close
from torchrl.data import LazyTensorStorage, SliceSampler, TensorDictReplayBuffer
from torchrl.envs import InitTracker, TransformedEnv, step_mdp
from torchrl.modules import set_recurrent_mode
from torchrl.objectives.value import GAE

from tests.modules._helpers import (
    EXACT,
    WalkEnv,
    collect,
    estimate,
    join,
    make_critic,
    make_memory,
    make_policy,
)
from torchrl_shm import unroll


def run(module: Any, data: TensorDictBase) -> TensorDictBase:
    with set_recurrent_mode(True):
        return module(data.copy())


def slices(batch: TensorDictBase) -> TensorDictBase:
    sampler = SliceSampler(slice_len=3, traj_key=("collector", "traj_ids"), strict_length=False)
    storage = LazyTensorStorage(100)
    buffer = TensorDictReplayBuffer(storage=storage, sampler=sampler, batch_size=30)
    buffer.extend(batch.reshape(-1))
    return buffer.sample()


@pytest.mark.parametrize("state", ["lean", "stored"])
def test_slices_without_their_memory_are_refused(state: Any) -> None:
    """SliceSampler flags their first step as a reset, which it is not."""
    batch = collect(make_policy(make_memory(state="zero")))[1]
    with pytest.raises(KeyError, match=r"1 of 1 sequences start in mid-episode.*'memory'"):
        run(make_memory(state=state), slices(batch))
    # empty starts are what this state is for
    assert run(make_memory(state="zero"), slices(batch))["features"].isfinite().all()


def test_next_observations_without_their_memory_are_refused() -> None:
    module = make_memory(state="stored", calibration="neural")
    batch = collect(make_policy(module))[0]
    bare = batch.exclude("memory", ("next", "memory"))
    with pytest.raises(KeyError, match="3 of 3 sequences start in mid-episode"):
        run(module, step_mdp(bare))
    # those of the root start with a reset
    assert_close(run(module, bare)["features"], batch["features"], **EXACT)


@pytest.mark.parametrize("state", ["lean", "stored", "zero"])
@pytest.mark.parametrize("frames", [30, 60])
def test_random_first_frames(state: Any, frames: int) -> None:
    """Nobody ran the memory, and the steps count all the same."""
    module = make_memory(state=state, calibration="neural")
    batches = collect(make_policy(module), init_random_frames=frames)
    for index, batch in enumerate(batches):
        role = batch["memory_role"]
        assert torch.equal(batch["next", "memory_role"], -role)
        follows = role[:, 1:] == role[:, :-1] + 1
        assert torch.equal(~follows, batch["is_init"].squeeze(-1)[:, 1:])
        again = run(module, batch)["features"]
        if index * 30 >= frames and state != "zero":
            assert_close(again, batch["features"], **EXACT)
        found = unroll(module, batch)
        assert_close(found["features"], again, **EXACT)
        goes_on = follows & ~batch["next", "done"].squeeze(-1)[:, :-1]
        following = found["next", "features"][:, :-1]
        assert_close(following[goes_on], again[:, 1:][goes_on], **EXACT)


def test_a_memory_that_nobody_ran_is_refused() -> None:
    """A critic that the collecting policy lacks would start empty in mid-episode."""
    actor, critic = (make_memory(memory_key=key) for key in ("memory", "critic_memory"))
    primer = critic.make_tensordict_primer()
    first, second = collect(make_policy(actor), env=TransformedEnv(WalkEnv(), primer))[:2]
    # those that start with a reset need none
    assert first["is_init"][:, 0].all()
    assert run(critic, first)["features"].isfinite().all()
    bad = int((~second["is_init"][:, 0]).sum())
    message = rf"{bad} of 3 sequences start in mid-episode, but the policy .* did not run this"
    with pytest.raises(ValueError, match=message):
        run(critic, second)
    assert run(actor, second)["features"].isfinite().all()


def test_a_rollout_in_recurrent_mode_is_refused() -> None:
    """It would run over the environments as if they were steps, and remember nothing."""
    for state in ("lean", "stored", "zero"):
        module = make_memory(state=state)
        env = TransformedEnv(WalkEnv(), InitTracker())
        env.append_transform(module.make_tensordict_primer())
        with (
            set_recurrent_mode(True),
            pytest.raises(
                (ValueError, KeyError), match=r"single steps|sequences start in mid-episode"
            ),
        ):
            env.rollout(5, make_policy(module))


@pytest.mark.parametrize("deactivate_vmap", [False, True])
@pytest.mark.parametrize("state", ["lean", "stored", "zero"])
def test_unshifted_estimators_of_data_without_roles(state: Any, deactivate_vmap: bool) -> None:
    """They flag next observations as the root is, so that nobody could tell the two apart."""
    module = make_memory(state=state, calibration="neural")
    critic: Any = join(module, make_critic())
    batch = collect(make_policy(module))[0].refine_names(..., "time")
    assert batch["is_init"][:, 0].all()
    marks = ["memory", "memory_role", "memory_lean", "memory_lean_index"]
    bare = batch.exclude(*marks, *(("next", key) for key in marks), "features")
    options: Any = {"gamma": 0.9, "lmbda": 0.8, "value_network": critic}
    estimator = GAE(**options, shifted=False, deactivate_vmap=deactivate_vmap)
    with set_recurrent_mode(True), pytest.raises(ValueError, match=r"pass shifted=True, or coll"):
        estimator(bare)
    found, expected = (estimate(data, critic)["advantage"] for data in (bare, batch))
    # shifted, too, it flags what came next as the step before; after a first step roles tell
    alone = batch["is_init"].clone()
    alone[:, :-1] &= batch["next", "done"][:, :-1]
    assert alone.sum() == 1
    assert_close(found[~alone], expected[~alone], **EXACT)
    assert (found - expected)[alone].abs() > 1e-3
