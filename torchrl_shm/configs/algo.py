"""Hyper-parameters of the algorithms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torchrl_shm.training import OnNonfinite


@dataclass
class PPO:
    """Hyper-parameters of `recipes/ppo_shm.py`.

    Attributes:
        total_frames: environment steps, rounded up to whole batches.
        num_envs: environments that step together, over all workers.
        rollout_length: steps per environment and batch; the length of back-propagation through time.
        epochs: passes over each batch.
        sequences_per_minibatch: rows (environments) per gradient step.
        learning_rate: of Adam at the start.
        anneal_lr: let the learning rate fall linearly to zero over the run.
        gamma: discount factor.
        lmbda: the lambda of generalised advantage estimation.
        clip_epsilon: clipping range of the probability ratio.
        entropy_coeff: weight of the entropy bonus.
        critic_coeff: weight of the value loss.
        max_grad_norm: bound on the norm of the gradient.
        shaping: weight of the environment's `shaping` entry in the training reward, where it has
            one. Evaluation always uses the task's own reward.
        policy_keys: observation entries that the policy reads; `None` is the environment's choice.
        embedding_size: features per step that the memory reads and writes.
        hidden_sizes: hidden layers of the action head and of the value head.
        init_scale: initial standard deviation of the actions.
        shared_memory: whether actor and critic share embedding and memory.
        num_test_episodes: episodes of the final evaluation, where the task has no list of tests.
        checkpoint_interval: updates between two checkpoints; one more is written at the end.
        keep_checkpoints: how many of the newest checkpoints to keep, beside the best.
        on_nonfinite: `"stop"` ends the run at the first loss, gradient or datum that is not finite;
            `"skip"` leaves such rows and minibatches out.

    Raises:
        ValueError: a value is out of its range.

    Examples:
        >>> from torchrl_shm.configs import PPO
        >>> PPO(total_frames=20_000).epochs
        4
    """

    total_frames: int = 3_200_000
    num_envs: int = 256
    rollout_length: int = 100
    epochs: int = 4
    sequences_per_minibatch: int = 32
    learning_rate: float = 1.5e-3
    anneal_lr: bool = True
    gamma: float = 0.9
    lmbda: float = 0.95
    clip_epsilon: float = 0.2
    entropy_coeff: float = 0.0
    critic_coeff: float = 0.5
    max_grad_norm: float = 0.5
    shaping: float = 1.0
    policy_keys: Sequence[str] | None = None
    embedding_size: int = 64
    hidden_sizes: Sequence[int] = (64, 64)
    init_scale: float = 0.3
    shared_memory: bool = True
    num_test_episodes: int = 256
    checkpoint_interval: int = 20
    keep_checkpoints: int = 3
    on_nonfinite: OnNonfinite = "stop"

    def network(self) -> dict[str, Any]:
        """Options of `torchrl_shm.networks.make_actor_critic`.

        Training and evaluation build the same network from them.

        Returns:
            The fields that say how the network is built.
        """
        names = ("policy_keys", "embedding_size", "hidden_sizes", "init_scale", "shared_memory")
        return {name: getattr(self, name) for name in names}

    def __post_init__(self) -> None:
        positive = (
            "total_frames", "num_envs", "rollout_length", "epochs", "sequences_per_minibatch",
            "learning_rate", "clip_epsilon", "critic_coeff", "max_grad_norm",
            "embedding_size", "init_scale", "num_test_episodes", "checkpoint_interval",
            "keep_checkpoints",
        )  # fmt: skip
        for name in positive:
            value = getattr(self, name)
            if not value > 0:
                raise ValueError(f"algo.{name}={value} must be positive")
        if any(size < 1 for size in self.hidden_sizes):
            raise ValueError(f"algo.hidden_sizes={list(self.hidden_sizes)} must all be at least 1")
        for name in ("gamma", "lmbda"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"algo.{name}={value} must be between 0 and 1")
        if self.sequences_per_minibatch > self.num_envs:
            raise ValueError(
                f"algo.sequences_per_minibatch={self.sequences_per_minibatch} is more than "
                f"algo.num_envs={self.num_envs}, the rows of a batch"
            )
