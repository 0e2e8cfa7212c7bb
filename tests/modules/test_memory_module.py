"""The contract with TorchRL: keys, modes, primers, where a sequence starts, and what is refused."""

from __future__ import annotations

import copy
import pickle
import re
from inspect import Parameter, signature
from typing import Any, cast

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torch.testing import assert_close
from torchrl.collectors import Collector
from torchrl.data import Composite
from torchrl.envs import Compose, InitTracker, TensorDictPrimer, TransformedEnv
from torchrl.modules import (
    GRUModule,
    LSTMModule,
    ValueOperator,
    canonicalize_rnn_subset,
    set_recurrent_mode,
)
from torchrl.modules.utils import get_env_transforms_from_module, get_primers_from_module
from torchrl.objectives import LossModule
from torchrl.objectives.value import GAE

from tests.modules._helpers import (
    DTYPE,
    EXACT,
    SIZE,
    Trace,
    WalkEnv,
    collect,
    join,
    make_actor,
    make_env,
    make_memory,
    make_policy,
    make_sequence,
    replay,
    run_steps,
    step_through,
)
from torchrl_shm.modules import SHM, MemoryCell, MemoryModule, MemoryPrimer, SHMModule
from torchrl_shm.modules._gru_arguments import ADVICE

ACTED = torch.arange(1, 10).expand(3, 9)
OBSERVED, KEPT = ("agent", "observation"), ("agent", "memory")


def first_step(*batch: int, is_init: bool = True) -> TensorDict:
    entries = {
        "observation": torch.randn(*batch, SIZE, dtype=DTYPE),
        "is_init": torch.full((*batch, 1), is_init),
    }
    return TensorDict(entries, batch)


@set_recurrent_mode(True)
def run(module: Any, data: Any) -> Any:
    return module(data.copy())


# keys


