"""`unroll`: features of every observation and of what came next, by one pass."""

from typing import Any

import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictModuleBase, TensorDictSequential
from torch import Tensor, nn
from torch.testing import assert_close
from torchrl.data import LazyTensorStorage, SliceSampler, TensorDictReplayBuffer
from torchrl.modules import GRUModule, set_recurrent_mode

from tests.modules._helpers import (
    DTYPE,
    EXACT,
    SIZE,
    WalkEnv,
    collect,
    join,
    make_actor,
    make_memory,
    make_policy,
    make_shared,
)
from torchrl_shm import SHM, MemoryModule, unroll
from torchrl_shm.modules import FFM, LRU, MLSTM
from torchrl_shm.modules.unrolling import _Slots

KEYS: Any = {"in_key": "observation", "out_key": "features"}
STATES = ("lean", "stored", "zero")


def next_by_hand(memory: Any, data: TensorDictBase, row: int, last: int) -> Tensor | None:
    """Features of what came next after a step: of a sequence of its episode that ends with it."""
    starts = data["is_init"][row, : last + 1].squeeze(-1).nonzero()
    if not len(starts):
        return None
    first = int(starts[-1])
    keep = ["observation", "is_init", "theta_index", "recurrent_state"]
    episode = data[row : row + 1, first : last + 1].select(*keep, strict=False)
    came_next = episode[:, -1:].clone()
    came_next["observation"] = data["next", "observation"][row, last][None, None]
    came_next["is_init"] = torch.zeros_like(came_next["is_init"])
    if "theta_index" in episode.keys():
        came_next["theta_index"] = data["next", "theta_index"][row, last][None, None]
    with set_recurrent_mode(True):
        return memory(torch.cat([episode, came_next], 1))["features"][0, -1]


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("calibration", ["random", "neural"])
def test_what_came_next_is_that_of_a_sequence_that_ends_with_it(
    state: Any, calibration: Any
) -> None:
    memory = make_memory(8, state=state, calibration=calibration)
    seen = {"truncated": 0, "terminated": 0, "last": 0, "drawn": 0}
    for batch in collect(make_policy(memory)):
        unrolled = unroll(memory, batch)
        for row, last in torch.cartesian_prod(torch.arange(3), torch.arange(10)).tolist():
            expected = next_by_hand(memory, unrolled, row, last)
            if expected is None:
                continue
            found = unrolled["next", "features"][row, last]
            assert_close(found, expected, **EXACT)
            seen["truncated"] += int(batch["next", "truncated"][row, last])
            seen["terminated"] += int(batch["next", "terminated"][row, last])
            seen["last"] += last == 9
        if state != "zero":
            assert_close(unrolled["features"], batch["features"], **EXACT)
        if calibration == "random":
            # the choice of the next step where there is one in the same episode
            goes_on = ~batch["next", "done"].squeeze(-1)[:, :-1]
            following = unrolled["next", "theta_index"][:, :-1][goes_on]
            assert torch.equal(following, batch["theta_index"][:, 1:][goes_on])
            assert torch.equal(unrolled["theta_index"], batch["theta_index"])
            copied = unrolled["next", "theta_index"] == batch["theta_index"]
            seen["drawn"] += int((~copied)[batch["next", "done"].squeeze(-1)].sum())
    assert seen["truncated"] > 1
    assert seen["terminated"] > 1
    assert seen["last"] > 1
    assert calibration != "random" or seen["drawn"] > 0


def make_gru() -> Any:
    return GRUModule(SIZE, 6, **KEYS)


def make_lru() -> Any:
    return MemoryModule(LRU(SIZE, 6), **KEYS).to(DTYPE)


def make_ffm() -> Any:
    return MemoryModule(FFM(SIZE, 6), state="stored", **KEYS).to(DTYPE)


def make_mlstm() -> Any:
    return MemoryModule(MLSTM(SIZE, 6), **KEYS).to(DTYPE)


@pytest.mark.parametrize("make", [make_gru, make_lru, make_ffm, make_mlstm])
def test_other_memories(make: Any) -> None:
    memory = make()
    dtype = next(memory.parameters()).dtype
    for batch in collect(make_policy(memory, dtype), WalkEnv(dtype=dtype)):
        unrolled = unroll(memory, batch)
        assert_close(unrolled["features"], batch["features"], rtol=1e-5, atol=1e-6)
        for row, last in torch.cartesian_prod(torch.arange(3), torch.arange(10)).tolist():
            expected = next_by_hand(memory, unrolled, row, last)
            if expected is not None:
                found = unrolled["next", "features"][row, last]
                assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("state", STATES)
