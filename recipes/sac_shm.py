"""Soft actor-critic with memories, continuous and discrete, read from top to bottom.

python recipes/sac_shm.py env=wind
python recipes/sac_shm.py env=wind memory=shm network/actor_memory=gru
python recipes/sac_shm.py env=t_maze_passive experiment.seed=1
python recipes/sac_shm.py experiment.resume=outputs/sac_shm/<date>/<time>_shm_seed0
python recipes/sac_shm.py --help
"""

from __future__ import annotations

from collections.abc import Callable
from math import nan
from typing import Any

import torch
from omegaconf import DictConfig
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictSequential
from torch.nn.utils import clip_grad_norm_
from torchrl.envs import EnvBase
from torchrl.record.loggers import Logger

from torchrl_shm.configs import SAC, run_recipe
from torchrl_shm.networks import MemoryFactory, get_behavior
from torchrl_shm.training import (
    Experiment,
    RolloutCollector,
    SequenceReplay,
    SlowCritic,
    TrainingRun,
    make_sac_loss,
    make_test_env,
    unroll_features,
)

LOGGED = (
    "loss_actor", "loss_qvalue", "entropy", "alpha", "grad_norm_actor", "grad_norm_critic",
)  # fmt: skip


def main(
    env: Callable[..., EnvBase],
    memory: MemoryFactory,
    network: Callable[..., Any],
    experiment: Experiment,
    algo: SAC,
    collector: Callable[..., RolloutCollector],
    logger: Callable[..., Logger | None] | None = None,
    zen_cfg: DictConfig | None = None,
) -> dict[str, Any]:
    """Train, evaluate on the test tasks, and return the summary."""
    algo.check_buffer(experiment.num_envs)
    experiment.refuse_compile()
    with TrainingRun.open("sac_shm", experiment, env, memory, logger, zen_cfg) as run:
        if run.summary is not None:
            return run.summary

        # build: an embedding and a memory for the actor, and for the critic; behind them an action
        # head and two heads of action values
        device = experiment.device
        test_env = make_test_env(
            env,
            num_episodes=experiment.num_test_episodes,
            max_steps=experiment.max_test_steps,
            device=device,
        )
        operator = network(test_env, memory, device=device)
        policy = operator.get_policy_operator()
        memories = TensorDictSequential(*operator.actor, *operator.critic)
        loss = make_sac_loss(
            operator,
            gamma=algo.gamma,
            temperature=algo.temperature,
            initial_temperature=algo.initial_temperature,
            max_temperature=algo.max_temperature,
            target_entropy=algo.target_entropy,
            divergence=algo.actor_divergence,
        )
        slow = SlowCritic(operator, loss, tau=algo.tau)
        rollouts = collector(
            env,
            # the critic's memory acts on nothing, but sequences record how it starts
            get_behavior(operator),
            num_envs=experiment.num_envs,
            rollout_length=algo.rollout_length,
            total_frames=experiment.total_frames,
            seed=experiment.seed,
            device=device,
        )
        replay = SequenceReplay(
            run.folder.path / "replay",
            num_sequences=algo.num_sequences,
            batch_size=algo.batch_size,
            keys=[*memories.in_keys, *loss.in_keys, *(("next", x) for x in operator.policy_keys)],
            storage=algo.storage,
            keep_checkpoints=experiment.keep_checkpoints,
            device=device,
        )
        actor = [*operator.actor.parameters(), *operator.head.parameters()]
        critic = [*operator.critic.parameters(), *loss.qvalue_network_params.parameters()]
        groups: list[dict[str, Any]] = [{"params": [*actor, *critic], "lr": algo.learning_rate}]
        if algo.temperature is None:
            groups.append({"params": [loss.log_alpha], "lr": algo.temperature_learning_rate})
        optimizer = torch.optim.Adam(groups, fused=True)
        # batches that are learned from, of which a short run may have none
        learning = max(1, rollouts.num_batches - algo.random_frames // rollouts.frames_per_batch)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda update: 1 - update / learning if algo.anneal_lr else 1.0
        )
        run.track(
            operator=operator,
            loss=loss,
            slow=slow,
            optimizer=optimizer,
            schedule=schedule,
            collector=rollouts,
            replay=replay,
        )
        updates_per_batch = max(1, round(algo.updates_per_step * rollouts.frames_per_batch))

        for batch in run.batches(rollouts):
            # reward: the task's own, and while training the environment's help to explore
            reward = batch["next", "reward"]
            if ("next", "shaping") in batch.keys(True):
                reward = reward + algo.shaping * batch["next", "shaping"]
            batch["next", "reward"] = algo.reward_scale * reward
            replay.extend(batch)

            # update: whole sequences, in which the memories run as when they were collected, from
            # the start and with the gates of then; an untrained policy acts at random
            terms: list[TensorDictBase] = []
            learns = run.frames + batch.numel() > algo.random_frames
            for _ in range(updates_per_batch if learns else 0):
                sample = replay.sample()
                # features of every observation and of what came next; the target's are slower
                data = unroll_features(memories, sample)
                data = slow.unroll_next(sample, data)
                term = loss(data[:, algo.burn_in :])
                optimizer.zero_grad()
                (term["loss_actor"] + term["loss_qvalue"] + term["loss_alpha"]).backward()
                norms = {
                    "grad_norm_actor": clip_grad_norm_(actor, algo.max_grad_norm),
                    "grad_norm_critic": clip_grad_norm_(critic, algo.max_grad_norm),
                }
                if not run.check.gradient(sum(norms.values(), torch.zeros(())), loss):
                    continue
                optimizer.step()
                slow.step()
                terms.append(term.detach().update(norms))
            if learns and not terms:
                raise FloatingPointError(f"no minibatch of update {run.updates} was finite")
            rate = schedule.get_last_lr()[0]
            if learns:
                schedule.step()
            rollouts.update_policy()
            means = TensorDict.maybe_dense_stack(terms).mean() if terms else {}
            logged = {key: float(means[key]) if terms else nan for key in LOGGED}
            run.log({**logged, "learning_rate": rate})

        # evaluate: every test task once, with the mean action and the task's own reward
        return run.finish(policy, test_env)


if __name__ == "__main__":
    run_recipe(main, name="sac_shm", algo="sac", network="soft_actor_critic")