def test_keys() -> None:
    module = make_memory()
    role: list[Any] = ["memory_role"]
    lean: list[Any] = ["memory_role", "memory_lean", "memory_lean_index"]
    assert module.in_keys == ["observation", "memory", "is_init", "theta_index", *lean]
    assert module.out_keys == ["features", ("next", "memory"), "theta_index", *role]
    assert module.canonical_keys == [*module.in_keys, *module.out_keys]

    module = make_memory(calibration="none")
    assert module.in_keys == ["observation", "memory", "is_init", *lean]
    assert module.out_keys == ["features", ("next", "memory"), *role]

    # other entries follow the name of the memory
    module = make_memory(in_keys=["observation", "m"], out_key="features", state="stored")
    assert module.in_keys == ["observation", "m", "is_init", "m_theta_index", "m_role"]
    assert module.out_keys == ["features", ("next", "m"), "m_theta_index", "m_role"]
    module = make_memory(in_keys=[OBSERVED, KEPT], out_key=("agent", "features"))
    names = ("theta_index", "memory_role", "memory_lean", "memory_lean_index")
    others = [("agent", name) for name in names]
    assert module.in_keys == [OBSERVED, KEPT, "is_init", *others]
    assert module.out_keys == [("agent", "features"), ("next", *KEPT), *others[:2]]

    keys: dict[str, Any] = {"theta_index_key": "choice", "is_init_key": ("a", "start")}
    module = make_memory(in_key="x", out_keys=["y", ("next", "memory")], state="zero", **keys)
    assert module.in_keys == ["x", "memory", ("a", "start"), "choice", "memory_role"]
    assert module.out_keys == ["y", ("next", "memory"), "choice", *role]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out_key": "y"}, "pass in_key or in_keys, one of them; got None and None"),
        ({"in_key": "x", "in_keys": ["x", "m"], "out_key": "y"}, "one of them; got 'x' and ['x',"),
        ({"in_key": "x"}, "pass out_key or out_keys, one of them; got None and None"),
        ({"in_keys": ["x"], "out_key": "y"}, "in_keys=['x'] must have two keys, of the value and"),
        ({"in_key": "x", "out_keys": ["y", "z", "m"]}, "out_keys=['y', 'z', 'm'] must have two"),
        (
            {"in_keys": ["x", "m"], "out_keys": ["y", ("next", "memory")]},
            "out_keys[1]=('next', 'memory') must be ('next', in_keys[1]) = ('next', 'm')",
        ),
        ({"in_key": "x", "out_keys": ["y", "memory"]}, "out_keys[1]='memory' must be ('next', in"),
        (
            {"in_key": "x", "out_key": "y", "state": "rows"},
            "state='rows' is unknown; choose one of ('lean', 'stored', 'zero')",
        ),
        ({"in_key": "x", "out_key": "y", "burn_in": -1}, "burn_in=-1 must not be negative"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        MemoryModule(SHM(SIZE, 3, memory_size=4), **options)


def test_what_is_no_cell() -> None:
    for cell in (nn.GRUCell(2, 3), len):
        with pytest.raises(TypeError, match=f"cell is a {type(cell).__name__}; it must be an nn.M"):
            MemoryModule(cast("Any", cell), in_key="x", out_key="y")


def test_a_cell_or_its_sizes() -> None:
    keys: dict[str, Any] = {"in_key": "x", "out_key": "y"}
    cell = SHM(SIZE, 3, memory_size=4)
    assert SHMModule(cell=cell, **keys).cell is cell
    options = {"input_size": SIZE, "clamp": 100.0, "memory_size": 5, "norm": False}
    for name, value in options.items():
        with pytest.raises(ValueError, match=f"{name}.* would be ignored"):
            SHMModule(cell=cell, **{name: value}, **keys)
    with pytest.raises(ValueError, match=r"pass input_size and output_size, or cell=SHM"):
        SHMModule(SIZE, **keys)


def test_every_option_reaches_the_cell() -> None:
    options: dict[str, Any] = {
        "memory_size": 5, "num_theta": 7, "calibration": "random", "shortcut": False, "norm": False,
        "span": 9, "forget": True, "feature_map": "softplus", "qk_norm": "l2", "revive": False,
        "clamp": 3.0, "backend": "reference", "fast_gate": True, "device": "cpu",
        "dtype": torch.float64,
    }  # fmt: skip
    defaults = {name: parameter.default for name, parameter in signature(SHM).parameters.items()}
    assert {"input_size", "output_size", *options} == {*defaults}
    made: Any = SHMModule(SIZE, 3, in_key="x", out_key="y", **options).cell
    # all of them are shown, or are parts or tensors
    assert repr(made) == repr(SHM(SIZE, 3, **options))
    assert {p.dtype for p in made.parameters()} == {torch.float64}
    for name in ("feature_map", "qk_norm", "revive", "fast_gate"):
        assert getattr(made, name) is options[name] is not defaults[name]


def test_the_signature_is_that_of_the_constructor() -> None:
    parameters = signature(SHMModule).parameters
    ours = {name for name in signature(SHM).parameters if name not in ("input_size", "output_size")}
    assert list(parameters)[:2] == ["input_size", "output_size"]
    assert all(parameters[name] == signature(SHM).parameters[name] for name in ours)
    kinds = [parameter.kind for parameter in parameters.values()]
    assert set(kinds[2:]) == {Parameter.KEYWORD_ONLY}


def test_every_argument_of_theirs_is_ours_or_refused() -> None:
    theirs = list(signature(GRUModule).parameters)
    by_position = theirs[2 : theirs.index("in_key")]
    assert list(ADVICE)[: len(by_position)] == by_position
    theirs += list(signature(LSTMModule).parameters)
    assert set(theirs) - set(signature(SHMModule).parameters) == ADVICE.keys()


@pytest.mark.parametrize("name", ADVICE)
def test_arguments_of_gru_module_are_refused(name: str) -> None:
    keys: dict[str, Any] = {"in_key": "x", "out_key": "y", name: 1}
    message = f"SHMModule takes no {name} ({ADVICE[name]})"
    for sizes in ((SIZE, 3), ()):
        with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
            SHMModule(*sizes, **keys)
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        SHMModule(cell=SHM(SIZE, 3), **keys)


def test_arguments_of_gru_module_are_refused_together() -> None:
    keys: dict[str, Any] = {"in_key": "x", "out_key": "y"}
    cases: list[tuple[tuple[Any, ...], dict[str, Any], str]] = [
        (
            (SIZE, 3, 1),
            {},
            "SHMModule takes two sizes by position, memory_size=... by name, and unlike GRUModule "
            "no num_layers (drop it: one layer; for more, chain modules with keys of their own)",
        ),
        (
            (SIZE, 3, 1, True),
            {"batch_first": True, "dropout": 0.0},
            "no num_layers (drop it: one layer; for more, chain modules with keys of their own), "
            "bias (drop it: which of the linear maps have one is fixed), batch_first (drop it: the "
            "batch always comes first), dropout",
        ),
        (
            (),
            {"input_size": SIZE, "hidden_size": 3, "batch_first": True},
            "SHMModule takes no hidden_size (write output_size for the output, memory_size for the "
            "side of the memory), batch_first (drop it: the batch always comes first)",
        ),
    ]
    for sizes, options, message in cases:
        with pytest.raises(TypeError, match=f"{re.escape(message)}$") as error:
            SHMModule(*sizes, **options, **keys)
        # three lines
        assert len(str(error.value)) <= 300
    unknown: Any = {"hidden": 3}
    with pytest.raises(
        TypeError, match=r"__init__\(\) got an unexpected keyword argument 'hidden'$"
    ):
        SHMModule(SIZE, 3, **unknown, **keys)


def test_a_foreign_cell_is_served() -> None:
    cell = Trace().to(DTYPE)
    assert isinstance(cell, MemoryCell)
    module = MemoryModule(cell, in_key="observation", out_key="hidden")
    stepped = step_through(module, make_sequence())
    assert not {"choice", "theta_index"} & set(stepped.keys())
    widen = TensorDictModule(nn.Linear(SIZE, 6, dtype=DTYPE), ["hidden"], ["features"])
    batches = collect(join(module, widen, make_actor()))
    assert batches[0]["memory_lean"].shape == (3, 10, 1)
    for batch in batches:
        assert_close(replay(module, batch)["hidden"], batch["hidden"], **EXACT)


# what TorchRL finds


@pytest.mark.parametrize("state", ["lean", "stored", "zero"])
def test_primer(state: Any) -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        primer: Any = make_memory(state=state, dtype=dtype).make_tensordict_primer()
        assert isinstance(primer, MemoryPrimer)
        assert isinstance(primer, TensorDictPrimer)
        specs: Any = primer.primers
        assert set(specs.keys()) == {"memory", "theta_index", "memory_role"}
        assert specs["memory"].shape == (4, 4)
        assert specs["memory"].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert specs["theta_index"].n == 7
        assert primer.state == state
    primer = make_memory(calibration="neural", state=state).make_tensordict_primer()
    assert set(primer.primers.keys()) == {"memory", "memory_role"}


def test_primers_are_found() -> None:
    memory, second = make_memory(), make_memory(in_keys=["features", "b"], out_key="more")
    assert isinstance(get_primers_from_module(make_policy(memory)), MemoryPrimer)
    both = get_primers_from_module(join(memory, second))
    assert isinstance(both, Compose)
    assert [set(primer.primers.keys()) for primer in list[Any](both)] == [
        {"memory", "theta_index", "memory_role"},
        {"b", "b_theta_index", "b_role"},
    ]
    found: Any = get_env_transforms_from_module(make_policy(memory))
    tracker, primer = found
    assert isinstance(tracker, InitTracker)
    assert isinstance(primer, MemoryPrimer)


def count(env: Any) -> dict[type, int]:
    transforms = list(env.transform) if isinstance(env.transform, Compose) else [env.transform]
    return {kind: sum(type(t) is kind for t in transforms) for kind in (InitTracker, MemoryPrimer)}


def registered(how: str, policy: Any) -> Any:
    if how == "policy=":
        return make_env(policy)
    if how == "transforms":
        return TransformedEnv(WalkEnv(), get_env_transforms_from_module(policy))
    if how == "one by one":
        env = TransformedEnv(WalkEnv(), InitTracker())
        return env.append_transform(policy[0].make_tensordict_primer())
    return WalkEnv()


@pytest.mark.parametrize("how", ["policy=", "transforms", "one by one", "collector"])
def test_every_way_to_register_is_idempotent(how: str) -> None:
    policy = make_policy()
    env = registered(how, policy)
    for _ in range(2):
        collector = Collector(
            env, policy, frames_per_batch=30, total_frames=60,
            auto_register_policy_transforms=True,
        )  # fmt: skip
        assert count(collector.env) == {InitTracker: 1, MemoryPrimer: 1}
        batches = list(collector)
        env = collector.env
        collector.shutdown(close_env=False)
        for batch in batches:
            assert "memory" not in batch.keys()
            assert_close(replay(policy[0], batch)["features"], batch["features"], **EXACT)


@pytest.mark.parametrize("keys", [[OBSERVED, KEPT], ["observation", ("deep", "er", "m")]], ids=str)
def test_nested_keys_through_a_collector(keys: Any) -> None:
    module = make_memory(in_keys=keys, out_key=("agent", "features"))
    env = WalkEnv(key=module.in_key)
    batches = collect(join(module, make_actor(module.out_key)), env)
    assert not any(batch["is_init"][:, 0].all() for batch in batches[1:])
    for batch in batches:
        keys = set(batch.keys(True, True))
        assert not keys & {module.memory_key, module.next_memory_key}
        assert set(module.in_keys) - {module.memory_key} <= keys
        assert_close(replay(module, batch)[module.out_key], batch[module.out_key], **EXACT)


def test_two_memories_in_one_model() -> None:
    first = make_memory(3, in_keys=["observation", "a"], out_key="hidden", num_theta=5)
    second = MemoryModule(
        SHM(6, 6, memory_size=7, num_theta=11, dtype=DTYPE),
        in_keys=["hidden", "b"],
        out_key="features",
        burn_in=2,
    )
    assert {first.choice_key, second.choice_key} == {"a_theta_index", "b_theta_index"}
    batches = collect(join(first, second, make_actor()))
    assert batches[0]["a_lean"].shape == (3, 10, 1)
    assert batches[0]["b_lean"].shape == (3, 10, 5)
    assert batches[0]["b_theta_index"].max() > 5
    both = join(first, second)
    for batch in batches:
        assert_close(replay(both, batch)["features"], batch["features"], **EXACT)


def test_canonical_keys_serve_canonicalize_rnn_subset() -> None:
    module = make_memory()
    data = make_sequence((9, 3)).transpose(0, 1).contiguous()
    data["observation"] = data["observation"].transpose(0, 1).contiguous().transpose(0, 1)
    assert not data["observation"].is_contiguous()
    canonical = canonicalize_rnn_subset(data, [module, make_memory(in_keys=["features", "b"])])
    assert canonical["observation"].is_contiguous()
    assert torch.equal(canonical["observation"], data["observation"])


@pytest.mark.parametrize("calibration", ["neural", "random"])
def test_estimators_that_use_vmap(calibration: Any) -> None:
    """They read the memory of every step, and refuse modules that draw unless they know them."""
    module = make_memory(state="stored", calibration=calibration)
    critic = ValueOperator(nn.Linear(6, 1, dtype=DTYPE), in_keys=["features"])
    batch = collect(join(module, critic, make_actor()))[-1]
    estimator = GAE(gamma=0.9, lmbda=0.9, value_network=join(module, critic), shifted=False)
    assert estimator.vmap_randomness == "different"
    data = batch.exclude("features", "state_value")
    with torch.no_grad():
        estimator(data)
    assert data["advantage"].isfinite().all()
    if calibration == "neural":
        assert_close(data["state_value"], batch["state_value"], **EXACT)


def test_vmap() -> None:
    module = make_memory(num_theta=1000)
    data = make_sequence((4, 3, 9))

    def features(x: Tensor, is_init: Tensor) -> tuple[Tensor, ...]:
        return module(observation=x, is_init=is_init)

    with set_recurrent_mode(True):
        draw = torch.vmap(features, randomness="different")
        y, index = draw(data["observation"], data["is_init"])
    assert not torch.equal(index[0], index[1])
    expected = run(module, data.set("theta_index", index))
    assert_close(y, expected["features"], **EXACT)


# modes


def test_who_sets_the_mode() -> None:
    data = make_sequence()
    for default, expected in ((None, False), (False, False), (True, True)):
        module = make_memory(default_recurrent_mode=default)
        assert module.recurrent_mode is expected
        for mode in (True, False):
            with set_recurrent_mode(mode):
                assert module.recurrent_mode is mode
                written = set(module(data.copy() if mode else first_step(3)).keys(True, True))
                # only steps write the next memory, and say what they ran on
                known = {"observation", "is_init", "features", "theta_index"}
                role = {"memory_role", ("next", "memory_role")}
                assert written - known == (set() if mode else {("next", "memory"), *role})
            assert module.recurrent_mode is expected


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)], ids=str)
def test_step_mode_takes_any_batch(batch: tuple[int, ...]) -> None:
    module = make_memory()
    data = module(first_step(*batch))
    assert data["features"].shape == (*batch, 6)
    assert data["theta_index"].shape == batch
    assert data["next", "memory"].shape == (*batch, 4, 4)
    later = first_step(*batch, is_init=False).set("memory", data["next", "memory"])
    y, memory, _ = module.cell.step(
        later["observation"], later["memory"], module(later)["theta_index"]
    )
    assert_close(later["features"], y)
    assert_close(later["next", "memory"], memory)


