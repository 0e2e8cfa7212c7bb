"""Time the recipe against a plain torch loop that does the same.

python -m tests.benchmarks.training
python -m tests.benchmarks.training --memories shm,gru --num-envs 256 --rollout-length 100
python -m tests.benchmarks.training --compile all
python -m tests.benchmarks.training --memories lstm --peers

`recipes/ppo_shm.py` runs as it is. After each of its updates the plain loop makes one: the same
environment, networks and minibatches on tensors, without TensorDicts, collectors, loss modules or
run folders. That both make the same losses is checked before any time is printed. Times are CPU
seconds; a ratio above 1 says that the recipe is the faster one.
"""

from __future__ import annotations

import argparse
import copy
from functools import partial
from statistics import median
from typing import Any

import torch
from hydra_zen import instantiate
from torch import Tensor, nn
from torch.distributions import Categorical

from recipes import ppo_shm
from tests.benchmarks._alternating import alternate
from tests.benchmarks._measure import number, table, wait_until_idle
from tests.benchmarks._peers import sb3_frames_per_second
from torchrl_shm.configs import MEMORIES, PPO
from torchrl_shm.envs.popgym import RepeatPreviousEnv
from torchrl_shm.modules import GRU, LSTM
from torchrl_shm.modules._resets import cut_at_resets
from torchrl_shm.networks import Encoder, Head, make_actor_critic
from torchrl_shm.training import Experiment

# of the losses of the two sides: rounding, which grows with every update
TOLERANCE = 1e-3


