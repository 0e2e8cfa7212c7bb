"""One step as a pure function: equal to the policy, exported, and in onnxruntime."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra_zen import instantiate
from torch import Tensor, nn
from torch.testing import assert_close
from torchrl.data import (
    Binary,
    Bounded,
    Categorical,
    Composite,
    MultiCategorical,
    TensorSpec,
    Unbounded,
)

from tests._night import at_night
from tests.training._helpers import MEMORIES as FEW
from torchrl_shm import MemoryLengthEnv, VisualMatchEnv, WindEnv
from torchrl_shm.configs import MEMORIES
from torchrl_shm.envs import popgym
from torchrl_shm.modules import BaseCell, make_memory
from torchrl_shm.networks import (
    EnvSpecs,
    find_normalized,
    make_actor_critic,
    make_soft_actor_critic,
)
from torchrl_shm.sharing import PlainPolicy, PolicyStep, write_onnx

STEPS, BATCH = 40, 3
NESTED = EnvSpecs(
    Composite(
        arm=Composite(
            eye=Bounded(0, 255, shape=(12, 16, 3), dtype=torch.uint8), joints=Unbounded((5,))
        ),
        index=Unbounded((), dtype=torch.int64),
    ),
    Categorical(4),
    [("arm", "eye"), ("arm", "joints"), "index"],
)
IMAGE = partial(VisualMatchEnv, image=True)


def specs_of(action: TensorSpec, more: dict[str, TensorSpec] | None = None) -> EnvSpecs:
    entries: Any = {"observation": Unbounded(3), **(more or {})}
    return EnvSpecs(Composite(entries), action, list(entries))


KINDS: dict[str, Any] = {
    "index": (MemoryLengthEnv, make_actor_critic, {}),
    "indices": (partial(popgym.BattleshipEnv, joint_action=False), make_actor_critic, {}),
    "squashed": (WindEnv, make_soft_actor_critic, {}),
    "index of soft actor-critic": (MemoryLengthEnv, make_soft_actor_critic, {}),
    "scale of a state": (WindEnv, make_actor_critic, {"action_scale": "state"}),
    "time": (WindEnv, make_actor_critic, {"time_size": 8}),
    "image": (IMAGE, make_actor_critic, {}),
    "normalized": (WindEnv, make_actor_critic, {"normalize": True}),
    "critic of its own": (WindEnv, make_actor_critic, {"shared_memory": False}),
    "mask": (
        lambda _: specs_of(Categorical(5), {"action_mask": Binary(shape=(5,), dtype=torch.bool)}),
        make_actor_critic,
        {},
    ),
    "bits": (lambda _: specs_of(Binary(shape=(2, 3))), make_actor_critic, {}),
    "sizes": (lambda _: specs_of(MultiCategorical([2, 4, 3])), make_actor_critic, {}),
    "matrix": (lambda _: specs_of(Bounded(-1.0, 1.0, (2, 3))), make_actor_critic, {}),
    "squashed matrix": (
        lambda _: specs_of(Bounded(-1.0, 1.0, (2, 3))),
        make_soft_actor_critic,
        {},
    ),
    "nested": (lambda _: NESTED, make_actor_critic, {"normalize": True}),
}
# the others are slow: a file takes seconds
FAST = ("shm",)
# of what a policy reads, and what it gives
FAST_KINDS = ("index", "squashed", "scale of a state", "image", "bits", "nested")


def make(kind: str = "", memory: Any = FEW["shm"]) -> PolicyStep:
    env, make_operator, options = KINDS.get(kind, (WindEnv, make_actor_critic, {}))
    specs = EnvSpecs.of(env(2))
    operator = make_operator(specs, memory, embedding_size=16, hidden_sizes=(8,), **options)
    module = operator.get_policy_operator()
    for name, parameter in module.named_parameters():
        # a fresh policy does nearly nothing; memories are left as they start, or they might explode
        if ".cell." not in name:
            parameter.data += 0.1 * torch.randn_like(parameter)
    for part, keys in find_normalized(module):
        shapes = [specs.observation_spec_unbatched[key].shape for key in keys]
        part.update(part.measure(*(3 * torch.randn(50, *shape) - 1 for shape in shapes)))
    return PolicyStep(PlainPolicy(module, specs))


def draw_observations(step: PolicyStep, steps: int = STEPS) -> list[dict[Any, Tensor]]:
    specs = step.policy.specs.observation_spec_unbatched
    drawn = [specs.expand(BATCH, *specs.shape).rand() for _ in range(steps)]
    return [{key: data[key] for key in step.policy.specs.policy_keys} for data in drawn]


def play(function: Any, step: PolicyStep, observations: Any, start_at: int = 20) -> list[Any]:
    """What a function of the tensors of a step gives; a row starts an episode in between."""
    torch.manual_seed(1)
    state, outputs = step.initial_state(BATCH), []
    first = len(step.output_names) - len(state)
    for number, observation in enumerate(observations):
        choices = [torch.randint(count, (BATCH,)) for count in step.choices.values()]
        if number == start_at:
            state = tuple(x.index_fill(0, torch.tensor([1]), 0) for x in state)
        found = function(*observation.values(), *state, *choices)
        outputs.append(found)
        state = tuple(found[first:])
    return outputs


def play_policy(step: PolicyStep, observations: Any, start_at: int = 20) -> list[Tensor]:
    torch.manual_seed(1)
    memory, actions = step.policy.initial_memory(BATCH), []
    for number, observation in enumerate(observations):
        is_init = torch.tensor([False, number == start_at, False])
        action, memory = step.policy(observation, memory, is_init)
        actions.append(action)
    return actions


def check_close(step: PolicyStep, found: list[Any], expected: list[Any]) -> None:
    for one, other in zip(found, expected, strict=True):
        for name, x, y in zip(step.output_names, one, other, strict=True):
            assert x.dtype == y.dtype
            # states in units of their largest number, for memories that add up
            unit = float(y.abs().max()) if name.startswith("next_") else 0.0
            assert_close(x, y, atol=1e-5 * max(unit, 1), rtol=0)


def check_program(step: PolicyStep) -> list[Any]:
    observations = draw_observations(step)
    eager = play(step, step, observations)
    assert_close([x[0] for x in eager], play_policy(step, observations), atol=1e-6, rtol=1e-6)
    # the parameters of the action, which may be the same one all the time
    assert len({tuple(x[1].flatten().tolist()) for x in eager}) == STEPS
    check_close(step, play(step.export().module(), step, observations), eager)
    return observations


def check_onnx(step: PolicyStep, path: Path, observations: Any) -> None:
    pytest.importorskip("onnxscript", reason="comes with the extra onnx")
    runtime: Any = pytest.importorskip("onnxruntime", reason="comes with the extra onnx")
    written = write_onnx(step.policy, path)
    session = runtime.InferenceSession(path)
    assert [x.name for x in session.get_outputs()] == written.output_names
    names = {x.name for x in session.get_inputs()}
    assert names == set(written.input_names)

    def run(*inputs: Tensor) -> list[Tensor]:
        feed = dict(zip(step.input_names, (x.numpy() for x in inputs), strict=True))
        return [torch.from_numpy(x) for x in session.run(None, feed)]

    check_close(step, play(run, step, observations), play(step, step, observations))


@pytest.mark.parametrize(
    "memory",
    at_night(
        # these two are others of the same cells with other sizes
        [name for name in MEMORIES if name not in ("shm_popgym", "shm_pomdp")],
        unless=lambda name: name in FAST,
    ),
)
def test_every_memory(memory: str, tmp_path: Path) -> None:
    step = make(memory=instantiate(MEMORIES[memory]))
    check_onnx(step, tmp_path / "policy.onnx", check_program(step))


@pytest.mark.parametrize("feature_map", ["relu", "identity"])
def test_keys_of_length_one(feature_map: str, tmp_path: Path) -> None:
    step = make(memory=instantiate(MEMORIES["shm"], feature_map=feature_map, qk_norm="l2"))
    check_onnx(step, tmp_path / "policy.onnx", check_program(step))


@pytest.mark.parametrize("kind", at_night(KINDS, unless=lambda kind: kind in FAST_KINDS))
def test_every_kind_of_policy(kind: str) -> None:
    check_program(make(kind))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_policy_in_onnx(kind: str, tmp_path: Path) -> None:
    step = make(kind, FEW["gru"])
    check_onnx(step, tmp_path / "policy.onnx", draw_observations(step))


def test_names() -> None:
    step = make("nested")
    assert step.input_names == ["arm.eye", "arm.joints", "index", "memory", "theta_index"]
    assert step.output_names == ["action", "logits", "next_memory"]
    assert step.choices == {"theta_index": 128}
    mlp = make(memory=FEW["mlp"])
    assert (mlp.output_names, mlp.initial_state(2)) == (["action", "loc", "scale"], ())


class Looking(BaseCell):
    """Branches on a value, which no graph can."""

    def __init__(self, input_size: int, output_size: int) -> None:
        super().__init__(input_size, output_size, (output_size,))
        self.write = nn.Linear(input_size, output_size)

    def run_step(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        memory = memory + self.write(x) if bool(x.sum() > 0) else memory
        return memory, memory


class Complex(Looking):
    """Has an operation that ONNX does not know."""

    def run_step(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.fft.fft(memory + self.write(x)).real
        return torch.special.bessel_j0(y), memory


def test_what_cannot_be_exported_is_refused_in_a_line(tmp_path: Path) -> None:
    step = make(memory=partial(make_memory, cell=Looking))
    with pytest.raises(ValueError, match=r"torch\.export refuses this policy: ") as error:
        step.export()
    assert "\n" not in str(error.value)
    pytest.importorskip("onnxscript", reason="comes with the extra onnx")
    step = make(memory=partial(make_memory, cell=Complex))
    with pytest.raises(ValueError, match="ONNX refuses this policy: ") as error:
        write_onnx(step.policy, tmp_path / "policy.onnx")
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_mistakes(monkeypatch: pytest.MonkeyPatch) -> None:
    step = make()
    with pytest.raises(ValueError, match="argument 2 is"):
        step(torch.zeros(2, 2))
    policy = PlainPolicy(step.policy.module, step.policy.specs)
    policy.module = nn.Identity()
    with pytest.raises(TypeError, match="the policy is a Identity; a step is made of policies of"):
        PolicyStep(policy)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ImportError, match=r"need onnx and onnxscript: pip install 'torchrl_shm\["):
        write_onnx(step.policy, "policy.onnx")
