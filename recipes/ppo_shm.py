# explained block by block in docs/tutorials/first_agent.md
"""Proximal policy optimization with a memory, read from top to bottom.

python recipes/ppo_shm.py env=wind
python recipes/ppo_shm.py env=wind_hard memory=gru experiment.seed=1 algo.gamma=0.95
python recipes/ppo_shm.py -m memory=shm,gru experiment.seed=0,1
python recipes/ppo_shm.py experiment.resume=outputs/ppo_shm/<date>/<time>_shm_seed0
torchrun --nproc_per_node=2 recipes/ppo_shm.py env=wind
python recipes/ppo_shm.py --help
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torchrl.envs import EnvBase
from torchrl.modules import PopArtValueNorm, set_recurrent_mode
from torchrl.objectives.value import GAE
from torchrl.objectives.value.functional import generalized_advantage_estimate
from torchrl.record.loggers import Logger

from torchrl_shm.configs import PPO, run_recipe
from torchrl_shm.networks import MemoryFactory, get_behavior
from torchrl_shm.training import (
    Compiler,
    Experiment,
    LeanClipPPOLoss,
    RolloutCollector,
    SelfImitation,
    TrainingRun,
    average_buffers,
    average_gradients,
    change_lmbda,
    check_ratio,
    largest,
    make_test_env,
    standardize,
)

LOGGED = ("loss_objective", "loss_critic", "kl_approx", "clip_fraction")


def main(
    env: Callable[..., EnvBase],
    memory: MemoryFactory,
    network: Callable[..., Any],
    experiment: Experiment,
    algo: PPO,
    collector: Callable[..., RolloutCollector],
    logger: Callable[..., Logger | None] | None = None,
    zen_cfg: DictConfig | None = None,
) -> dict[str, Any]:
    """Train, evaluate on the test tasks, and return the summary."""
    algo.check_batch(experiment.num_envs)
    with TrainingRun.open("ppo_shm", experiment, env, memory, logger, zen_cfg) as run:
        if run.summary is not None:
            return run.summary
        # of several processes, each has a part of the environments and of every minibatch
        experiment, algo = run.share_out(algo)

        # build: embedding -> memory -> action head and value head; with network.shared_memory=false
        # the critic has an embedding and a memory of its own
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
        )
        # the critic may learn from what comes later than what the policy learns from
        critic_lmbda = algo.lmbda if algo.critic_lmbda is None else algo.critic_lmbda
        advantage = GAE(
            gamma=algo.gamma,
            lmbda=critic_lmbda,
            value_network=operator.get_value_operator(),
            shifted=True,
        )
        loss = LeanClipPPOLoss(
            policy,
            # where the memory is shared the policy has run it; its features feed the value head
            operator.get_value_head(),
            clip_epsilon=algo.clip_epsilon,
            entropy_coeff=algo.entropy_coeff,
            critic_coeff=algo.critic_coeff,
        )
        value_norm = PopArtValueNorm(beta=0.9, device=device)
        imitation = SelfImitation(
            loss,
            coeff=algo.imitation_coeff,
            sequences_per_minibatch=-(-algo.sequences_per_minibatch // 4),
            trace_decay=algo.gamma * critic_lmbda if algo.imitation_priority == "step" else 0.0,
        )
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
            value_norm=value_norm,
            imitation=imitation,
            collector=rollouts,
        )

        for batch in run.batches(rollouts):
            # reward: the task's own, and while training the environment's help to explore (presets
            # may also change the training tasks, with `mirror`; tests never)
            if ("next", "shaping") in batch.keys(True):
                reward = batch["next", "reward"] + algo.shaping * batch["next", "shaping"]
                batch["next", "reward"] = reward
            # in units of how much returns differ, so that one critic_coeff and one bound on the
            # gradient serve all tasks; a first success among zeros counts ten at most
            reward, done = batch["next", "reward"], batch["next", "done"]
            zero = torch.zeros_like(reward)
            # without values and with lambda=1, advantages are returns
            returns, _ = generalized_advantage_estimate(
                algo.gamma, 1.0, zero, zero, reward, done, done
            )
            value_norm.update(returns)
            average_buffers(value_norm)
            scale = largest(torch.maximum(value_norm.scale(), reward.abs().max() / 10))
            batch["next", "reward"] = reward / scale

            # advantage: one pass of the memory over each sequence, which also gives the value of
            # the observation after each truncation; those are inserted, hence the budget
            truncated = batch["next", "done"] & ~batch["next", "terminated"]
            advantage.shifted_budget = 1 + int(truncated.sum(-2).max())
            with torch.no_grad(), set_recurrent_mode(True):
                batch = advantage(batch)
            batch["advantage"] = change_lmbda(
                batch["advantage"],
                done,
                gamma=algo.gamma,
                lmbda=critic_lmbda,
                new_lmbda=algo.lmbda,
            )
            # over the whole batch, not per minibatch of few sequences
            batch["advantage"] = standardize(batch["advantage"])
            imitation.add(batch, scale)

            # update: minibatches of whole sequences; the loss replays the memory with the gates
            # that acted, from the memory with which the sequence started
            batch = batch.select(*loss.in_keys, strict=False)
            terms: list[Tensor] = []
            for _ in range(algo.epochs):
                order = torch.randperm(len(batch), device=batch.device)
                # shuffled as a whole, of which minibatches are views
                for minibatch in batch[order].split(algo.sequences_per_minibatch):
                    term = update(minibatch)
                    optimizer.zero_grad()
                    total = term["loss_objective"] + term["loss_critic"] + term["loss_entropy"]
                    (total + imitation.loss()).backward()
                    average_gradients(parameters)
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
            run.log({"max_ratio": ratio, "learning_rate": rate} | dict(logged))

        # evaluate: every test task once, with the mean action and the task's own reward
        return run.finish(policy, test_env)


if __name__ == "__main__":
    run_recipe(main, name="ppo_shm", algo="ppo")