def test_nothing_leaks_over_a_reset(state: Any) -> None:
    memory = make_memory(8, state=state, calibration="neural")
    batch = collect(make_policy(memory))[2]
    changed = batch.clone()
    first = 5
    assert batch["is_init"][1, first]
    for key in ("observation", ("next", "observation")):
        changed[key][1, :first] = torch.randn_like(changed[key][1, :first])
    before, after = unroll(memory, batch), unroll(memory, changed)
    for key in ("features", ("next", "features")):
        assert_close(after[key][1, first:], before[key][1, first:], rtol=0, atol=0)
        assert_close(after[key][[0, 2]], before[key][[0, 2]], rtol=0, atol=0)
        assert (after[key][1, :first] - before[key][1, :first]).abs().max() > 1e-3


def test_sequences_without_an_end_inside() -> None:
    """They are placed by views, which is what looking up every step gives."""
    ends = torch.zeros(3, 7, dtype=torch.bool)
    ends[:, -1] = True
    root, following = (TensorDict({"x": torch.randn(3, 7, 2)}, [3, 7]) for _ in range(2))
    fast, slow = _Slots(ends), _Slots(ends)
    assert fast.only_last
    slow.only_last = False
    placed = fast.place(root, following)
    assert_close(placed["x"], slow.place(root, following)["x"], rtol=0, atol=0)
    pairs = [slots.take(placed["x"]) for slots in (fast, slow)]
    for one, other in zip(*pairs, strict=True):
        assert_close(one, other, rtol=0, atol=0)
    here, there = pairs[0]
    before = here.clone()
    there.zero_()
    assert here.equal(before)


class Wrapped(TensorDictModuleBase):
    """A memory that somebody else wrote around ours."""

    def __init__(self, memory: Any) -> None:
        super().__init__()
        self.memory = memory
        self.in_keys, self.out_keys = memory.in_keys, memory.out_keys
        self.role_key = memory.role_key

    def make_tensordict_primer(self) -> Any:
        return self.memory.make_tensordict_primer()

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        return self.memory(tensordict)


def test_a_memory_without_a_cell() -> None:
    """Its choices are drawn as its primer declares them."""
    memory = make_memory(8)
    batch = collect(make_policy(memory))[1]
    torch.manual_seed(0)
    expected = unroll(memory, batch)
    torch.manual_seed(0)
    found = unroll(Wrapped(memory), batch)
    for key in ("features", ("next", "features"), ("next", "theta_index")):
        assert_close(found[key], expected[key], rtol=0, atol=0)


def test_gradients() -> None:
    memory = make_memory(8)
    batch = collect(make_policy(memory))[1]
    for key in ("features", ("next", "features")):
        loss = unroll(memory, batch, detach_next=False)[key].square().sum()
        gradients = torch.autograd.grad(loss, list(memory.parameters()))
        assert all(bool(gradient.any()) for gradient in gradients)
    assert unroll(memory, batch)["features"].requires_grad
    assert not unroll(memory, batch)["next", "features"].requires_grad


def test_the_input_is_not_changed() -> None:
    memory = make_memory()
    batch = collect(make_policy(memory))[1].refine_names(..., "time")
    before = batch.clone()
    unrolled = unroll(memory, batch)
    written = ["features", ("next", "features"), ("next", "theta_index")]
    assert (unrolled.exclude(*written) == before.exclude(*written)).all()
    assert ("next", "features") not in batch.keys(True)
    assert (batch == before).all()
    assert unrolled.names == batch.names


def test_the_pass_is_as_long_as_it_has_to_be() -> None:
    lengths: list[int] = []

    class Counts(SHM):
        def forward(self, x: Tensor, *args: Any) -> Any:
            lengths.append(x.shape[1])
            return super().forward(x, *args)

    memory = MemoryModule(Counts(SIZE, 6, dtype=DTYPE), **KEYS)
    for batch in collect(make_policy(memory)):
        unroll(memory, batch)
        ends = batch["next", "done"].squeeze(-1)[:, :-1].sum(1).max()
        assert lengths.pop() == 10 + 1 + int(ends)
        assert not lengths


# what may be unrolled


def test_an_actor_and_a_critic() -> None:
    """Encoders run, too; heads do not, and nothing is sampled."""
    encoder = TensorDictModule(nn.Linear(SIZE, 5, dtype=DTYPE), ["observation"], ["x"])
    actor = join(encoder, make_memory(in_key="x"), make_actor())
    second = make_memory(in_keys=["observation", "critic_memory"], out_key="critic_features")
    head = TensorDictModule(nn.Linear(6, 1, dtype=DTYPE), ["critic_features"], ["state_value"])
    policy = join(actor, join(second, head))
    batch = collect(policy)[1]
    unrolled = unroll(policy, batch)
    for key in ("x", "features", "critic_features"):
        assert_close(unrolled[key], batch[key], **EXACT)
        assert ("next", key) in unrolled.keys(True)
    for key in ("action", "state_value", "loc"):
        assert unrolled[key] is batch[key]
        assert ("next", key) not in unrolled.keys(True)
    alone = unroll(second, batch)
    ends = batch["next", "done"].squeeze(-1).clone()
    ends[:, -1] = True
    equal = (alone["next", "critic_features"] - unrolled["next", "critic_features"]).abs() < 1e-10
    assert equal[~ends].all()


