"""One memory between embedding and two heads."""

from __future__ import annotations

from functools import partial
from math import log
from typing import Any

import pytest
import torch
from hydra_zen import instantiate
from tensordict import TensorDict
from torch import nn
from torch.testing import assert_close
from torchrl.data import (
    Binary,
    Bounded,
    Categorical,
    Composite,
    MultiCategorical,
    MultiOneHot,
    OneHot,
    Unbounded,
)
from torchrl.envs import ExplorationType, TransformedEnv, set_exploration_type
from torchrl.modules import set_recurrent_mode
from torchrl.modules.utils import get_env_transforms_from_module
from torchrl.objectives import ClipPPOLoss

from tests.training._helpers import KEYS, MEMORIES, Countdown, make_operator
from torchrl_shm import SHM, SHMModule, WindEnv
from torchrl_shm.configs import MEMORIES as CONFIGS
from torchrl_shm.configs import TUNED
from torchrl_shm.envs import PointRobotEnv
from torchrl_shm.modules import LSTM
from torchrl_shm.networks import Encoder, EnvSpecs, make_actor_critic
from torchrl_shm.networks.heads import Choices, Head
from torchrl_shm.training import RolloutCollector


def collect(operator: Any, make_env: Any = WindEnv) -> Any:
    collector = RolloutCollector(
        partial(make_env, max_steps=7), operator.get_policy_operator(), num_envs=3,
        rollout_length=10, total_frames=60,
    )  # fmt: skip
    *_, batch = collector
    collector.close()
    return batch


def count_calls(operator: Any, memory: str) -> list[int]:
    """Calls of the memory from now on."""
    calls: list[int] = []
    kinds: dict[str, Any] = {"shm": SHM, "lstm": LSTM}
    (module,) = (m for m in operator.modules() if isinstance(m, kinds[memory]))
    module.register_forward_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize("memory", ["shm", "mlp"])
def test_entries_and_sizes(memory: str) -> None:
    operator = make_actor_critic(
        WindEnv(3), MEMORIES[memory], policy_keys=["observation"], embedding_size=6,
        hidden_sizes=(5,),
    )  # fmt: skip
    batch = collect(operator)
    with torch.no_grad(), set_recurrent_mode(True):
        batch = operator.get_value_operator()(batch)
    shapes = {"embedding": 6, "features": 6, "loc": 2, "scale": 2, "action": 2, "state_value": 1}
    assert {key: batch[key].shape[-1] for key in shapes} == shapes
    assert batch["action_log_prob"].shape == batch.shape
    embedding = next(module for module in operator.modules() if isinstance(module, nn.Linear))
    assert embedding.in_features == 2


def test_initial_actions() -> None:
    """Near zero, with the scale asked for: small steps in every direction."""
    operator = make_actor_critic(WindEnv(64), SHMModule, policy_keys=KEYS, init_scale=0.7)
    batch = collect(operator)
    assert_close(batch["scale"], torch.full_like(batch["scale"], 0.7))
    assert batch["loc"].abs().max() < 0.05


@pytest.mark.parametrize("init_scale", [0.02, 0.3, 100.0])
def test_the_scale_of_a_state(init_scale: float) -> None:
    """It starts as the other does, in any unit, is learned, and ends at a fifteenth of that."""
    operator = make_actor_critic(
        WindEnv(4), SHMModule, policy_keys=KEYS, init_scale=init_scale, action_scale="state"
    )
    policy: Any = operator.get_policy_operator()
    last: Any = next(m for m in policy.modules() if isinstance(m, Head)).layers[-1]
    assert last.out_features == 4
    batch = collect(operator)
    assert_close(batch["scale"] / init_scale, torch.ones_like(batch["scale"]), atol=0.1, rtol=0)
    assert (batch["scale"].flatten(0, 1).std(0) > 0).all()
    with set_recurrent_mode(True):
        policy.get_dist(batch).stddev.sum().backward()
    assert (last.bias.grad == 0).tolist() == [True, True, False, False]
    with torch.no_grad():
        last.bias[2:] = -100.0
    least = collect(operator)["scale"]
    assert_close(least, torch.full_like(least, init_scale / 15))