@pytest.mark.parametrize("flat", [True, False])
def test_flags_may_have_a_last_dimension_or_not(flat: bool) -> None:
    module = make_memory(calibration="fixed")
    data = make_sequence()
    expected = run(module, data)["features"]
    if flat:
        data["is_init"] = data["is_init"].squeeze(-1)
    assert torch.equal(run(module, data)["features"], expected)
    assert_close(step_through(module, data)["features"], expected, **EXACT)


def test_resets_leave_the_memory_in_the_data() -> None:
    data = first_step(3).set("memory", torch.full((3, 4, 4), torch.nan, dtype=DTYPE))
    assert make_memory()(data)["features"].isfinite().all()
    assert data["memory"].isnan().all()


def test_step_mode_draws_again_and_recurrent_mode_does_not() -> None:
    module = make_memory(num_theta=1000)
    stale = first_step(50).set("theta_index", torch.full((50,), 999))
    first = module(stale.copy())["theta_index"]
    assert (first == 999).sum() < 5
    assert not torch.equal(module(stale.copy())["theta_index"], first)

    data = make_sequence()
    index = torch.randint(1000, (3, 9))
    replayed = run(module, data.copy().set("theta_index", index))
    assert torch.equal(replayed["theta_index"], index)
    y = module.cell(data["observation"], None, data["is_init"].squeeze(-1), index)[0]
    assert_close(replayed["features"], y)
    drawn = run(module, data)
    assert not torch.equal(drawn["theta_index"], index)
    assert_close(run(module, drawn)["features"], drawn["features"], **EXACT)


