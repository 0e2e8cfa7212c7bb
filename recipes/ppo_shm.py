# explained block by block in docs/tutorials/first_agent.md
"""Proximal policy optimisation with a memory, read from top to bottom.

python recipes/ppo_shm.py env=wind
python recipes/ppo_shm.py env=wind_hard memory=gru seed=1 algo.total_frames=500_000
python recipes/ppo_shm.py -m memory=shm,gru seed=0,1
python recipes/ppo_shm.py resume=outputs/ppo_shm/<date>/<time>_shm_seed0
python recipes/ppo_shm.py --help
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from tensordict import TensorDict, TensorDictBase
from torch.nn.utils import clip_grad_norm_
from torchrl.envs import EnvBase
from torchrl.modules import set_recurrent_mode
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE
from torchrl.record.loggers import Logger
from tqdm import tqdm

from torchrl_shm.configs import PPO, run_recipe, save_config
from torchrl_shm.figures import plot_learning_curve
from torchrl_shm.networks import MemoryFactory, get_behaviour, make_actor_critic
from torchrl_shm.training import (
    FiniteCheck,
    RolloutCollector,
    RunFolder,
    RunGuard,
    evaluate,
    make_test_env,
)

# entries that the loss computes again
COMPUTED = ("embedding", "features", "critic_embedding", "critic_features", "loc", "scale")
# how far from 1 the probability ratio of a batch's first minibatch may be: nothing was learned
# from the batch yet, so more than rounding means that recurrent mode lost the memory or the gates
RATIO_TOLERANCE = 1e-2


def main(
    env: Callable[..., EnvBase],
    memory: MemoryFactory,
    algo: PPO,
    collector: Callable[..., RolloutCollector],
    logger: Callable[..., Logger | None],
    seed: int,
    device: str,
    threads: int,
    names: dict[str, str],
    run_dir: str,
    resume: str | None,
    zen_cfg: DictConfig,
) -> dict[str, Any]:
    """Train, evaluate on the test tasks, and return the summary."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    # environments of other packages may draw from these
    random.seed(seed)
    np.random.seed(seed)
    run = RunFolder.create(
        run_dir, resume=resume is not None, keep_checkpoints=algo.keep_checkpoints
    )
    if (summary := run.summary) is not None:
        print(json.dumps(summary), flush=True)
        return summary
    save_config(zen_cfg, run_dir)
    extra_logger = logger(run_dir=run_dir)

    # build: embedding -> memory -> action head and value head; with algo.shared_memory=false the
    # critic has an embedding and a memory of its own
    test_env = make_test_env(env, num_episodes=algo.num_test_episodes, device=device)
    operator = make_actor_critic(
        test_env,
        memory,
        **algo.network(),
        device=device,
    )
    policy, behaviour = operator.get_policy_operator(), get_behaviour(operator)
    rows = collector(
        env,
        behaviour,
        num_envs=algo.num_envs,
        rollout_length=algo.rollout_length,
        total_frames=algo.total_frames,
        seed=seed,
        device=device,
    )
    advantage = GAE(
        gamma=algo.gamma,
        lmbda=algo.lmbda,
        value_network=operator.get_value_operator(),
        # advantages are normalised over the whole batch, not per minibatch of few rows
        average_gae=True,
        shifted=True,
    )
    loss = ClipPPOLoss(
        policy,
        # where the memory is shared the policy has run it; its features feed the value head
        operator.get_value_head(),
        clip_epsilon=algo.clip_epsilon,
        entropy_coeff=algo.entropy_coeff,
        critic_coeff=algo.critic_coeff,
        loss_critic_type="l2",
    )
    optimizer = torch.optim.Adam(loss.parameters(), lr=algo.learning_rate, eps=1e-5)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda update: 1 - update / rows.num_batches if algo.anneal_lr else 1.0
    )
    check = FiniteCheck(behaviour, loss, algo.on_nonfinite)

    # all that it takes to go on is saved now and then, and when a signal or an error ends the run
    parts = {"operator": operator, "optimizer": optimizer, "schedule": schedule, "rows": rows}
    guard = RunGuard(run, parts, interval=algo.checkpoint_interval)
    if resume is not None:
        # where nothing was saved yet it starts again, at frame 0
        guard.restore()
        print(f"resumed at frame {guard.frames}", file=sys.stderr, flush=True)
    last = time.perf_counter()
    start = last - guard.seconds
    # no bar where nobody looks at it
    bar = tqdm(
        total=rows.num_batches * rows.frames_per_batch,
        initial=guard.frames,
        unit="frame",
        disable=None,
    )
    with closing(rows), bar, guard:
        for batch in rows:
            check.update = guard.updates
            frames = guard.frames + batch.numel()
            row: dict[str, float] = {"update": guard.updates, "frames": frames}
            row |= episode_statistics(batch)

            # reward: the task's own, and while training the environment's help to explore (presets
            # may also change the training tasks, as Wind's does with `mirror`; tests never)
            batch = check.rows(batch.exclude(*COMPUTED))
            if ("next", "shaping") in batch.keys(True):
                reward = batch["next", "reward"] + algo.shaping * batch["next", "shaping"]
                batch["next", "reward"] = reward

            # advantage: one pass of the memory over each row, which also gives the value of the
            # observation after each truncation; those are inserted, hence the budget
            truncated = batch["next", "done"] & ~batch["next", "terminated"]
            advantage.shifted_budget = 1 + int(truncated.sum(-2).max())
            with torch.no_grad(), set_recurrent_mode(True):
                batch = advantage(batch)

            # update: minibatches of whole rows; the loss replays the memory with the gates that
            # acted, from the memory with which the row started
            terms: list[TensorDictBase] = []
            for _ in range(algo.epochs):
                order = torch.randperm(len(batch), device=batch.device)
                for index in order.split(algo.sequences_per_minibatch):
                    term = loss(batch[index])
                    total = sum(term[key] for key in term.keys() if key.startswith("loss_"))
                    if not check.loss_is_finite(total, batch[index]):
                        continue
                    if not terms:
                        row["max_ratio"] = check_ratio(term)
                    optimizer.zero_grad()
                    total.backward()
                    norm = clip_grad_norm_(loss.parameters(), algo.max_grad_norm)
                    if check.gradient_is_finite(norm):
                        optimizer.step()
                        terms.append(term.detach().set("grad_norm", norm))
            if not terms:
                raise FloatingPointError(f"no minibatch of update {guard.updates} was finite")
            row["learning_rate"] = schedule.get_last_lr()[0]
            schedule.step()
            rows.update_policy()

            # report
            stacked = TensorDict.maybe_dense_stack(terms)
            for key in ("loss_objective", "loss_critic", "kl_approx", "clip_fraction", "grad_norm"):
                row[key] = float(stacked[key].mean())
            now = time.perf_counter()
            row["seconds"] = now - start
            row["frames_per_second"] = rows.frames_per_batch / (now - last)
            last = now
            guard.end_update(row)
            if extra_logger is not None:
                for key, value in row.items():
                    extra_logger.log_scalar(key, value, step=frames)
            bar.set_postfix({key: f"{row[key]:.2f}" for key in ("return", "success") if key in row})
            bar.update(rows.frames_per_batch)
        # all of it is safe before the last part begins
        guard.save()

        label = f"{names['env']}, {names['memory']}, seed {seed}"
        plot_learning_curve(run.metrics, run.path / "learning_curve.png", title=label)

        # evaluate: every test task once, with the mean action and the task's own reward
        result = evaluate(policy, test_env)
        summary = {
            "env": names["env"],
            "memory": names["memory"],
            "seed": seed,
            "frames": guard.frames,
            "seconds": round(time.perf_counter() - start, 1),
            "eval_return": round(result.mean_return, 4),
            "eval_success": result.success_rate,
        }
        run.write_summary(summary)
    print(json.dumps(summary), flush=True)
    return summary


def episode_statistics(batch: TensorDictBase) -> dict[str, float]:
    """Return and success of the episodes that ended in a batch; NaN if none did."""
    ended = batch["next"][batch["next", "done"].squeeze(-1)]
    row = {"return": float(ended["episode_reward"].mean())}
    if "success" in ended.keys():
        row["success"] = float(ended["success"].double().mean())
    return row


def check_ratio(term: TensorDictBase) -> float:
    """Stop if the policy of the loss is not the policy that acted."""
    ratio, mean = float(term["max_ratio"]), float(term["mean_ratio"])
    if not max(abs(ratio - 1), abs(mean - 1)) <= RATIO_TOLERANCE:
        raise RuntimeError(
            f"the probability ratio of a first minibatch is {ratio} at most and {mean} on average, "
            "not 1: recurrent mode does not repeat what acted. memory.state=zero forgets rows that "
            "start in mid-episode; for a memory of your own run torchrl_shm.check_memory"
        )
    return ratio


if __name__ == "__main__":
    run_recipe(main, name="ppo_shm", algo="ppo")