def test_the_ratio_is_one_where_the_scale_is_of_the_state() -> None:
    operator = make_actor_critic(
        WindEnv(3), SHMModule, policy_keys=KEYS, action_scale="state", hidden_sizes=(8,)
    )
    batch = collect(operator).exclude("loc", "scale")
    with set_recurrent_mode(True):
        found = operator.get_policy_operator().get_dist(batch).log_prob(batch["action"])
    assert_close(found, batch["action_log_prob"])


def test_the_preset_of_point_robot_has_the_scale_of_the_state() -> None:
    values: Any = dict(TUNED["ppo"]["point_robot"]["network"])
    operator = make_actor_critic(PointRobotEnv(3), SHMModule, **values)
    batch = collect(operator, PointRobotEnv)
    assert (batch["scale"].flatten(0, 1).std(0) > 0).all()


@pytest.mark.parametrize("hidden_sizes", [(), (2, 2), (16, 2)])
def test_heads(hidden_sizes: tuple[int, ...]) -> None:
    """Hidden layers may be as wide as the output without being taken for it."""
    operator = make_actor_critic(
        WindEnv(2), SHMModule, policy_keys=KEYS, embedding_size=4, hidden_sizes=hidden_sizes
    )
    for head, gain, size in (
        (operator.get_policy_head(), 0.01, 2),
        (operator.get_value_head(), 1.0, 1),
    ):
        layers = next(m for m in head.modules() if isinstance(m, nn.Sequential))
        linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
        assert [layer.out_features for layer in linear] == [*hidden_sizes, size]
        assert len(layers) == 2 * len(linear) - 1
        assert all(isinstance(layer, nn.Tanh) for layer in layers[1::2])
        for layer in linear:
            expected = gain if layer is linear[-1] else 2**0.5
            weight = layer.weight.detach()
            rows = weight if len(weight) <= weight.shape[1] else weight.T
            gram = rows @ rows.T
            assert_close(gram, expected**2 * torch.eye(len(rows)))
            assert not layer.bias.any()


@pytest.mark.parametrize("memory", ["shm", "lstm"])
def test_the_loss_runs_the_memory_once_and_trains_all(memory: str) -> None:
    operator = make_operator(MEMORIES[memory])
    batch = collect(operator).exclude("embedding", "features", "loc", "scale")
    batch["advantage"] = torch.randn(*batch.shape, 1)
    batch["value_target"] = torch.randn(*batch.shape, 1)
    loss = ClipPPOLoss(
        operator.get_policy_operator(), operator.get_value_head(), entropy_coeff=0.01
    )
    calls = count_calls(operator, memory)
    term = loss(batch)
    assert len(calls) == 1
    assert float(term["max_ratio"]) == pytest.approx(1, abs=1e-4)
    sum(value for key, value in term.items() if key.startswith("loss_")).backward()
    parameters = dict(operator.named_parameters())
    assert len(list(loss.parameters())) == len(parameters)
    silent = {name for name, value in parameters.items() if value.grad is None}
    assert silent == set()


def test_both_heads_see_memory_and_embedding() -> None:
    operator = make_operator()
    batch = collect(operator)
    for head, out_key in (
        (operator.get_policy_head(), "loc"),
        (operator.get_value_head(), "state_value"),
    ):
        before = head(batch.clone())[out_key]
        for key in ("features", "embedding"):
            changed = batch.clone()
            changed[key] = changed[key] + 1
            assert not torch.equal(head(changed)[out_key], before)