@pytest.mark.parametrize("state", ["lean", "zero", "stored"])
def test_one_two_and_many_dimensions_are_equal(state: Any) -> None:
    module = make_memory(state=state)
    stepped = step_through(module, make_sequence((2, 3, 9)))
    if state == "stored":
        stepped["memory"] = torch.randn(2, 3, 9, 4, 4, dtype=DTYPE)
    data = stepped.select("observation", "is_init", "theta_index", "memory", strict=False)
    expected = run(module, data)["features"]
    assert expected.shape == (2, 3, 9, 6)
    flat = run(module, data.flatten(0, 1))
    assert_close(flat["features"], expected.flatten(0, 1), **EXACT)
    assert flat["theta_index"].shape == (6, 9)
    single = run(module, data[1, 2])
    assert_close(single["features"], expected[1, 2], **EXACT)
    assert single["theta_index"].shape == (9,)
    if state != "stored":
        assert_close(expected, stepped["features"], **EXACT)
        # slices of a sampler come as one flat sequence
        assert_close(run(module, data.flatten())["features"], expected.reshape(-1, 6), **EXACT)


def test_dispatch() -> None:
    module = make_memory()
    step = first_step(3)
    x, is_init = step["observation"], step["is_init"]
    y, memory, index = module(observation=x, is_init=is_init)
    assert (y.shape, memory.shape, index.shape) == ((3, 6), (3, 4, 4), (3,))
    y, memory, index = module(x, memory, ~is_init)
    assert_close(module.cell.step(x, memory * 0, index)[0].shape, y.shape)

    data = make_sequence()
    with set_recurrent_mode(True):
        y, index = module(observation=data["observation"], is_init=data["is_init"])
        again = module(observation=data["observation"], is_init=data["is_init"], theta_index=index)
        fixed = make_memory(calibration="none", state="zero")
        z = fixed(data["observation"], is_init=data["is_init"])
    assert all(map(torch.equal, again, (y, index)))
    assert_close(z, run(fixed, data)["features"])