def test_a_shared_memory() -> None:
    shared = make_shared()
    batch = collect(shared)[1]
    unrolled = unroll(shared, batch)
    assert_close(unrolled["features"], batch["features"], **EXACT)
    value = shared.get_value_head()(unrolled["next"])["state_value"]
    assert value.shape == (3, 10, 1)


def test_more_dimensions_and_one() -> None:
    memory = make_memory(calibration="neural")
    batch = collect(make_policy(memory))[0]
    expected = unroll(memory, batch)
    stacked = torch.stack([batch, batch])
    assert_close(unroll(memory, stacked)["next", "features"][1], expected["next", "features"])
    assert_close(unroll(memory, batch[1])["next", "features"], expected["next", "features"][1])


def test_slices_of_a_buffer() -> None:
    memory = make_memory(8, state="stored", calibration="neural")
    batch = collect(make_policy(memory))[1]
    sampler = SliceSampler(slice_len=3, traj_key=("collector", "traj_ids"), strict_length=False)
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(100), sampler=sampler, batch_size=30)
    buffer.extend(batch.reshape(-1))
    sampled = buffer.sample()
    unrolled = unroll(memory, sampled)
    assert_close(unrolled["features"], sampled["features"], **EXACT)
    ends = sampled["is_init"].squeeze(-1).roll(-1)
    assert ends.sum() > 3
    with set_recurrent_mode(False):
        # one step from the memory after the last one
        following = memory(sampled["next"].select("observation", "memory", "is_init"))
    assert_close(unrolled["next", "features"][ends], following["features"][ends], **EXACT)


def test_mapped_parameters() -> None:
    """An ensemble of critics, as losses run it."""
    memory = make_memory(calibration="neural")
    batch = collect(make_policy(memory))[0]
    params = TensorDict.from_module(memory)
    both = torch.stack([params.data, params.data.apply(lambda x: 0.5 * x)])

    def features(params: TensorDictBase) -> Tensor:
        with params.to_module(memory):
            return unroll(memory, batch)["next", "features"]

    found = torch.vmap(features)(both)
    expected = torch.stack([features(params) for params in both])
    assert_close(found, expected, **EXACT)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*Function.*should not be instantiated:DeprecationWarning")
def test_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = make_memory(calibration="neural")
    batch = collect(make_policy(memory))[1]
    expected = unroll(memory, batch)
    monkeypatch.undo()
    found = torch.compile(unroll, backend="aot_eager")(memory, batch)
    for key in ("features", ("next", "features")):
        assert_close(found[key], expected[key], **EXACT)


# what is refused


def test_what_is_missing_is_named() -> None:
    memory = make_memory()
    batch = collect(make_policy(memory))[0]
    with pytest.raises(KeyError, match="reset flags 'is_init' are missing: append"):
        unroll(memory, batch.exclude("is_init"))
    with pytest.raises(KeyError, match=r"'observation' feeds the memory, but \('next', 'obs"):
        unroll(memory, batch.exclude(("next", "observation")))
    with pytest.raises(KeyError, match="'observation' is missing"):
        unroll(memory, batch.exclude("observation"))
    with pytest.raises(ValueError, match="Linear has no memory to unroll: pass the memory, or"):
        unroll(nn.Linear(2, 2), batch)
    with pytest.raises(ValueError, match="the last dimension of the rollouts is time"):
        unroll(memory, batch[0, 0])


def test_a_memory_of_actions_is_refused() -> None:
    """The next action is not known when the pass is made."""
    mix = TensorDictModule(lambda *x: torch.cat(x, -1), ["observation", "action"], ["x"])
    memory = MemoryModule(SHM(SIZE + 2, 6, dtype=DTYPE), in_key="x", out_key="features")
    batch = collect(make_policy())[0]
    critic: Any = TensorDictSequential(mix, memory)
    with pytest.raises(KeyError, match=r"'action' feeds the memory.*give it to the head"):
        unroll(critic, batch)


def test_agents_that_are_reset_at_different_steps_are_refused() -> None:
    memory = make_memory()
    batch = collect(make_policy(memory))[0]
    batch["is_init"] = batch["is_init"].expand(3, 10, 2).clone()
    batch["is_init"][1, 3, 1] ^= True
    with pytest.raises(ValueError, match="1 of 3 sequences 'is_init' resets some agents of an"):
        unroll(memory, batch)


def test_environments_of_the_tests_end_in_all_ways() -> None:
    batches = collect(make_policy(), WalkEnv())
    assert any(bool(batch["next", "truncated"][:, :-1].any()) for batch in batches)
    assert any(bool(batch["next", "terminated"][:, :-1].any()) for batch in batches)