@pytest.mark.parametrize(
    ("spec", "logits", "action"),
    [
        (Categorical(3, shape=torch.Size((4,))), 3, ()),
        (MultiCategorical([5, 5], shape=torch.Size((4, 2))), 10, (2,)),
    ],
    ids=["index", "indices"],
)
def test_discrete_actions(spec: Any, logits: int, action: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    env = Countdown(4, action_spec=spec)
    operator = make_operator(env=env)
    policy = operator.get_policy_operator()
    transformed = TransformedEnv(env, get_env_transforms_from_module(policy))
    with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
        rollout = transformed.rollout(6, policy, break_when_any_done=False)
    # it starts with an episode, so nothing but the empty memory is needed
    batch = rollout.exclude("memory", ("next", "memory")).contiguous()
    assert batch["logits"].shape == (*batch.shape, logits)
    assert batch["action"].shape == (*batch.shape, *action)
    # a fresh policy is close to uniform
    expected = -log(3) if not action else -2 * log(5)
    assert_close(batch["action_log_prob"], torch.full(batch.shape, expected), atol=0.05, rtol=0)
    assert len(batch["action"].unique()) == (5 if action else 3)
    loss = ClipPPOLoss(policy, operator.get_value_head(), entropy_coeff=0.01)
    batch["advantage"] = torch.ones(*batch.shape, 1)
    batch["value_target"] = torch.ones(*batch.shape, 1)
    with set_recurrent_mode(True):
        term = loss(batch)
    assert_close(term["max_ratio"].item(), 1.0, atol=1e-4, rtol=0)
    assert term["entropy"] > -expected - 0.05
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        first = transformed.rollout(1, policy)
    blocks = first["logits"].unflatten(-1, (*action, -1))
    assert torch.equal(first["action"].flatten(), blocks.argmax(-1).flatten())


def test_bytes_and_images_are_flattened_and_scaled() -> None:
    shapes = [torch.Size((3, 5, 5)), torch.Size((2,))]
    encoder = Encoder(shapes, 8, None)
    assert encoder.linear.in_features == 77
    image, vector = torch.randint(256, (4, 6, 3, 5, 5), dtype=torch.uint8), torch.randn(4, 6, 2)
    scaled = torch.cat([image.flatten(-3) / 255, vector], -1)
    assert_close(encoder(image, vector), torch.tanh(encoder.linear(scaled)))


def test_keys_are_the_choice_of_the_environment() -> None:
    operator = make_actor_critic(WindEnv(2), SHMModule)
    assert operator.module[0].module[0].in_keys == ["observation", "previous_action"]
    # one that has no choice
    operator = make_actor_critic(Countdown(2), SHMModule)
    assert operator.module[0].module[0].in_keys == ["observation"]


def test_unknown_key_lists_the_others() -> None:
    with pytest.raises(KeyError, match=r"\['place'\].*observation.*previous_action") as error:
        make_actor_critic(WindEnv(2), SHMModule, policy_keys=["observation", "place"])
    assert "shaping" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embedding_size": 0}, r"network\.embedding_size must be at least 1"),
        ({"embedding_size": 2}, r"network\.embedding_size=2 is too small for this memory: input_s"),
        ({"hidden_sizes": (8, 0)}, r"network\.hidden_sizes must be at least 1"),
        ({"init_scale": 0.0}, r"network\.init_scale=0\.0 must be positive"),
        ({"action_scale": "tanh"}, r"network\.action_scale='tanh' is unknown; .*'global', 'state'"),
    ],
)
def test_sizes_that_do_not_fit(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_actor_critic(WindEnv(2), SHMModule, **options)


@pytest.mark.parametrize(
    "spec",
    [
        MultiOneHot([3, 4], shape=(2, 7)),
        Bounded(0, 3, shape=(2, 1), dtype=torch.int64),
        Unbounded(shape=(2, 1), dtype=torch.int64),
    ],
    ids=lambda spec: type(spec).__name__,
)
def test_actions_of_other_kinds(spec: Any) -> None:
    env = Countdown(2, action_spec=spec)
    with pytest.raises(TypeError, match=r"(?s)are not supported.*continuous action, an index"):
        make_actor_critic(env, SHMModule, policy_keys=KEYS)


@pytest.mark.parametrize(
    ("spec", "size"),
    [
        (Bounded(-1, 1, shape=(2, 2, 3)), 6),
        (Unbounded(shape=(2,)), 1),
        (Categorical(5, shape=(2, 3)), 15),
        (MultiCategorical([3, 4], shape=(2, 2)), 7),
        (Binary(shape=(2, 2, 2), dtype=torch.bool), 8),
        (OneHot(3, shape=(2, 3)), 3),
    ],
    ids=lambda spec: type(spec).__name__,
)
def test_actions_of_any_shape(spec: Any, size: int) -> None:
    env = Countdown(2, action_spec=spec)
    policy: Any = make_actor_critic(env, SHMModule, policy_keys=KEYS).get_policy_operator()
    data = TransformedEnv(env, get_env_transforms_from_module(policy)).rollout(1, policy)
    assert data["action"].shape == (2, 1, *spec.shape[1:])
    if not spec.dtype.is_floating_point and not isinstance(spec, OneHot):
        assert data["action"].dtype == spec.dtype
    assert data["action_log_prob"].shape == (2, 1)
    assert data["loc" if spec.dtype.is_floating_point else "logits"].shape == (2, 1, size)
    again = policy.build_dist_from_params(data).log_prob(data["action"])
    torch.testing.assert_close(again, data["action_log_prob"])


def test_a_mask_that_does_not_fit() -> None:
    for action in (Categorical(3), Bounded(-1, 1, shape=(2,))):
        specs = EnvSpecs(
            Composite(action_mask=Binary(shape=(2,), dtype=torch.bool)), action, ["action_mask"]
        )
        with pytest.raises(ValueError, match=r"'action_mask' of 2 flags does not fit"):
            make_actor_critic(specs, SHMModule)


@pytest.mark.parametrize("memory", sorted(CONFIGS))
def test_parameters_of_16_bits(memory: str) -> None:
    """They act and learn, or a line says that they cannot."""
    operator = make_actor_critic(WindEnv(2), instantiate(CONFIGS[memory])).to(torch.bfloat16)
    policy: Any = operator.get_policy_operator()
    env = TransformedEnv(WindEnv(2), get_env_transforms_from_module(policy))
    if memory != "mlp" and not memory.startswith("shm"):
        with pytest.raises(TypeError, match=r"^the parameters are torch\.bfloat16; .*float32.*$"):
            env.rollout(4, policy)
        return
    data = env.rollout(4, policy)
    with set_recurrent_mode(True):
        again = policy.get_dist(data.exclude("action_log_prob")).log_prob(data["action"])
    assert_close(again, data["action_log_prob"], rtol=0.05, atol=0.05)
    again.sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in policy.parameters() if p.grad is not None)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