def test_primer_can_be_pickled() -> None:
    primer: Any = make_memory().make_tensordict_primer()
    transforms: list[Any] = [InitTracker(), primer]
    collect(make_policy(), TransformedEnv(WalkEnv(), Compose(*transforms)))
    for other in (pickle.loads(pickle.dumps(primer)), copy.deepcopy(primer)):
        assert isinstance(other.primers, Composite)
        assert other.primers == primer.primers
        assert (other.memory_key, other.state) == ("memory", "lean")


@pytest.mark.slow
def test_compiled_steps_draw_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    module = make_memory(num_theta=1000)
    compiled: Any = torch.compile(module, backend="aot_eager", fullgraph=True)
    data = first_step(20).set("memory", torch.zeros(20, 4, 4, dtype=DTYPE))
    first, second = (compiled(data.copy())["theta_index"] for _ in range(2))
    assert not torch.equal(first, second)


@pytest.mark.slow
# torch.compile does that itself to an autograd function it traces
@pytest.mark.filterwarnings("ignore:.*Function.*should not be instantiated:DeprecationWarning")
def test_recurrent_mode_compiles_without_graph_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = make_policy()
    batch = collect(policy)[1].exclude("features")
    expected = run(policy[0], batch)["features"]
    monkeypatch.undo()
    compiled: Any = torch.compile(policy[0], backend="aot_eager", fullgraph=True)
    assert_close(run(compiled, batch)["features"], expected, **EXACT)


