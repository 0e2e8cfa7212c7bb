"""Group relative policy optimization with a memory: no critic, episodes are compared.

python recipes/grpo_shm.py env=wind
python recipes/grpo_shm.py env=t_maze_passive memory=gru algo.group_size=8
python recipes/grpo_shm.py experiment.resume=outputs/grpo_shm/<date>/<time>_shm_seed0
python recipes/grpo_shm.py --help
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torchrl.envs import EnvBase
from torchrl.objectives.value.functional import reward2go
from torchrl.record.loggers import Logger

from torchrl_shm.configs import GRPO, run_recipe
from torchrl_shm.networks import MemoryFactory, get_behavior
from torchrl_shm.training import (
    Compiler,
    Experiment,
    LeanClipPPOLoss,
    RolloutCollector,
    TrainingRun,
    check_ratio,
    make_test_env,
)

LOGGED = ("loss_objective", "entropy", "kl_approx", "clip_fraction")


def main(
    env: Callable[..., EnvBase],
    memory: MemoryFactory,
    network: Callable[..., Any],
    experiment: Experiment,
    algo: GRPO,
    collector: Callable[..., RolloutCollector],
    logger: Callable[..., Logger | None] | None = None,
    zen_cfg: DictConfig | None = None,
) -> dict[str, Any]:
    """Train, evaluate on the test tasks, and return the summary."""
    algo.check_batch(experiment.num_envs, experiment.on_nonfinite)
    with TrainingRun.open("grpo_shm", experiment, env, memory, logger, zen_cfg) as run:
        if run.summary is not None:
            return run.summary

        # build: embedding -> memory -> action head; nothing learns the values
        device = experiment.device
        test_env = make_test_env(
            env,
            num_episodes=experiment.num_test_episodes,
            max_steps=experiment.max_test_steps,
            device=device,
        )
        operator = network(test_env, memory, device=device)
        policy = operator.get_policy_operator()
        compiler = Compiler(experiment.compile, device)
        rollouts = collector(
            env,
            compiler.policy(get_behavior(operator)),
            num_envs=experiment.num_envs,
            rollout_length=algo.rollout_length,
            total_frames=experiment.total_frames,
            seed=experiment.seed,
            device=device,
            # rows of a group play the same layout, all from its start
            group_size=algo.group_size,
            reset_each_batch=True,
        )
        loss = LeanClipPPOLoss(
            policy,
            clip_epsilon=algo.clip_epsilon,
            entropy_coeff=algo.entropy_coeff,
            kl_coeff=algo.kl_coeff,
        )
        update = compiler.update(loss)
        parameters = list(loss.parameters())
        optimizer = torch.optim.Adam(parameters, lr=algo.learning_rate, eps=1e-5, fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda update: 1 - update / rollouts.num_batches if algo.anneal_lr else 1.0
        )
        run.track(operator=operator, optimizer=optimizer, schedule=schedule, collector=rollouts)

        for batch in run.batches(rollouts):
            # reward: the task's own, and while training the environment's help to explore
            reward = batch["next", "reward"]
            if ("next", "shaping") in batch.keys(True):
                reward = reward + algo.shaping * batch["next", "shaping"]

            # return: the first episode of each row counts, up to its end. All of its steps are as
            # good as the whole, or each as what follows it
            done = batch["next", "done"]
            counts = done.cumsum(1) - done.long() == 0
            batch["collector", "mask"] = counts.squeeze(-1)
            returns = reward2go(reward * counts, done, algo.gamma)
            if algo.credit == "episode":
                returns = returns[:, :1].expand_as(returns)

            # advantage: how much better than the group at the same step
            groups = returns.unflatten(0, (-1, algo.group_size))
            better = groups - groups.mean(1, keepdim=True)
            spread = better.square().mean((1, 2), keepdim=True).sqrt()
            batch["advantage"] = (better / (spread + algo.spread_eps)).flatten(0, 1)

            # update: minibatches of whole sequences; the loss replays the memory with the gates
            # that acted, and leaves out what does not count
            batch = batch.select(*loss.in_keys, ("collector", "mask"), strict=False)
            terms: list[Tensor] = []
            for _ in range(algo.epochs):
                order = torch.randperm(len(batch), device=batch.device)
                for minibatch in batch[order].split(algo.sequences_per_minibatch):
                    term = update(minibatch)
                    optimizer.zero_grad()
                    sum(x for key, x in term.items() if key.startswith("loss_")).backward()
                    norm = clip_grad_norm_(parameters, algo.max_grad_norm)
                    if not run.check.gradient(norm, loss):
                        continue
                    if not terms:
                        ratio = check_ratio(term)
                    optimizer.step()
                    terms.append(torch.stack([*(term[key].detach() for key in LOGGED), norm]))
            if not terms:
                raise FloatingPointError(f"no minibatch of update {run.updates} was finite")
            rate = schedule.get_last_lr()[0]
            schedule.step()
            rollouts.update_policy()
            means = torch.stack(terms, -1).mean(-1).tolist()
            logged = zip((*LOGGED, "grad_norm"), means, strict=True)
            run.log(
                {
                    "max_ratio": ratio,
                    "learning_rate": rate,
                    "compared": float(returns[:, 0].mean()),
                    "spread": float(spread.mean()),
                    # groups whose episodes were all as good teach nothing
                    "mixed_groups": float((spread > 1e-6).double().mean()),
                }
                | dict(logged)
            )

        # evaluate: every test task once, with the mean action and the task's own reward
        return run.finish(policy, test_env)


if __name__ == "__main__":
    run_recipe(main, name="grpo_shm", algo="grpo")