class TestForbiddenChoices:
    def test_padding_of_a_block_that_allows_nothing(self, dtype: torch.dtype) -> None:
        """What fills up the shorter block is no choice, although all others are forbidden."""
        mask = torch.tensor([0, 0, 0, 1, 0, 0], dtype=torch.bool).expand(200, 6)
        logits = 9 * torch.randn(200, 6).to(dtype)
        dist = Choices(logits, sizes=(2, 4), shape=(2,), dtype=torch.int64, mask=mask)
        for action in (dist.sample(), dist.mode):
            assert set(action[:, 0].tolist()) <= {0, 1}
            assert set(action[:, 1].tolist()) == {1}
            assert dist.log_prob(action).isfinite().all()

    def test_a_single_index(self, dtype: torch.dtype) -> None:
        specs = EnvSpecs(
            Composite(observation=Unbounded(2), action_mask=Binary(shape=(3,), dtype=torch.bool)),
            Categorical(3),
            ["observation", "action_mask"],
        )
        actor: Any = make_actor_critic(specs, SHMModule).get_policy_head()
        logits = torch.randn(50, 3).to(dtype)
        mask = torch.tensor([True, False, True]).expand(50, 3)
        data = TensorDict({"logits": logits, "action_mask": mask}, [50])
        dist = actor[-1].get_dist(data)
        assert set(dist.sample().tolist()) == {0, 2}
        assert dist.log_prob(dist.sample()).isfinite().all()