# where a sequence starts


def given_memory(state: Any, **options: Any) -> tuple[SHMModule, TensorDict, Tensor]:
    """A module, sequences of which the first starts with a reset, and a memory for each."""
    module = make_memory(state=state, dtype=torch.float64, **options)
    data = make_sequence()
    data["is_init"] = torch.zeros(3, 9, 1, dtype=torch.bool)
    data["is_init"][0, 0] = True
    data["is_init"][1, 5] = True
    data["theta_index"] = torch.randint(7, (3, 9))
    # without it nobody knows that these are not next observations
    data["memory_role"] = ACTED
    return module, data, torch.randn(3, 4, 4, dtype=DTYPE)


def start_from(module: SHMModule, data: TensorDict, memory: Tensor) -> Tensor:
    """The outputs of the cell, step by step."""
    is_init = data["is_init"].squeeze(-1)
    return run_steps(module.cell, data["observation"], memory, is_init, data["theta_index"])[0]


def test_lean_takes_the_first_memory_and_drops_it_at_a_reset() -> None:
    module, data, memory = given_memory("lean")
    expected = start_from(module, data, memory)
    # later ones are not read, nor is one that a reset drops
    stacked = torch.full((3, 9, 4, 4), torch.nan, dtype=DTYPE)
    stacked[1:, 0] = memory[1:]
    actual = run(module, data.set("memory", stacked))["features"]
    assert_close(actual, expected, **EXACT)


def test_zero_starts_empty_or_from_a_given_memory() -> None:
    module, data, memory = given_memory("zero")
    expected = start_from(module, data, torch.zeros_like(memory))
    assert_close(run(module, data)["features"], expected, **EXACT)
    expected = start_from(module, data, memory)
    stacked = memory.unsqueeze(1).expand(3, 9, 4, 4)
    assert_close(run(module, data.set("memory", stacked))["features"], expected, **EXACT)


def test_stored_takes_what_is_stored_at_each_flag() -> None:
    module, data, memory = given_memory("stored")
    stacked = torch.full((3, 9, 4, 4), torch.nan, dtype=DTYPE)
    stacked[:, 0] = memory
    stacked[1, 5] = memory[0]
    actual = run(module, data.set("memory", stacked))["features"]
    whole = data.copy().set("is_init", torch.zeros_like(data["is_init"]))
    expected = start_from(module, whole, memory)
    expected[1, 5:] = start_from(module, whole[1:2, 5:], memory[:1])[0]
    assert_close(actual, expected, **EXACT)


@pytest.mark.parametrize(
    ("state", "burn_in"),
    [("lean", 1), ("lean", 9), ("zero", 4), ("zero", 30), ("stored", 4), ("stored", 9)],
)
def test_burn_in_changes_no_value_and_stops_gradients(state: Any, burn_in: int) -> None:
    module, data, memory = given_memory(state, burn_in=burn_in)
    plain = copy.deepcopy(module)
    plain.burn_in = 0
    if state != "zero":
        data["memory"] = memory.unsqueeze(1).expand(3, 9, 4, 4)
    expected = run(plain, data)["features"]
    x = data["observation"].clone().requires_grad_()
    data["observation"] = x
    y = run(module, data)["features"]
    assert_close(y, expected, **EXACT)
    # unless whole sequences are promised, a burn-in starts anew at the reset of sequence 1
    warm = torch.arange(9).expand(3, 9) < burn_in
    if state != "lean":
        warm = warm | torch.tensor([[False] * 9, [False] * 5 + [True] * 4, [False] * 9]) & (
            torch.arange(9).expand(3, 9) - 5 < burn_in
        )
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(gradient.any(-1), ~warm)


