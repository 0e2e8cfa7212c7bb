"""Time the training part of `recipes/ppo_shm.py` on Wind with each backend of the scan.

python -m tests.benchmarks.recipe
python -m tests.benchmarks.recipe --backends reference,chunked --threads 2

One batch is collected; then its advantages and all epochs of updates are timed, with the recipe's
default sizes and from the same parameters. The losses of every backend are compared first.
"""

from __future__ import annotations

import argparse
import copy
import time
from functools import partial
from statistics import median

import torch
from tensordict import TensorDictBase
from torch.nn.utils import clip_grad_norm_
from torchrl.modules import ActorValueOperator, set_recurrent_mode
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

from tests.benchmarks._measure import table, wait_until_idle
from torchrl_shm import SHMModule, WindEnv
from torchrl_shm.configs import PPO
from torchrl_shm.networks import get_behavior, make_actor_critic
from torchrl_shm.training import Experiment, RolloutCollector


def build(algo: PPO) -> tuple[ActorValueOperator, TensorDictBase]:
    """A fresh network, and a batch that it collected."""
    torch.manual_seed(0)
    operator = make_actor_critic(WindEnv(), SHMModule)
    rows = RolloutCollector(
        partial(WindEnv, shaping_radii=(0.001, 10.0), mirror=True),
        get_behavior(operator),
        num_envs=Experiment.num_envs,
        rollout_length=algo.rollout_length,
        total_frames=1,
    )
    batch = next(iter(rows))
    rows.close()
    return operator, batch


def train(operator: ActorValueOperator, batch: TensorDictBase, algo: PPO) -> list[float]:
    """What the recipe does with a batch; returns the loss of every minibatch."""
    advantage = GAE(
        gamma=algo.gamma, lmbda=algo.lmbda, value_network=operator.get_value_operator(),
        average_gae=True, shifted=True,
    )  # fmt: skip
    advantage.shifted_budget = 2
    loss = ClipPPOLoss(
        operator.get_policy_operator(), operator.get_value_head(), loss_critic_type="l2"
    )
    optimizer = torch.optim.Adam(loss.parameters(), lr=algo.learning_rate, eps=1e-5)
    torch.manual_seed(0)
    with torch.no_grad(), set_recurrent_mode(True):
        batch = advantage(batch)
    losses: list[float] = []
    for _ in range(algo.epochs):
        for index in torch.randperm(len(batch)).split(algo.sequences_per_minibatch):
            term = loss(batch[index])
            total = term["loss_objective"] + algo.critic_coeff * term["loss_critic"]
            optimizer.zero_grad()
            total.backward()
            clip_grad_norm_(loss.parameters(), algo.max_grad_norm)
            optimizer.step()
            losses.append(float(total.detach()))
    return losses


def main() -> None:
    """Parse the arguments, compare, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backends", default="reference,chunked,numba")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--wait", type=float, default=120, help="seconds to wait for idle CPUs")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    algo = PPO()
    operator, batch = build(algo)
    used = wait_until_idle(arguments.wait)
    print(f"torch {torch.__version__}, {arguments.threads} threads, others used {used:.0%}")

    seconds: dict[str, list[float]] = {}
    losses: dict[str, list[float]] = {}
    # interleaved, so that a disturbance hits every backend
    for _ in range(arguments.repeats):
        for backend in arguments.backends.split(","):
            mine = copy.deepcopy(operator)
            for module in mine.modules():
                if hasattr(module, "backend"):
                    module.backend = backend
            data = batch.clone()
            start = time.perf_counter()
            losses[backend] = train(mine, data, algo)
            seconds.setdefault(backend, []).append(time.perf_counter() - start)

    first, *others = seconds
    rows: list[list[str]] = []
    for backend in (first, *others):
        difference = max(
            abs(a - b) / max(abs(b), 1.0)
            for a, b in zip(losses[backend], losses[first], strict=True)
        )
        if not difference < 1e-3:
            raise SystemExit(f"{backend} learns something else: losses differ by {difference:.1e}")
        ratio = median(seconds[first]) / median(seconds[backend])
        rows.append(
            [backend, f"{median(seconds[backend]):.3f}", f"{ratio:.2f}", f"{difference:.1e}"]
        )
    print(table(["backend", "seconds per batch", "ratio", "largest difference of losses"], rows))


if __name__ == "__main__":
    main()