class PlainRNN(nn.Module):
    """`torch.nn.GRU` or `LSTM` of one layer with resets, by the interface of our cells.

    Args:
        network: parameters of either, under torch's names.
    """

    def __init__(self, network: nn.RNNBase) -> None:
        super().__init__()
        kind = getattr(nn, network.mode)
        self.rnn = kind(network.input_size, network.hidden_size, batch_first=True)
        self.rnn.load_state_dict(network.state_dict())
        self.memory_shape = (1 + isinstance(self.rnn, nn.LSTM), network.hidden_size)
        self.num_choices = None

    def step(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor, None]:
        """One step `[B, D]`."""
        (weights,) = self.rnn.all_weights
        if isinstance(self.rnn, nn.LSTM):
            h, c = torch.lstm_cell(x, memory.unbind(1), *weights)
            return h, torch.stack([h, c], 1), None
        h = torch.gru_cell(x, memory[:, 0], *weights)
        return h, h.unsqueeze(1), None

    def forward(
        self, x: Tensor, memory: Tensor, is_init: Tensor, choice: None
    ) -> tuple[Tensor, None, None]:
        """Sequences `[B, T, D]`, cut where episodes start and padded to the longest part.

        On a CPU that is faster than a `PackedSequence`, whose backward is quadratic in `T`.
        """
        first, part, step = cut_at_resets(is_init)
        padded = x.new_zeros(len(first), int(step.max()) + 1, x.shape[-1])
        padded = padded.index_put((part, step), x.flatten(0, 1))
        length = x.shape[1]
        starts = (first % length == 0) & ~is_init[first // length, 0]
        state = memory.new_zeros(len(first), *self.memory_shape)
        state = torch.where(starts.view(-1, 1, 1), memory[first // length], state)
        states = state.transpose(0, 1).split(1)
        y, _ = self.rnn(padded, states if len(states) > 1 else states[0])
        return y[part, step].unflatten(0, x.shape[:2]), None, None


class PlainPPO(nn.Module):
    """Proximal policy optimization on tensors, as one writes it without a library.

    Args:
        operator: of `make_actor_critic`, whose networks are copied.
        algo: hyperparameters.
        num_envs: environments B.
        rng: state of torch's generator with which collection starts.
    """

    def __init__(self, operator: nn.Module, algo: PPO, num_envs: int, rng: Tensor) -> None:
        super().__init__()
        parts = list(copy.deepcopy(operator).modules())
        self.encoder = next(x for x in parts if isinstance(x, Encoder))
        self.actor, self.critic = (x for x in parts if isinstance(x, Head))
        cell: Any = next(x.cell for x in parts if hasattr(x, "cell"))
        rnn = isinstance(cell, (GRU, LSTM))
        self.cell = PlainRNN(cell.rnn) if rnn else cell
        self.algo = algo
        self.rng = rng
        self.env = RepeatPreviousEnv(num_envs)
        self.env.set_seed(0)
        torch.random.set_rng_state(rng)
        self.state = self.env._start(self.env._draw(num_envs))
        self.memory = torch.zeros(num_envs, *self.cell.memory_shape)
        self.first = torch.ones(num_envs, dtype=torch.bool)
        # of the returns, in whose spread rewards are measured
        self.moments, self.updates = torch.zeros(2), 0
        # the recipe's
        self.optimizer = torch.optim.Adam(
            self.parameters(), lr=algo.learning_rate, eps=1e-5, fused=True
        )

    def heads(self, features: Tensor, embedding: Tensor) -> tuple[Categorical, Tensor]:
        """Distribution of the action and value."""
        policy = Categorical(logits=self.actor(features, embedding), validate_args=False)
        return policy, self.critic(features, embedding).squeeze(-1)

    @torch.no_grad()
    def collect(self) -> dict[str, Tensor]:
        """Play `rollout_length` steps; entries `[B, T, ...]` and the memory that entered."""
        steps: list[dict[str, Tensor]] = []
        start = self.memory
        for _ in range(self.algo.rollout_length):
            x = self.state["observation"]
            embedding = self.encoder(x)
            memory = torch.where(
                self.first.view(-1, *(1,) * (self.memory.ndim - 1)), 0, self.memory
            )
            features, self.memory, choice = self.cell.step(embedding, memory)
            policy = Categorical(logits=self.actor(features, embedding), validate_args=False)
            action = policy.sample()
            step = {"x": x, "first": self.first, "action": action}
            step["log_prob"] = policy.log_prob(action)
            if choice is not None:
                step["choice"] = choice
            self.state, reward, done, _ = self.env._advance(self.state, action)
            assert done is not None
            self.first = done.squeeze(-1)
            steps.append({**step, "reward": reward.squeeze(-1), "done": self.first})
            rows = self.first.nonzero().squeeze(1)
            if len(rows):
                new = self.env._start(self.env._draw(len(rows)))
                old = self.state
                self.state = {key: old[key].index_copy(0, rows, x) for key, x in new.items()}
        batch = {key: torch.stack([step[key] for step in steps], 1) for key in steps[0]}
        return {**batch, "start": start, "last": self.state["observation"]}

    @torch.no_grad()
    def add_advantages(self, batch: dict[str, Tensor]) -> None:
        """Generalized advantage estimation, with values of one pass over `T + 1` steps."""
        x = torch.cat([batch["x"], batch["last"].unsqueeze(1)], 1)
        first = torch.cat([batch["first"], batch["done"][:, -1:]], 1)
        choice = batch.get("choice")
        if choice is not None:
            choice = torch.cat([choice, choice[:, -1:]], 1)
        embedding = self.encoder(x)
        features, _, _ = self.cell(embedding, batch["start"], first, choice)
        value = self.critic(features, embedding).squeeze(-1)
        goes_on = (~batch["done"]).float()
        gamma, lmbda = self.algo.gamma, self.algo.lmbda
        reward = self.scaled(batch["reward"], gamma * goes_on)
        delta = reward + gamma * goes_on * value[:, 1:] - value[:, :-1]
        advantage, decay = torch.zeros(len(x)), gamma * lmbda * goes_on
        steps: list[Tensor] = []
        for t in reversed(range(delta.shape[1])):
            advantage = delta[:, t] + decay[:, t] * advantage
            steps.append(advantage)
        batch["advantage"] = torch.stack(steps[::-1], 1)
        batch["target"] = batch["advantage"] + value[:, :-1]
        batch["advantage"] -= batch["advantage"].mean()
        batch["advantage"] /= batch["advantage"].std().clamp_min(1e-4)

    def scaled(self, reward: Tensor, decay: Tensor) -> Tensor:
        """Rewards over the spread of the returns, by moving averages of two moments."""
        later, steps = torch.zeros(len(reward)), []
        for t in reversed(range(reward.shape[1])):
            later = reward[:, t] + decay[:, t] * later
            steps.append(later)
        returns = torch.stack(steps)
        moments = torch.stack([returns.mean(), returns.square().mean()])
        self.moments = 0.9 * self.moments + 0.1 * moments
        self.updates += 1
        mean, square = self.moments / (1 - 0.9**self.updates)
        spread = (square - mean.square()).clamp_min(1e-5).sqrt()
        return reward / torch.maximum(spread, reward.abs().max() / 10)

    def loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Policy loss, value loss and entropy of a minibatch."""
        embedding = self.encoder(batch["x"])
        memory = self.cell(embedding, batch["start"], batch["first"], batch.get("choice"))
        policy, value = self.heads(memory[0], embedding)
        ratio = (policy.log_prob(batch["action"]) - batch["log_prob"]).exp()
        clipped = ratio.clamp(1 - self.algo.clip_epsilon, 1 + self.algo.clip_epsilon)
        gain = torch.min(ratio * batch["advantage"], clipped * batch["advantage"])
        return -gain.mean(), (value - batch["target"]).square().mean(), policy.entropy().mean()

    def update(self) -> tuple[float, float]:
        """One update; returns the mean policy and value loss of its minibatches."""
        other = torch.random.get_rng_state()
        torch.random.set_rng_state(self.rng)
        batch = self.collect()
        self.add_advantages(batch)
        losses: list[Tensor] = []
        for _ in range(self.algo.epochs):
            order = torch.randperm(len(batch["x"]))
            for index in order.split(self.algo.sequences_per_minibatch):
                policy, value, entropy = self.loss({key: x[index] for key, x in batch.items()})
                total = policy + self.algo.critic_coeff * value - self.algo.entropy_coeff * entropy
                self.optimizer.zero_grad()
                total.backward()
                nn.utils.clip_grad_norm_(self.parameters(), self.algo.max_grad_norm)
                self.optimizer.step()
                losses.append(torch.stack([policy, value]).detach())
        self.rng = torch.random.get_rng_state()
        torch.random.set_rng_state(other)
        policy, value = torch.stack(losses).mean(0).tolist()
        return policy, self.algo.critic_coeff * value


def compare(
    memory: str, experiment: Experiment, algo: PPO
) -> tuple[list[tuple[float, float]], float]:
    """Run both sides.

    Returns:
        CPU seconds of each update of the recipe and of the plain loop, and the largest difference
        between their losses.
    """
    copies: list[Any] = []

    def network(*args: Any, **options: Any) -> Any:
        operator = make_actor_critic(*args, **options)
        copies.append(copy.deepcopy(operator))
        return operator

    return alternate(
        partial(ppo_shm.main, RepeatPreviousEnv, instantiate(MEMORIES[memory]), network),
        experiment,
        algo,
        lambda rng: PlainPPO(copies[0], algo, experiment.num_envs, rng),
        ("loss_objective", "loss_critic"),
        compared=2,
    )


def main() -> None:
    """Parse the arguments, compare, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--memories", default="shm,gru,lru,lstm")
    parser.add_argument("--num-envs", type=int, default=64)
    parser.add_argument("--rollout-length", type=int, default=128)
    parser.add_argument("--minibatches", type=int, default=8)
    parser.add_argument("--updates", type=int, default=12)
    parser.add_argument("--compile", default="none", help="experiment.compile of the recipe")
    parser.add_argument("--wait", type=float, default=120, help="seconds to wait for idle CPUs")
    parser.add_argument(
        "--peers", action="store_true", help="time sb3-contrib's recurrent PPO beside each memory"
    )
    arguments = parser.parse_args()
    frames = arguments.num_envs * arguments.rollout_length
    algo = PPO(
        rollout_length=arguments.rollout_length,
        sequences_per_minibatch=arguments.num_envs // arguments.minibatches,
        learning_rate=1e-3, anneal_lr=False, gamma=0.99, entropy_coeff=0.01,
    )  # fmt: skip
    experiment = Experiment(
        num_envs=arguments.num_envs, total_frames=frames * arguments.updates, num_test_episodes=1,
        checkpoint_interval=1000, compile=arguments.compile,
    )  # fmt: skip
    used = wait_until_idle(arguments.wait)
    print(f"torch {torch.__version__}, one thread, others used {used:.0%}")
    header = ["memory", "recipe, frames/s", "plain loop", "ratio", "losses differ by"]
    header += ["sb3-contrib (LSTM)", "ratio"] if arguments.peers else []
    sizes = (arguments.num_envs, arguments.rollout_length)
    rows: list[list[str]] = []
    for memory in arguments.memories.split(","):
        seconds, difference = compare(memory, experiment, algo)
        if not difference < TOLERANCE:
            raise SystemExit(f"{memory}: the losses differ by {difference:.1e}")
        ours, plain = (frames / median(side) for side in zip(*seconds, strict=True))
        ratio = median(theirs / mine for mine, theirs in seconds)
        row = [memory, number(ours), number(plain), f"{ratio:.2f}", f"{difference:.0e}"]
        if arguments.peers:
            peer = sb3_frames_per_second(
                *sizes, epochs=algo.epochs, minibatches=arguments.minibatches, shared=True
            )
            row += [number(peer), f"{ours / peer:.2f}"]
        rows.append(row)
    print(table(header, rows))


if __name__ == "__main__":
    main()