def test_gradient_after_burn_in_is_that_of_a_detached_memory() -> None:
    module, data, memory = given_memory("lean", burn_in=3)
    data["memory"] = memory.unsqueeze(1).expand(3, 9, 4, 4)
    x, flags = data["observation"], data["is_init"].squeeze(-1)
    index = data["theta_index"]
    run(module, data)["features"][:, 3:].square().sum().backward()
    actual = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    module.zero_grad()
    with torch.no_grad():
        warm = module.cell(x[:, :3], memory, flags[:, :3], index[:, :3])[1]
    module.cell(x[:, 3:], warm, flags[:, 3:], index[:, 3:])[0].square().sum().backward()
    assert actual.keys() == dict(module.named_parameters()).keys()
    for name, parameter in module.named_parameters():
        assert_close(actual[name], parameter.grad, **EXACT)


def test_zero_keeps_the_memory_out_of_collections() -> None:
    module = make_memory(state="zero", burn_in=3)
    lost = 0
    for batch in collect(make_policy(module)):
        assert not {"memory", "memory_lean", "memory_lean_index"} & set(batch.keys()), batch
        assert "theta_index" in batch.keys()
        replayed = replay(module, batch)["features"]
        fresh = batch["is_init"].cumsum(1).squeeze(-1) > 0
        assert_close(replayed[fresh], batch["features"][fresh], **EXACT)
        lost += int(((replayed - batch["features"]).abs() > 1e-3)[~fresh].sum())
    assert lost > 0


def test_stored_keeps_the_memory_of_every_step() -> None:
    module = make_memory(state="stored")
    for batch in collect(make_policy(module)):
        assert batch["memory"].shape == (3, 10, 4, 4)
        assert "memory_lean_index" not in batch.keys()
        assert not batch["memory"][batch["is_init"].squeeze(-1)].any()
        assert_close(replay(module, batch)["features"], batch["features"], **EXACT)


# what is refused


# a change of the data and the error, in both modes
REFUSED: dict[str, tuple[Any, type[Exception], str]] = {
    "no flags": (
        lambda d: d.exclude("is_init"),
        KeyError,
        "'is_init' are missing.*InitTracker.*auto_register_policy",
    ),
    "flags of floats": (
        lambda d: d.set("is_init", d["is_init"].float()),
        TypeError,
        "'is_init' is torch.float32, expected torch.bool",
    ),
    "a memory of float16": (
        lambda d: d.set("memory", torch.zeros(*d.shape, 4, 4).half()),
        TypeError,
        "memory is torch.float16, expected torch.float64.*cast",
    ),
    "another device": (
        lambda d: d.to("meta"),
        ValueError,
        r"'observation' is on meta but the module on cpu: move the data with \.to\('cpu'\)",
    ),
    "inputs of integers": (
        lambda d: d.set("observation", d["observation"].long()),
        TypeError,
        "'observation' is torch.int64 but the module torch.float64: append .*DoubleToFloat",
    ),
}


