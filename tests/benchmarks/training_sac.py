"""Time soft actor-critic, the recipe, against a plain torch loop that does the same.

python -m tests.benchmarks.training_sac
python -m tests.benchmarks.training_sac --memories shm --updates-per-step 0.12

`recipes/sac_shm.py` runs as it is, on Wind. After each of its batches the plain loop collects one
and makes as many gradient steps: the same environment, networks, draws and sequences on tensors,
without TensorDicts, collectors, loss modules, replay buffers or run folders, or what the recipe
checks and logs. That both make the same losses with the first batch is checked before any time is
printed. Times are CPU seconds; a ratio above 1 says that the recipe is the faster one.
"""

from __future__ import annotations

import argparse
import copy
from functools import partial
from math import log, pi
from statistics import median
from typing import Any

import torch
from hydra_zen import instantiate
from torch import Tensor, nn

from recipes import sac_shm
from tests.benchmarks._alternating import alternate
from tests.benchmarks._measure import number, table, wait_until_idle
from tests.benchmarks.training import PlainRNN
from torchrl_shm.configs import MEMORIES, SAC
from torchrl_shm.envs import WindEnv
from torchrl_shm.modules import GRU, LSTM
from torchrl_shm.networks import make_soft_actor_critic
from torchrl_shm.training import Experiment

# of the losses of the two sides: rounding, which grows with every gradient step
TOLERANCE = 1e-3
Batch = dict[str, Tensor]


