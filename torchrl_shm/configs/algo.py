"""Hyperparameters of the algorithms: one dataclass each, for the group `algo`."""

from __future__ import annotations

from dataclasses import dataclass

from torchrl_shm.checks import check_count


@dataclass
class PPO:
    """Hyperparameters of `recipes/ppo_shm.py`.

    Attributes:
        rollout_length: steps per environment and batch; also the length of back-propagation
            through time.
        epochs: passes over each batch.
        sequences_per_minibatch: sequences (environments) per gradient step.
        learning_rate: of Adam at the start.
        anneal_lr: let the learning rate fall linearly to zero over the run.
        gamma: discount factor.
        lmbda: the lambda of generalized advantage estimation.
        clip_epsilon: clipping range of the probability ratio.
        entropy_coeff: weight of the entropy bonus.
        critic_coeff: weight of the value loss.
        max_grad_norm: bound on the norm of the gradient.
        imitation_coeff: weight of learning again from the sequences that turned out better than
            expected, see `torchrl_shm.training.SelfImitation`; 0 for none.
        shaping: weight of the environment's `shaping` entry in the training reward, where it has
            one. Evaluation always uses the task's own reward.

    Raises:
        ValueError: a value is out of its range.

    Examples:
        >>> from torchrl_shm.configs import PPO
        >>> PPO(gamma=0.99).epochs
        4
    """

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
    imitation_coeff: float = 0.0
    shaping: float = 1.0

    def __post_init__(self) -> None:
        for name in ("rollout_length", "epochs", "sequences_per_minibatch"):
            check_count(f"algo.{name}", getattr(self, name))
        for name in ("learning_rate", "clip_epsilon", "critic_coeff", "max_grad_norm"):
            if not (value := getattr(self, name)) > 0:
                raise ValueError(f"algo.{name}={value} must be positive")
        if not self.imitation_coeff >= 0:
            raise ValueError(f"algo.imitation_coeff={self.imitation_coeff} must not be negative")
        for name in ("gamma", "lmbda"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise ValueError(f"algo.{name}={value} must be between 0 and 1")

    def check_batch(self, num_envs: int) -> None:
        """Refuse minibatches that a batch does not fill.

        Args:
            num_envs: environments, hence sequences per batch.

        Raises:
            ValueError: `sequences_per_minibatch` is more than that.
        """
        if self.sequences_per_minibatch > num_envs:
            raise ValueError(
                f"algo.sequences_per_minibatch={self.sequences_per_minibatch} is more than "
                f"experiment.num_envs={num_envs}, the sequences of a batch"
            )
