"""Targets are those of single steps, and each loss trains its own networks."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictSequential
from torchrl.data import Binary, Categorical, Composite, Unbounded
from torchrl.modules import set_recurrent_mode

from torchrl_shm import SHMModule, TMazeEnv, WindEnv, unroll
from torchrl_shm.modules import GRU, make_memory, make_mlp
from torchrl_shm.networks import EnvSpecs, Policy, get_behavior, make_soft_actor_critic
from torchrl_shm.networks.heads import Head
from torchrl_shm.training import (
    RolloutCollector,
    SequenceReplay,
    SlowCritic,
    UnrolledDiscreteSACLoss,
    make_sac_loss,
    unroll_features,
)

GAMMA = 0.9
ENVS: dict[str, Any] = {
    # one is truncated, the other terminates
    "continuous": partial(WindEnv, max_steps=7, shaping_radii=(0.001, 10.0)),
    "discrete": partial(TMazeEnv, length=3),
}
MEMORIES: dict[str, Any] = {"shm": SHMModule, "gru": partial(make_memory, cell=GRU)}
both_forms = pytest.mark.parametrize("form", ENVS)
TEMPERATURE = 0.3


class Case:
    """Networks, two batches of sequences in mid-episode, and parameters that moved since then."""

    def __init__(self, form: str, memory: str, **options: Any) -> None:
        torch.manual_seed(0)
        make_env = ENVS[form]
        divergence = options.pop("divergence", "reverse")
        options = {"embedding_size": 6, "hidden_sizes": (7,), "time_size": 4} | options
        self.operator = make_soft_actor_critic(make_env(2), MEMORIES[memory], **options)
        # an entropy with which every target is different
        self.loss: Any = make_sac_loss(
            self.operator, gamma=GAMMA, initial_temperature=TEMPERATURE, divergence=divergence
        )
        self.slow = SlowCritic(self.operator, self.loss, tau=0.5)
        self.behavior = get_behavior(self.operator)
        collector = RolloutCollector(
            make_env, self.behavior, num_envs=4, rollout_length=10, total_frames=80
        )
        self.batches = [batch.clone() for batch in collector]
        collector.close()
        self.old = [self.states(backbone) for backbone in self.backbones]
        self.move()
        self.slow.step()
        self.move()

    @property
    def backbones(self) -> tuple[Any, Any, Any]:
        return self.operator.actor, self.operator.critic, self.slow.critic

    def states(self, backbone: Any) -> Any:
        return {name: x.clone() for name, x in backbone.state_dict().items()}

    @torch.no_grad()
    def move(self) -> None:
        for parameter in [*self.operator.parameters(), *self.loss.parameters()]:
            if parameter.requires_grad and parameter.ndim:
                parameter += 0.1 * torch.randn_like(parameter)


def play(backbone: Any, batch: Any, memory: Any, gates: Any) -> tuple[Any, Any, Any]:
    """Features of observations and of what came next, one step after the other."""
    *before, module = backbone
    here: list[Any] = []
    there: list[Any] = []
    time = batch.get("episode_step", None)
    for t in range(batch.shape[1]):
        for place, out in ((batch[:, t], here), (batch["next"][:, t], there)):
            inner = TensorDict(dict(place.items()), place.batch_size).exclude("memory", "next")
            inner["is_init"] = torch.zeros_like(batch["is_init"][:, t])
            if time is not None:
                inner["episode_step"] = time[:, t] + (out is there)
            for part in before:
                inner = part(inner)
            if out is here:
                start = batch["is_init"][:, t].reshape(-1, *(1 for _ in memory.shape[1:]))
                memory = torch.where(start, 0.0, memory)
            x = inner.get(before[-1].out_keys[0])
            index = None if gates is None else gates[out is there][:, t]
            y, after, _ = module.cell.step(x, memory, index)
            if out is here:
                memory = after
            out.append((x, y))
    stack = [torch.stack(x, 1) for step in (here, there) for x in zip(*step, strict=True)]
    return stack[:2], stack[2:], memory


@both_forms
@pytest.mark.parametrize("memory", MEMORIES)
@torch.no_grad()
def test_every_target_is_that_of_single_steps(form: str, memory: str) -> None:
    """With resets in the sequences, starts in mid-episode, and a slow critic with its memory."""
    case = Case(form, memory)
    first, second = case.batches
    assert second["next", "done"][:, :-1].any()
    assert not second["is_init"][:, 0].all()
    memories = TensorDictSequential(case.operator.actor, case.operator.critic)
    data = unroll(memories, second)
    torch.manual_seed(1)
    slow = unroll(case.slow.critic, second)
    torch.manual_seed(1)
    data = case.slow.unroll_next(second, data)

    found: list[Any] = []
    for backbone, old, result in zip(case.backbones, case.old, (data, data, slow), strict=True):
        module = backbone[-1]
        gates = old_gates = None
        if module.choice_key is not None:
            gates = result[module.choice_key], result["next", module.choice_key]
            old_gates = first[module.choice_key], first[module.choice_key]
        new = case.states(backbone)
        backbone.load_state_dict(old)
        zero = torch.zeros(4, *module.cell.memory_shape)
        *_, start = play(backbone, first, zero, old_gates)
        backbone.load_state_dict(new)
        found.append(play(backbone, second, start, gates)[:2])
    (_, actor_next), (critic, critic_fast), (_, critic_next) = found
    # the slow one is another network
    assert not torch.allclose(critic_fast[1], critic_next[1], atol=1e-3)

    loss = case.loss
    torch.manual_seed(2)
    loss(data)
    torch.manual_seed(2)
    came_next = TensorDict(dict(zip(("embedding", "features"), actor_next, strict=True)), [4, 10])
    dist = loss.actor_network.get_dist(came_next)
    alpha = loss.log_alpha.exp()

    def q_values(params: Any, entries: Any, *action: Any) -> Any:
        heads = []
        for i in range(2):
            with params[i].to_module(loss.qvalue_network):
                heads.append(loss.qvalue_network.module(entries[1], entries[0], *action))
        return torch.stack(heads)

    if form == "continuous":
        action = dist.rsample()
        q = q_values(loss.target_qvalue_network_params, critic_next, action).squeeze(-1)
        value = q.min(0).values - alpha * dist.log_prob(action)
        now = q_values(loss.qvalue_network_params, critic, second["action"]).squeeze(-1)
    else:
        q = q_values(loss.target_qvalue_network_params, critic_next)
        value = (dist.probs * (q.min(0).values - alpha * dist.logits)).sum(-1)
        now = q_values(loss.qvalue_network_params, critic)
        now = now.gather(-1, second["action"].expand(2, 4, 10).unsqueeze(-1)).squeeze(-1)
    goes_on = ~second["next", "terminated"].squeeze(-1)
    target = second["next", "reward"].squeeze(-1) + GAMMA * goes_on * value
    error = (now - target).abs().max(0).values
    torch.testing.assert_close(data["td_error"], error, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("form", "divergence"),
    [("continuous", "reverse"), ("discrete", "reverse"), ("discrete", "forward")],
)
def test_each_loss_trains_its_own(form: str, divergence: str) -> None:
    case = Case(form, "shm", divergence=divergence)
    operator, loss = case.operator, case.loss
    memories = TensorDictSequential(operator.actor, operator.critic)
    sample = case.batches[1]
    terms = loss(case.slow.unroll_next(sample, unroll(memories, sample)))
    actor = [*operator.actor.parameters(), *operator.head.parameters()]
    critic = [*operator.critic.parameters(), *loss.qvalue_network_params.parameters()]
    groups = {"loss_actor": actor, "loss_qvalue": critic, "loss_alpha": [loss.log_alpha]}
    everything = [x for group in groups.values() for x in group]
    for name, own in groups.items():
        options: Any = {"allow_unused": True, "retain_graph": True}
        gradients = torch.autograd.grad(terms[name], everything, **options)
        for parameter, gradient in zip(everything, gradients, strict=True):
            mine = any(parameter is x for x in own)
            assert (gradient is not None and bool(gradient.any())) == mine, name
    assert not any(x.requires_grad for x in case.slow.critic.parameters())


@pytest.mark.parametrize("divergence", ["reverse", "forward"])
def test_divergence_of_the_actor(divergence: str) -> None:
    """From the softmax of the lower action values over the temperature, and in which direction."""
    case = Case("discrete", "gru", divergence=divergence)
    loss, sample = case.loss, case.batches[1]
    memories = TensorDictSequential(case.operator.actor, case.operator.critic)
    data = case.slow.unroll_next(sample, unroll(memories, sample))
    with torch.no_grad():
        values = []
        for i in range(2):
            with loss.qvalue_network_params[i].to_module(loss.qvalue_network):
                entries = data["critic_features"], data["critic_embedding"]
                values.append(loss.qvalue_network.module(*entries))
        goal = torch.distributions.Categorical(logits=torch.stack(values).amin(0) / TEMPERATURE)
        policy = torch.distributions.Categorical(logits=loss.actor_network.get_dist(data).logits)
        entropy = policy.entropy().mean()
        both = (policy, goal) if divergence == "reverse" else (goal, policy)
        expected = torch.distributions.kl_divergence(*both).mean()
        if divergence == "reverse":
            # SAC leaves out what does not depend on the policy, and multiplies by the temperature
            norm = (torch.stack(values).amin(0) / TEMPERATURE).logsumexp(-1).mean()
            expected = TEMPERATURE * (expected - norm)
    terms = loss(data)
    torch.testing.assert_close(terms["loss_actor"], expected)
    torch.testing.assert_close(terms["entropy"], entropy)


# from the second on the probability of other actions is zero in float32
@pytest.mark.parametrize("logit", [40.0, 120.0, 500.0])
def test_who_is_sure_learns_by_the_forward_divergence(logit: float) -> None:
    def gradient(divergence: str) -> float:
        case = Case("discrete", "gru", divergence=divergence)
        (head,) = (x for x in case.operator.head.modules() if isinstance(x, Head))
        last: Any = head.layers[-1]
        with torch.no_grad():
            last.weight.zero_()
            last.bias.copy_(torch.tensor([logit, 0.0, 0.0, 0.0]))
        sample = case.batches[1]
        memories = TensorDictSequential(case.operator.actor, case.operator.critic)
        terms = case.loss(case.slow.unroll_next(sample, unroll(memories, sample)))
        terms["loss_actor"].backward()
        return float(last.bias.grad.norm())

    assert gradient("reverse") < 1e-6
    assert gradient("forward") > 0.1


def test_what_is_forbidden_is_not_learned() -> None:
    """An action mask holds in the softmax, too, whatever the critic expects of such an action."""
    torch.manual_seed(0)
    observation = Composite(
        observation=Unbounded(2), action_mask=Binary(shape=(4,), dtype=torch.bool)
    )
    specs = EnvSpecs(observation, Categorical(4), ["observation", "action_mask"])
    operator = make_soft_actor_critic(specs, make_mlp, embedding_size=6, hidden_sizes=(7,))
    loss = make_sac_loss(operator, gamma=GAMMA, temperature=0.1, divergence="forward")
    mask = torch.tensor([True, True, False, True]).expand(3, 5, 4)
    data = TensorDict({"observation": torch.randn(3, 5, 2), "action_mask": mask}, [3, 5])
    TensorDictSequential(*operator.actor, *operator.critic)(data)
    value, _ = loss.actor_loss(data)
    assert 0 < value.item() < 10
    value.backward()
    gradients = [x.grad for x in operator.head.parameters()]
    assert all(x is not None and bool(x.isfinite().all()) for x in gradients)
    # the bias of what is forbidden everywhere is left alone
    assert (gradients[-1] != 0).tolist() == [True, True, False, True]


def test_a_continuous_action_has_no_softmax() -> None:
    operator = make_soft_actor_critic(WindEnv(2), SHMModule)
    with pytest.raises(ValueError, match="actor_divergence=forward is for actions that are an"):
        make_sac_loss(operator, gamma=GAMMA, divergence="forward")
    with pytest.raises(ValueError, match=r"algo\.actor_divergence='sideways'"):
        make_sac_loss(operator, gamma=GAMMA, divergence="sideways")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"divergence": "sideways"}, "divergence='sideways'"),
        ({"divergence": "forward", "reduction": "sum"}, "needs reduction='mean', not 'sum'"),
    ],
)
def test_options_of_the_loss_itself(options: dict[str, Any], message: str) -> None:
    operator = make_soft_actor_critic(TMazeEnv(2), SHMModule)
    heads: Any = operator.make_q_heads()
    options = {"action_space": "categorical", "target_entropy": 0.4} | options
    with pytest.raises(ValueError, match=message):
        UnrolledDiscreteSACLoss(operator.head, heads, **options)


@both_forms
@torch.no_grad()
def test_slow_critic_follows_all_of_the_critic(form: str) -> None:
    case = Case(form, "gru")
    before = case.states(case.slow.critic)
    heads = [x.clone() for x in case.loss.target_qvalue_network_params.values(True, True)]
    case.slow.step()
    fast = case.states(case.operator.critic)
    for name, x in case.slow.critic.state_dict().items():
        torch.testing.assert_close(x, (before[name] + fast[name]) / 2)
    pairs = case.loss.qvalue_network_params.values(True, True)
    after = case.loss.target_qvalue_network_params.values(True, True)
    for old, source, new in zip(heads, pairs, after, strict=True):
        torch.testing.assert_close(new, (old + source) / 2)


@both_forms
@torch.no_grad()
def test_a_sample_replays_what_acted(form: str, tmp_path: Any) -> None:
    torch.manual_seed(0)
    env = ENVS[form]
    operator = make_soft_actor_critic(env(2), SHMModule, actor_memory=MEMORIES["gru"])
    collector = RolloutCollector(
        env, get_behavior(operator), num_envs=4, rollout_length=10, total_frames=120
    )
    policy = Policy(*operator.get_policy_operator())
    keys = [*policy.in_keys, "action", "action_log_prob"]
    replay = SequenceReplay(tmp_path, num_sequences=12, batch_size=9, keys=keys)
    for batch in collector:
        replay.extend(batch)
    sample = replay.sample()
    assert not sample["is_init"][:, 0].all()
    with set_recurrent_mode(True):
        again = policy.get_dist(sample.exclude("action")).log_prob(sample["action"])
    torch.testing.assert_close(again, sample["action_log_prob"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("time_size", [0, 4])
@pytest.mark.parametrize("memories", [("gru", "mlp"), ("mlp", "gru"), ("mlp", "mlp")])
def test_a_memory_beside_a_network_without(memories: tuple[str, str], time_size: int) -> None:
    """One pass over both is a pass over each, also of data that were unrolled before."""
    torch.manual_seed(0)
    made: dict[str, Any] = {"gru": MEMORIES["gru"], "mlp": make_mlp}
    make_env = ENVS["discrete"]
    operator = make_soft_actor_critic(
        make_env(2), made[memories[1]], actor_memory=made[memories[0]], time_size=time_size,
        embedding_size=6, hidden_sizes=(7,),
    )  # fmt: skip
    collector = RolloutCollector(
        make_env, get_behavior(operator), num_envs=4, rollout_length=10, total_frames=40
    )
    (batch,) = collector
    both = TensorDictSequential(*operator.actor, *operator.critic)
    old = unroll_features(both, batch)
    with torch.no_grad():
        for parameter in both.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    expected = unroll_features(operator.critic, unroll_features(operator.actor, batch))
    for sample in (batch, old):
        found = unroll_features(both, sample)
        for name in ("embedding", "features", "critic_embedding", "critic_features"):
            for key in (name, ("next", name)):
                torch.testing.assert_close(found[key], expected[key])
            assert found[name].requires_grad
            assert not found["next", name].requires_grad


def test_temperature() -> None:
    operator = make_soft_actor_critic(WindEnv(2), SHMModule)
    learned = make_sac_loss(operator, gamma=0.9)
    assert float(learned.target_entropy) == -2
    assert learned.log_alpha.requires_grad
    fixed = make_sac_loss(operator, gamma=0.9, temperature=0.2)
    assert float(fixed.log_alpha.exp()) == pytest.approx(0.2)
    assert not fixed.log_alpha.requires_grad
    discrete = make_soft_actor_critic(TMazeEnv(2), SHMModule)
    assert float(make_sac_loss(discrete, gamma=0.9, target_entropy=0.1).target_entropy) == (
        pytest.approx(0.1)
    )


@both_forms
def test_bound_on_the_temperature(form: str) -> None:
    """It holds at once, and a temperature below it still learns."""
    case = Case(form, "gru")
    sample = case.batches[1]
    memories = TensorDictSequential(case.operator.actor, case.operator.critic)
    data = case.slow.unroll_next(sample, unroll(memories, sample))
    options: Any = {"initial_temperature": 0.1, "target_entropy": 50.0}
    for bound, expected in ((0.05, 0.05), (0.2, 0.1), (None, 0.1)):
        loss = make_sac_loss(case.operator, gamma=GAMMA, max_temperature=bound, **options)
        SlowCritic(case.operator, loss, tau=0.5)
        terms = loss(data)
        assert float(terms["alpha"]) == pytest.approx(expected)
        assert float(loss.log_alpha.detach().exp()) == pytest.approx(expected)
        terms["loss_alpha"].backward()
        # an entropy as high as that is not reached, so it rises
        assert float(loss.log_alpha.grad) < 0