class Backbone(nn.Module):
    """An embedding and a memory.

    Args:
        parts: of `make_soft_actor_critic`, whose networks are copied.
    """

    def __init__(self, parts: Any) -> None:
        super().__init__()
        embedding, memory = copy.deepcopy(list(parts))
        self.encoder, cell = embedding.module, memory.cell
        self.cell = PlainRNN(cell.rnn) if isinstance(cell, (GRU, LSTM)) else cell

    def forward(self, x: list[Tensor], choice: Tensor | None) -> tuple[Tensor, Tensor]:
        """Features and embedding of episodes from their start, `[B, T, ...]`."""
        embedding = self.encoder(*x)
        first = torch.zeros(embedding.shape[:2], dtype=torch.bool)
        first[:, 0] = True
        start = torch.zeros(len(embedding), *self.cell.memory_shape)
        return self.cell(embedding, start, first, choice)[0], embedding

    def step(self, x: list[Tensor], memory: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Features, embedding, memory and choice of one step `[B, ...]`."""
        embedding = self.encoder(*x)
        features, memory, choice = self.cell.step(embedding, memory)
        return features, embedding, memory, choice


class PlainSAC(nn.Module):
    """Soft actor-critic on tensors, as one writes it without a library; an episode is a sequence.

    Args:
        operator: of `make_soft_actor_critic`, whose networks are copied.
        heads: of the critic, in the same way.
        algo: hyperparameters.
        num_envs: environments B.
        rng: state of torch's generator with which collection starts.
    """

    def __init__(
        self,
        operator: Any,
        heads: list[Any],
        algo: SAC,
        num_envs: int,
        rng: Tensor,
    ) -> None:
        super().__init__()
        self.actor, self.critic = Backbone(operator.actor), Backbone(operator.critic)
        self.head = copy.deepcopy(operator.head[0][0].module)
        self.q = nn.ModuleList(copy.deepcopy(head.module) for head in heads)
        self.slow, self.slow_q = copy.deepcopy(self.critic), copy.deepcopy(self.q)
        self.log_alpha = nn.Parameter(torch.tensor(algo.initial_temperature).log())
        self.algo, self.rng = algo, rng
        self.env = WindEnv(num_envs, shaping_radii=(0.001, 10.0))
        self.env.set_seed(0)
        # seeding an environment seeds torch as well
        torch.random.set_rng_state(rng)
        self.replay: list[Batch] = []
        actor = [*self.actor.parameters(), *self.head.parameters()]
        critic = [*self.critic.parameters(), *self.q.parameters()]
        self.groups = [actor, critic]
        groups = [{"params": [*actor, *critic], "lr": algo.learning_rate}]
        groups += [{"params": [self.log_alpha], "lr": algo.temperature_learning_rate}]
        self.optimizer = torch.optim.Adam(groups, fused=True)

    def draw(self, features: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """An action, and its log-probability."""
        loc, scale = self.head(features, embedding)
        noise = torch.randn_like(loc)
        x = loc + scale * noise
        log_prob = -0.5 * noise.square() - scale.log() - 0.5 * log(2 * pi)
        # of tanh, in a form that does not overflow
        log_prob = log_prob - 2 * (log(2) - x - nn.functional.softplus(-2 * x))
        return x.tanh(), log_prob.sum(-1)

    @torch.no_grad()
    def collect(self) -> None:
        """Play an episode in every environment and keep it."""
        state = self.env._start(self.env._draw(self.env.num_envs))
        memories = [
            torch.zeros(self.env.num_envs, *x.cell.memory_shape) for x in (self.critic, self.actor)
        ]
        steps: list[Batch] = []
        for _ in range(self.algo.rollout_length):
            seen = self.env._observe(state)
            x = [seen["observation"], seen["previous_action"]]
            _, _, memories[0], critic_choice = self.critic.step(x, memories[0])
            features, embedding, memories[1], actor_choice = self.actor.step(x, memories[1])
            action, _ = self.draw(features, embedding)
            state, reward, _, _ = self.env._advance(state, action)
            shaping = self.env._observe(state)["shaping"]
            step = {"x": x[0], "previous": x[1], "action": action, "reward": reward + shaping}
            if actor_choice is not None and critic_choice is not None:
                step |= {"actor_choice": actor_choice, "critic_choice": critic_choice}
            steps.append(step)
        batch = {key: torch.stack([step[key] for step in steps], 1) for key in steps[0]}
        last = self.env._observe(state)
        for key, name in (("x", "observation"), ("previous", "previous_action")):
            batch[key] = torch.cat([batch[key], last[name].unsqueeze(1)], 1)
        self.replay += [{key: x[i] for key, x in batch.items()} for i in range(self.env.num_envs)]

    def sample(self) -> Batch:
        """Draw episodes."""
        index = torch.randint(0, len(self.replay), (self.algo.batch_size,))
        rows = [self.replay[i] for i in index.tolist()]
        return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Of the actor, of both critics, and of the temperature."""
        x = [batch["x"], batch["previous"]]
        choices = [self.last_drawn(batch.get(key)) for key in ("actor_choice", "critic_choice")]
        actor = self.actor(x, choices[0])
        critic = self.critic(x, choices[1])
        now, later = slice(None, -1), slice(1, None)
        alpha = self.log_alpha.exp().detach()
        with torch.no_grad():
            slow = self.slow(x, self.last_drawn(batch.get("critic_choice")))
            action, log_prob = self.draw(actor[0][:, later], actor[1][:, later])
            inputs = slow[0][:, later], slow[1][:, later], action
            value = torch.min(*(q(*inputs) for q in self.slow_q)).squeeze(-1) - alpha * log_prob
            target = self.algo.reward_scale * batch["reward"].squeeze(-1) + self.algo.gamma * value
        inputs = critic[0][:, now], critic[1][:, now]
        q_loss = sum(
            (q(*inputs, batch["action"]).squeeze(-1) - target).square().mean() for q in self.q
        )
        action, log_prob = self.draw(actor[0][:, now], actor[1][:, now])
        inputs = inputs[0].detach(), inputs[1].detach(), action
        self.q.requires_grad_(False)
        value = torch.min(*(q(*inputs) for q in self.q)).squeeze(-1)
        self.q.requires_grad_(True)
        entropy_error = (log_prob + self.target_entropy).detach().mean()
        return (alpha * log_prob - value).mean(), q_loss, -self.log_alpha * entropy_error

    @property
    def target_entropy(self) -> float:
        """Minus the number of parts of the action, unless it is set."""
        return -2.0 if self.algo.target_entropy is None else self.algo.target_entropy

    def last_drawn(self, choice: Tensor | None) -> Tensor | None:
        """Choices of the steps, and of the observation on which nothing has acted yet."""
        if choice is None:
            return None
        drawn = torch.randint(0, self.actor.cell.num_choices, choice.shape)
        return torch.cat([choice, drawn[:, -1:]], 1)

    def update(self) -> tuple[float, float]:
        """Collect, and make the gradient steps of a batch; mean losses of actor and critics."""
        other = torch.random.get_rng_state()
        torch.random.set_rng_state(self.rng)
        self.collect()
        algo, losses = self.algo, list[Tensor]()
        frames = self.env.num_envs * algo.rollout_length
        for _ in range(max(1, round(algo.updates_per_step * frames))):
            terms = self.losses(self.sample())
            self.optimizer.zero_grad()
            sum(terms, torch.zeros(())).backward()
            for group in self.groups:
                nn.utils.clip_grad_norm_(group, algo.max_grad_norm)
            self.optimizer.step()
            with torch.no_grad():
                pairs = ((self.slow, self.critic), (self.slow_q, self.q))
                for slow, fast in pairs:
                    for a, b in zip(slow.parameters(), fast.parameters(), strict=True):
                        a.lerp_(b, algo.tau)
            losses.append(torch.stack(terms[:2]).detach())
        self.rng = torch.random.get_rng_state()
        torch.random.set_rng_state(other)
        actor, critic = torch.stack(losses).mean(0).tolist()
        return actor, critic


def compare(
    memory: str, experiment: Experiment, algo: SAC
) -> tuple[list[tuple[float, float]], float]:
    """Run both sides.

    Returns:
        CPU seconds of each batch and its gradient steps, of the recipe and of the plain loop, and
        the largest difference between their losses.
    """
    made: list[Any] = []

    def network(*args: Any, **options: Any) -> Any:
        sizes: dict[str, Any] = {"encoder": "fourier", "hidden_sizes": (64, 64)}
        operator = make_soft_actor_critic(*args, **options, **sizes)
        make_heads = operator.make_q_heads

        def make_q_heads() -> list[Any]:
            heads = make_heads()
            made.extend([copy.deepcopy(operator), copy.deepcopy(heads)])
            return heads

        operator.make_q_heads = make_q_heads
        return operator

    env = partial(WindEnv, shaping_radii=(0.001, 10.0))
    return alternate(
        partial(sac_shm.main, env, instantiate(MEMORIES[memory]), network),
        experiment,
        algo,
        lambda rng: PlainSAC(*made, algo, experiment.num_envs, rng),
        ("loss_actor", "loss_qvalue"),
        compared=1,
    )


def main() -> None:
    """Parse the arguments, compare, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--memories", default="shm,gru")
    parser.add_argument("--num-envs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--updates-per-step", type=float, default=0.01)
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--wait", type=float, default=120, help="seconds to wait for idle CPUs")
    arguments = parser.parse_args()
    if arguments.batches < 2:
        parser.error(f"--batches={arguments.batches}: the first one warms up; take 2 or more")
    algo = SAC(
        batch_size=arguments.batch_size, updates_per_step=arguments.updates_per_step,
        random_frames=0, gamma=0.9, tau=0.01,
    )  # fmt: skip
    frames = arguments.num_envs * algo.rollout_length
    experiment = Experiment(
        num_envs=arguments.num_envs, total_frames=frames * arguments.batches, num_test_episodes=1,
        checkpoint_interval=1000,
    )  # fmt: skip
    used = wait_until_idle(arguments.wait)
    print(f"torch {torch.__version__}, one thread, others used {used:.0%}")
    header = ["memory", "recipe, frames/s", "gradient steps/s", "plain loop, frames/s"]
    header += ["gradient steps/s", "ratio", "losses differ by"]
    steps = max(1, round(algo.updates_per_step * frames))
    rows: list[list[str]] = []
    for memory in arguments.memories.split(","):
        seconds, difference = compare(memory, experiment, algo)
        if not difference < TOLERANCE:
            raise SystemExit(f"{memory}: the losses differ by {difference:.1e}")
        ours, plain = (median(side) for side in zip(*seconds, strict=True))
        ratio = median(theirs / mine for mine, theirs in seconds)
        rates = [number(count / side) for side in (ours, plain) for count in (frames, steps)]
        rows.append([memory, *rates, f"{ratio:.2f}", f"{difference:.0e}"])
    print(table(header, rows))


if __name__ == "__main__":
    main()