@pytest.mark.parametrize(("change", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_data_that_are_refused(change: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        run(make_memory(), change(make_sequence().set("memory_role", ACTED)))
    with pytest.raises(error, match=message):
        make_memory()(change(first_step(3)))


@pytest.mark.parametrize("bad", [7, -1])
def test_choices_outside_of_the_table(bad: int) -> None:
    data = make_sequence().set("theta_index", torch.full((3, 9), bad))
    for state in ("lean", "zero"):
        with pytest.raises(IndexError, match=f"'theta_index' holds {bad}, out.* 0..6: .*num_th"):
            run(make_memory(state=state), data)


def test_a_missing_primer() -> None:
    """Silent forgetting is the commonest bug of recurrent agents."""
    message = r"'memory' is missing in the middle.*auto_register_policy_transforms=True.*primer\(\)"
    env = TransformedEnv(WalkEnv(), InitTracker())
    with pytest.raises(KeyError, match=message):
        env.rollout(5, make_policy())


class Runs(LossModule):
    """A loss of which nobody knows whether it runs the observations that were acted on."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module

    def forward(self, tensordict: Any) -> Any:
        return self.module(tensordict.copy())


@pytest.mark.parametrize("state", ["lean", "stored", "zero"])
def test_a_start_in_mid_episode_has_to_be_known(state: Any) -> None:
    data = make_sequence()
    data["is_init"][:2, 0] = False
    keys = r"'memory_lean'.*'memory_role'" if state == "lean" else "'memory_role'"
    message = rf"2 of 3 sequences start in mid-episode.*'memory' .*state='{state}' reads .*{keys}"
    module = make_memory(state=state, calibration="neural")
    with pytest.raises(KeyError, match=message + r".*torchrl_shm\.unroll\(module, rollouts\)"):
        Runs(module)(data)
    # also where samples are mapped

    def sequences(x: Tensor, flags: Tensor) -> TensorDict:
        return TensorDict({"observation": x, "is_init": flags}, x.shape[:-1])

    mapped = torch.vmap(lambda x, flags: Runs(module)(sequences(x, flags)))
    x, flags = data["observation"].unsqueeze(1), data["is_init"].unsqueeze(1)
    with pytest.raises(KeyError, match="2 of 3 sequences start in mid"):
        mapped(x, flags)
    # its user may run what a memory is not needed for
    if state == "zero":
        assert run(module, data)["features"].isfinite().all()
    else:
        with pytest.raises(KeyError, match="2 of 3 sequences start in mid"):
            run(module, data)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*Function.*should not be instantiated:DeprecationWarning")
def test_compiled_code_refuses_an_unknown_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    compiled: Any = torch.compile(make_memory(), backend="aot_eager", fullgraph=True)
    data = make_sequence()
    assert run(compiled, data)["features"].isfinite().all()
    data["is_init"][:2, 0] = False
    with pytest.raises(RuntimeError, match=r"some sequences start in mid-episode.*unroll\("):
        run(compiled, data)


@pytest.mark.parametrize("state", ["lean", "stored", "zero"])
def test_memories_that_no_step_has_written(state: Any) -> None:
    """They are trusted where their user runs the module, but what came next looks the same."""
    module, data, memory = given_memory(state)
    data = data.exclude("memory_role").set("memory", memory.unsqueeze(1).expand(3, 9, 4, 4))
    start = torch.zeros_like(memory) if state == "zero" else memory
    whole = data.copy()
    if state == "stored":
        whole["is_init"] = torch.zeros_like(data["is_init"])
    expected = start_from(module, whole, start)
    if state == "stored":
        expected[1, 5:] = start_from(module, whole[1:2, 5:], memory[1:2])[0]
    assert_close(run(module, data)["features"], expected, **EXACT)
    with pytest.raises(KeyError, match="2 of 3 sequences start in mid-episode"):
        Runs(module)(data)
    data["is_init"][:, 0] = True
    if state != "stored":
        with pytest.raises(ValueError, match=r"a memory 'memory' per step that no step .*_role'"):
            Runs(module)(data)


def test_stored_starts_empty_at_resets_without_memories() -> None:
    data = make_sequence().set("theta_index", torch.zeros(3, 9, dtype=torch.int64))
    module, stored = make_memory(), make_memory(state="stored")
    stored.load_state_dict(module.state_dict())
    expected = run(module, data)["features"]
    assert_close(run(stored, data)["features"], expected, **EXACT)
    data["memory"] = torch.zeros(3, 9, 4, 4).half()
    with pytest.raises(TypeError, match=r"memory is torch\.float16, expected torch\.float64"):
        run(stored, data)


def test_missing_input() -> None:
    data = first_step(3).rename_key_("observation", "pixels")
    with pytest.raises(KeyError, match=r"'observation' is missing; the data have .*'pixels'"):
        make_memory()(data)


def test_data_of_the_other_mode() -> None:
    with pytest.raises(KeyError, match=r"whole sequences, wrap .*set_recurrent_mode\(True\)"):
        make_memory()(make_sequence())
    with pytest.raises(ValueError, match=r"last dimension .* is time, but it has none.*Leave set_"):
        run(make_memory(), first_step())
