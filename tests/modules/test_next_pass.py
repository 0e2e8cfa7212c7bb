"""A pass of a memory over what came next, in the loss or through `unroll`."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch.testing import assert_close
from torchrl.data import MultiStep
from torchrl.envs.utils import step_mdp
from torchrl.modules import GRUModule, LSTMModule, set_recurrent_mode
from torchrl.objectives import DDPGLoss, DQNLoss, SACLoss, TD3Loss
from torchrl.objectives.value import GAE

from tests.modules._helpers import DTYPE, EXACT, SIZE, STEP, WalkEnv, collect, join
from tests.modules._loss_checks import (
    build,
    collected,
    gradients,
    perturb,
    run,
    share_heads,
    with_features,
)
from tests.modules._loss_table import CASES
from tests.modules._losses import Parts
from torchrl_shm import unroll

STATES: list[Any] = ["lean", "stored", "zero"]
FEATURES: list[Any] = ["critic_features", ("next", "critic_features")]
NEXT = r"run over next observations.*torchrl_shm\.unroll"
STEPS = r"lack steps, or hold them twice.*torchrl_shm\.unroll"


def known(batch: Any) -> torch.Tensor:
    """Steps whose next observation was acted on in the step after them."""
    result = ~batch["next", "done"].squeeze(-1)
    result[:, -1] = False
    return result


@pytest.mark.parametrize("calibration", ["neural", "random"])
@pytest.mark.parametrize("state", STATES)
def test_features_are_those_of_single_steps(state: Any, calibration: str) -> None:
    made, first, batch = collected("critic", state, False, calibration)
    memory = made.memories["critic"]
    data = unroll(memory, batch)
    expected = with_features(made, first, data)
    for key in FEATURES:
        assert_close(data[key].detach(), expected[key], **STEP)
    if calibration == "random":
        # what acted on the next observation, and a draw where nothing did
        here, there = (
            data[key].squeeze(-1) for key in (memory.choice_key, ("next", memory.choice_key))
        )
        assert torch.equal(there[:, :-1][known(batch)[:, :-1]], here[:, 1:][known(batch)[:, :-1]])
        drawn = there[~known(batch)]
        assert len(drawn.unique()) > 2
    # an episode leaves nothing to the next one
    other, after = perturb(batch)
    for key in FEATURES:
        change = (unroll(memory, other)[key] - data[key]).abs().amax(-1).detach()
        if calibration == "neural" or key == FEATURES[0]:
            assert change[after].max() <= 1e-6
        assert change[~after].max() > 1e-3


def test_choices_of_the_step_after_act_on_next_observations() -> None:
    """In a loss that runs the memory itself."""
    made, first, batch = collected("critic", "stored", True, "random")
    torch.manual_seed(0)
    heads = Parts("critic", "stored", heads=True)
    loss, on_features = (
        build(lambda p: DQNLoss(p.q_values(), action_space="one-hot", reduction="none"), parts)
        for parts in (copy.deepcopy(made), heads)
    )
    share_heads(on_features, loss)
    expected = with_features(made, first, unroll(made.memories["critic"], batch))
    difference = (run(loss, batch)["loss"] - run(on_features, expected)["loss"]).abs()[0]
    ends = batch["next", "terminated"].squeeze(-1)
    assert difference[known(batch) | ends].max() <= 1e-6
    # others were drawn twice
    assert difference[~(known(batch) | ends)].max() > 1e-3


@pytest.mark.parametrize("state", STATES)
def test_a_module_on_step_mdp(state: Any) -> None:
    made, first, batch = collected("critic", state, False)
    memory = made.memories["critic"]
    with set_recurrent_mode(True):
        if state != "stored":
            with pytest.raises(ValueError, match=NEXT):
                memory(step_mdp(batch))
            return
        found = memory(step_mdp(batch))["critic_features"]
    expected = with_features(made, first, batch)["next", "critic_features"]
    assert_close(found.detach(), expected, **STEP)


def test_next_observations_start_from_stored_memories() -> None:
    """As old as the data: after an update only `unroll` gives what the memory computes now."""
    made, first, batch = collected("critic", "stored", False)
    updated = copy.deepcopy(made)
    memory = updated.memories["critic"]
    with torch.no_grad():
        memory.cell.value.weight.mul_(1.5)
    starts = batch["is_init"].squeeze(-1).clone()
    starts[:, 0] = False
    inside = starts.cumsum(1) > 0
    assert inside.any()
    expected = with_features(updated, first, batch)["next", "critic_features"]
    with set_recurrent_mode(True), torch.no_grad():
        stale = memory(step_mdp(batch))["critic_features"]
    fresh = unroll(memory, batch)["next", "critic_features"]
    assert_close(fresh[inside], expected[inside], **STEP)
    assert (stale - expected)[inside].abs().max() > 1e-2


@pytest.mark.parametrize("make", [DDPGLoss, TD3Loss])
@pytest.mark.parametrize("state", STATES)
def test_data_that_no_memory_has_collected(state: Any, make: Any) -> None:
    """Hand-made rollouts: nobody knows how next observations start."""
    batch, steps, reset = 3, 12, 6
    observation = torch.randn(batch, steps + 1, SIZE, dtype=DTYPE)
    is_init = torch.zeros(batch, steps, 1, dtype=torch.bool)
    is_init[:, 0] = is_init[:, reset] = True
    zeros = torch.zeros(batch, steps, 4, 4, dtype=DTYPE)
    done = is_init.roll(-1, 1)
    entries = {"observation": observation[:, 1:], "actor_memory": zeros, "done": done}
    entries |= {"is_init": torch.zeros_like(is_init), "terminated": done}
    entries["reward"] = torch.randn(batch, steps, 1, dtype=DTYPE)
    data: Any = TensorDict({"next": entries, "observation": observation[:, :-1]}, [batch, steps])
    data["is_init"], data["action"] = is_init, torch.rand(batch, steps, 2, dtype=DTYPE)
    if state == "stored":
        data["actor_memory"] = zeros
    case = CASES[make.__name__]
    with pytest.raises((KeyError, ValueError), match=r"start in mid-episode.*torchrl_shm\.unroll"):
        run(build(case.make, Parts("actor", state)), data)
    # which `unroll` knows
    parts = Parts("actor", state)
    data = data.exclude("actor_memory", ("next", "actor_memory"))
    features = unroll(parts.memories["actor"], data)
    for start in (0, reset):
        part = data[:, start : start + reset].exclude("next")
        last = part[:, -1:].clone()
        last["observation"] = observation[:, start + reset, None]
        last["is_init"] = torch.zeros_like(last["is_init"])
        with set_recurrent_mode(True):
            whole = parts.memories["actor"](torch.cat([part, last], 1))["actor_features"]
        span = slice(start, start + reset)
        assert_close(features["actor_features"][:, span], whole[:, :-1], **EXACT)
        assert_close(features["next", "actor_features"][:, span], whole[:, 1:], **EXACT)


def test_flat_concatenation_of_both() -> None:
    """CrossQ joins observations and what came next along the first dimension."""
    loss = CASES["CrossQLoss"]
    for state in STATES:
        made, _, batch = collected("critic", state, False)
        with pytest.raises(ValueError, match=rf"{STEPS}|{NEXT}|parts of sequences.*'stored'"):
            run(build(loss.make, copy.deepcopy(made)), batch[0])


@pytest.mark.parametrize("state", STATES)
def test_shifted_estimators_without_room_for_truncations(state: Any) -> None:
    made, first, batch = collected("critic", state, False)
    torch.manual_seed(0)
    options: Any = {"gamma": 0.9, "lmbda": 0.8, "shifted": True}
    head = Parts("critic", state, heads=True).critic()
    estimator = GAE(value_network=join(made.memories["critic"], head), **options)
    if state == "lean":
        # the end of a sequence holds a share of its memory
        with pytest.raises(ValueError, match=r"shifted_budget=1 \+ the truncations"):
            run(estimator, batch)
        return
    with torch.no_grad(), set_recurrent_mode(True):
        found = estimator(batch.copy())
        expected = head(with_features(made, first, batch)["next"])["state_value"]
    kept = found["shifted_valid"].squeeze(-1)
    assert 0 < kept.sum() < kept.numel()
    inside = kept & ~batch["next", "terminated"].squeeze(-1)
    assert_close(found["next", "state_value"][inside], expected[inside], **STEP)


BROKEN: dict[str, Any] = {
    "shuffled steps": lambda x: x[:, torch.randperm(x.shape[1])],
    "single steps": lambda x: x.reshape(-1)[torch.randperm(x.numel())],
    "joined sequences": lambda x: x.reshape(-1),
    "repeated steps": lambda x: x[:, torch.arange(x.shape[1]).repeat_interleave(2)],
    "dropped steps": lambda x: x[:, ::2],
    "backwards": lambda x: x.flip(1),
}


@pytest.mark.parametrize("change", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("state", ["stored", "zero"])
def test_what_is_no_sequence_is_refused(state: Any, change: Any) -> None:
    """Lean rollouts are tested in `test_lean.py`."""
    made, _, batch = collected("critic", state, False)
    memory = made.memories["critic"]
    with set_recurrent_mode(True):
        assert memory(batch.copy())["critic_features"].isfinite().all()
        with pytest.raises(ValueError, match=STEPS):
            memory(change(batch))


@pytest.mark.parametrize("state", STATES)
def test_roles_count_the_steps_of_an_episode(state: Any) -> None:
    _, first, batch = collected("critic", state, False)
    data: Any = torch.cat([first, batch], 1)
    role, is_init = data["critic_memory_role"], data["is_init"].squeeze(-1)
    time = torch.arange(data.shape[1]).expand_as(is_init)
    assert torch.equal(role, time - (time * is_init).cummax(1).values + 1)
    assert torch.equal(data["next", "critic_memory_role"], -role)


def test_n_step_returns_come_after_unroll() -> None:
    made, _, batch = collected("critic", "stored", False)
    memory = made.memories["critic"]
    with pytest.raises(ValueError, match=r"not what came right after each step.*then MultiStep"):
        unroll(memory, MultiStep(gamma=0.9, n_steps=3)(batch.clone()))
    features = unroll(memory, batch)
    data = MultiStep(gamma=0.9, n_steps=3)(features.clone())
    assert data["critic_features"].requires_grad
    goes_on = ~batch["next", "done"][:, :2].squeeze(-1).any(1)
    assert goes_on.any()
    later = features["next", "critic_features"][:, 2]
    assert_close(data["next", "critic_features"][:, 0][goes_on], later[goes_on])


@pytest.mark.parametrize("make", [GRUModule, LSTMModule])
def test_recurrent_modules_of_torchrl(make: Any) -> None:
    memory = make(SIZE, 6, in_key="observation", out_key="features")
    head: Any = TensorDictModule(torch.nn.Linear(6, 2), ["features"], ["action"])
    env = WalkEnv(dtype=torch.float32)
    first, batch = collect(join(memory, head), env, num_steps=14, num_batches=2)
    assert not batch["is_init"][:, 0].all()
    states = [key for key in memory.in_keys if "recurrent_state" in key]
    state: Any = {}
    expected: list[Any] = []
    for step in [*first.unbind(1), *batch.unbind(1)]:
        here = memory(step.exclude(*states, "next").update(state))
        state = {key: here["next", key] for key in states}
        there = step["next"].exclude(*states).update(state)
        expected.append((here["features"], memory(there)["features"]))
    data = unroll(memory, batch)
    for number, key in enumerate(("features", ("next", "features"))):
        values = torch.stack([pair[number] for pair in expected[14:]], 1)
        assert_close(data[key].detach(), values.detach(), **STEP)


def test_gradients_through_what_came_next() -> None:
    made, _, batch = collected("critic", "lean", False)
    memory = made.memories["critic"]
    assert not unroll(memory, batch)["next", "critic_features"].requires_grad
    data = unroll(memory, batch, detach_next=False)
    total = data["next", "critic_features"].sum()
    parameters = list(memory.cell.parameters())
    assert all(gradient.any() for gradient in torch.autograd.grad(total, parameters))


def test_the_actor_does_not_train_the_memory_of_the_critic() -> None:
    """On features its loss reaches it, through the value of its action."""
    case = CASES["SACLoss"]
    made, _, batch = collected("both", "lean", False)
    made = copy.deepcopy(made)
    parts = Parts("both", "lean", heads=True)
    parts.memories = made.memories
    loss: SACLoss = build(case.make, parts)
    actor, critic = (list(memory.parameters()) for memory in made.memories.values())
    data = batch
    for memory in made.memories.values():
        data = unroll(memory, data)
    terms = run(loss, data)
    assert gradients(loss, terms, "actor", critic)[-1].any()
    heads = [p for p in loss.actor_network_params.values(True, True) if p.requires_grad]
    terms["loss_actor"].sum().backward(inputs=[*actor, *heads])
    assert all(parameter.grad is not None for parameter in [*actor, *heads])
    assert all(parameter.grad is None for parameter in critic)
