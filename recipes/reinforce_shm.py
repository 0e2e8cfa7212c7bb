"""REINFORCE with a memory: what was followed by much is made more likely.

python recipes/reinforce_shm.py env=memory_length
python recipes/reinforce_shm.py env=memory_length memory=gru algo.baseline=false
python recipes/reinforce_shm.py experiment.resume=outputs/reinforce_shm/<date>/<time>_shm_seed0
python recipes/reinforce_shm.py --help
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from omegaconf import DictConfig
from torch.nn.utils import clip_grad_norm_
from torchrl.envs import EnvBase
from torchrl.modules import PopArtValueNorm, set_recurrent_mode
from torchrl.objectives import ReinforceLoss
from torchrl.objectives.value.functional import reward2go
from torchrl.record.loggers import Logger

from torchrl_shm.configs import Reinforce, run_recipe
from torchrl_shm.networks import MemoryFactory, get_behavior
from torchrl_shm.training import (
    Compiler,
    Experiment,
    RolloutCollector,
    TrainingRun,
    make_test_env,
)

LOGGED = ("loss_actor", "loss_value")


def main(
    env: Callable[..., EnvBase],
    memory: MemoryFactory,
    network: Callable[..., Any],
    experiment: Experiment,
    algo: Reinforce,
    collector: Callable[..., RolloutCollector],
    logger: Callable[..., Logger | None] | None = None,
    zen_cfg: DictConfig | None = None,
) -> dict[str, Any]:
    """Train, evaluate on the test tasks, and return the summary."""
    with TrainingRun.open("reinforce_shm", experiment, env, memory, logger, zen_cfg) as run:
        if run.summary is not None:
            return run.summary

        # build: embedding -> memory -> action head, and the head of the baseline
        device = experiment.device
        test_env = make_test_env(
            env,
            num_episodes=experiment.num_test_episodes,
            max_steps=experiment.max_test_steps,
            device=device,
        )
        operator = network(test_env, memory, device=device)
        policy, baseline = operator.get_policy_operator(), operator.get_value_operator()
        compiler = Compiler(experiment.compile, device)
        rollouts = collector(
            env,
            compiler.policy(get_behavior(operator)),
            num_envs=experiment.num_envs,
            rollout_length=algo.rollout_length,
            total_frames=experiment.total_frames,
            seed=experiment.seed,
            device=device,
        )
        loss = ReinforceLoss(
            policy,
            # where the memory is shared the policy has run it; its features feed the value head
            operator.get_value_head(),
            loss_critic_type="l2",
            functional=False,
        )
        return_norm = PopArtValueNorm(beta=0.9, device=device)
        update = compiler.update(loss)
        parameters = list(loss.parameters())
        optimizer = torch.optim.Adam(parameters, lr=algo.learning_rate, eps=1e-5, fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda update: 1 - update / rollouts.num_batches if algo.anneal_lr else 1.0
        )
        run.track(
            operator=operator,
            optimizer=optimizer,
            schedule=schedule,
            return_norm=return_norm,
            collector=rollouts,
        )

        for batch in run.batches(rollouts):
            # reward: the task's own, and while training the environment's help to explore
            reward, done = batch["next", "reward"], batch["next", "done"]
            if ("next", "shaping") in batch.keys(True):
                reward = reward + algo.shaping * batch["next", "shaping"]

            # return: the discounted sum of all that follows in the episode. Steps whose episode
            # goes on beyond the batch do not have theirs yet, and are left out
            returns = reward2go(reward, done, algo.gamma)
            ended = (done.flip(1).cumsum(1).flip(1) > 0).squeeze(-1)
            batch["collector", "mask"] = ended
            # in units of how much returns differ, so that one critic_coeff and one bound on the
            # gradient serve all tasks; a first success among zeros counts ten at most
            if bool(ended.any()):
                return_norm.update(returns[ended])
            returns = returns / torch.maximum(return_norm.scale(), returns.abs().max() / 10)
            batch["value_target"] = batch["advantage"] = returns
            if algo.baseline:
                with torch.no_grad(), set_recurrent_mode(True):
                    batch["advantage"] = returns - baseline(batch.copy())["state_value"]

            # update: one step, for what comes after it is another policy; the loss replays the
            # memory with the gates that acted, from the memory with which the sequence started
            term = update(batch)
            total = term["loss_actor"]
            if algo.baseline:
                total = total + algo.critic_coeff * term["loss_value"]
            if algo.entropy_coeff:
                entropy = policy.build_dist_from_params(batch).entropy()
                total = total - algo.entropy_coeff * entropy[ended].mean()
            optimizer.zero_grad()
            total.backward()
            norm = clip_grad_norm_(parameters, algo.max_grad_norm)
            if run.check.gradient(norm, loss):
                optimizer.step()
            rate = schedule.get_last_lr()[0]
            schedule.step()
            rollouts.update_policy()
            run.log(
                {
                    "learning_rate": rate,
                    "ended": float(ended.double().mean()),
                    "grad_norm": float(norm),
                }
                | {key: float(term[key].detach()) for key in LOGGED}
            )

        # evaluate: every test task once, with the mean action and the task's own reward
        return run.finish(policy, test_env)


if __name__ == "__main__":
    run_recipe(main, name="reinforce_shm", algo="reinforce")
