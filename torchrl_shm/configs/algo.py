"""Hyperparameters of the algorithms: one dataclass each, for the group `algo`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import isfinite
from typing import Annotated, Any, Literal

from pydantic import Strict

from torchrl_shm.checks import check_count, check_option
from torchrl_shm.training import ActorDivergence, ReplayStorage

Number = Annotated[float, Strict()]
"""A float. `Number | None` is checked on the command line, `float | None` is not."""
Credit = Literal["episode", "step"]
"""What GRPO compares: whole episodes, or what follows each step."""
ImitationPriority = Literal["return", "step"]
"""What self-imitation compares with the value: all that follows a step, or the step alone."""


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
        critic_lmbda: that of the targets that the critic learns, where `None` is `lmbda`. See
            `torchrl_shm.training.change_lmbda`.
        clip_epsilon: clipping range of the probability ratio.
        entropy_coeff: weight of the entropy bonus.
        critic_coeff: weight of the value loss.
        max_grad_norm: bound on the norm of the gradient; infinity for none.
        imitation_coeff: weight of learning again from the sequences that turned out better than
            expected, see `torchrl_shm.training.SelfImitation`; 0 for none.
        imitation_priority: which of them are kept: `"return"`, those after whose steps more came
            than expected, or `"step"`, those with one step that brought more. Where many small
            rewards lie on the way, luck with them hides such a step from the first.
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
    critic_lmbda: Number | None = None
    clip_epsilon: float = 0.2
    entropy_coeff: float = 0.0
    critic_coeff: float = 0.5
    max_grad_norm: float = 0.5
    imitation_coeff: float = 0.0
    imitation_priority: ImitationPriority = "return"
    shaping: float = 1.0

    def __post_init__(self) -> None:
        _check(
            self,
            counts=("rollout_length", "epochs", "sequences_per_minibatch"),
            positive=("learning_rate", "clip_epsilon", "critic_coeff", "max_grad_norm"),
            not_negative=("imitation_coeff",),
            shares=("gamma", "lmbda", "critic_lmbda"),
        )
        check_option("algo.imitation_priority", self.imitation_priority, ImitationPriority)

    def check_batch(self, num_envs: int) -> None:
        """Refuse minibatches that a batch does not fill.

        Args:
            num_envs: environments, hence sequences per batch.

        Raises:
            ValueError: `sequences_per_minibatch` is more than that.
        """
        _check_minibatch(self.sequences_per_minibatch, num_envs)


@dataclass
class SAC:
    """Hyperparameters of `recipes/sac_shm.py`.

    Attributes:
        rollout_length: steps per environment and batch: the length of the sequences that are
            stored, drawn and learned from. Where episodes are longer, sequences are parts of them,
            each of which starts from the memory with which it was collected.
        buffer_size: steps that the replay buffer holds.
        storage: where they are, see `torchrl_shm.training.ReplayStorage`.
        batch_size: sequences per gradient step.
        updates_per_step: gradient steps per environment step.
        random_frames: frames before the first gradient step. They are collected by the untrained
            policy, whose actions are uniform within a few percent.
        burn_in: first steps of each sequence that only warm up the memories: they take no part in
            the loss.
        learning_rate: of Adam at the start.
        anneal_lr: let the learning rates, that of the temperature as well, fall linearly to zero
            over the batches that are learned from.
        gamma: discount factor.
        tau: part of the way to the critic that the target networks go at each gradient step.
        reward_scale: by which the training reward is multiplied. Differences between actions that
            are small beside 1 are lost in the noise of the updates.
        temperature: weight of the entropy, in units of that reward, where `None` learns it.
        initial_temperature: where a learned one starts.
        max_temperature: bound on a learned one, where `None` is none. Above some price of entropy
            what is far away does not pay any more (docs/results/sac.md).
        temperature_learning_rate: that of a learned one.
        target_entropy: entropy at which a learned temperature aims, in nats, where `None` is minus
            the number of parts of a continuous action, and 0.3 of the largest one of an index.
        actor_divergence: how the actor learns from the values of actions that are an index, see
            `torchrl_shm.training.ActorDivergence`.
        max_grad_norm: bound on the norm of the gradient, of the actor and of the critic each;
            infinity for none.
        shaping: weight of the environment's `shaping` entry in the training reward, where it has
            one. Evaluation always uses the task's own reward.

    Raises:
        ValueError: a value is out of its range.

    Examples:
        >>> from torchrl_shm.configs import SAC
        >>> SAC(gamma=0.9).tau
        0.005
    """

    rollout_length: int = 100
    buffer_size: int = 1_000_000
    storage: ReplayStorage = "memory"
    batch_size: int = 32
    updates_per_step: float = 0.02
    random_frames: int = 10_000
    burn_in: int = 0
    learning_rate: float = 1e-3
    anneal_lr: bool = False
    gamma: float = 0.99
    tau: float = 0.005
    reward_scale: float = 1.0
    temperature: Number | None = None
    initial_temperature: float = 0.1
    max_temperature: Number | None = None
    temperature_learning_rate: float = 3e-3
    target_entropy: Number | None = None
    actor_divergence: ActorDivergence = "reverse"
    max_grad_norm: float = 10.0
    shaping: float = 1.0

    def __post_init__(self) -> None:
        _check(
            self,
            counts=("rollout_length", "buffer_size", "batch_size"),
            positive=(
                "updates_per_step", "learning_rate", "reward_scale", "initial_temperature",
                "temperature_learning_rate", "max_grad_norm", "temperature", "max_temperature",
            ),
            shares=("gamma", "tau"),
        )  # fmt: skip
        check_count("algo.random_frames", self.random_frames, 0)
        check_count("algo.burn_in", self.burn_in, 0)
        check_option("algo.storage", self.storage, ReplayStorage)
        check_option("algo.actor_divergence", self.actor_divergence, ActorDivergence)
        for name in ("target_entropy", "max_temperature"):
            value = getattr(self, name)
            if self.temperature is not None and value is not None:
                raise ValueError(
                    f"algo.{name}={value} is for a temperature that is learned, but "
                    f"algo.temperature={self.temperature} is fixed; drop one of them"
                )
        if self.burn_in >= self.rollout_length:
            raise ValueError(
                f"algo.burn_in={self.burn_in} leaves nothing of sequences of "
                f"algo.rollout_length={self.rollout_length} steps"
            )

    @property
    def num_sequences(self) -> int:
        """Sequences that the replay buffer holds."""
        return self.buffer_size // self.rollout_length

    def check_buffer(self, num_envs: int) -> None:
        """Refuse a replay buffer that does not hold what is drawn from it or what is collected.

        Args:
            num_envs: environments, hence sequences per batch of the collector.

        Raises:
            ValueError: it is too small.
        """
        needed = {"algo.batch_size": self.batch_size, "experiment.num_envs": num_envs}
        for name, count in needed.items():
            if count > self.num_sequences:
                raise ValueError(
                    f"algo.buffer_size={self.buffer_size} steps hold {self.num_sequences} "
                    f"sequences of algo.rollout_length={self.rollout_length}, less than "
                    f"{name}={count}"
                )


@dataclass
class Reinforce:
    """Hyperparameters of `recipes/reinforce_shm.py`.

    Attributes:
        rollout_length: steps per environment and batch, at best the length of an episode; also the
            length of back-propagation through time.
        learning_rate: of Adam at the start.
        anneal_lr: let the learning rate fall linearly to zero over the run.
        gamma: discount factor.
        baseline: learn what return to expect, and subtract it.
        entropy_coeff: weight of the entropy bonus.
        critic_coeff: weight of the loss of the baseline.
        max_grad_norm: bound on the norm of the gradient; infinity for none.
        shaping: weight of the environment's `shaping` entry in the training reward, where it has
            one. Evaluation always uses the task's own reward.

    Raises:
        ValueError: a value is out of its range.

    Examples:
        >>> from torchrl_shm.configs import Reinforce
        >>> Reinforce(baseline=False).gamma
        0.99
    """

    rollout_length: int = 100
    learning_rate: float = 1e-3
    anneal_lr: bool = True
    gamma: float = 0.99
    baseline: bool = True
    entropy_coeff: float = 0.0
    critic_coeff: float = 0.5
    max_grad_norm: float = 0.5
    shaping: float = 1.0

    def __post_init__(self) -> None:
        _check(
            self,
            counts=("rollout_length",),
            positive=("learning_rate", "critic_coeff", "max_grad_norm"),
            shares=("gamma",),
        )


@dataclass
class GRPO:
    """Hyperparameters of `recipes/grpo_shm.py`.

    Attributes:
        rollout_length: steps per environment and batch, which the episode that counts has to fit
            into; also the length of back-propagation through time.
        group_size: environments that play the same layout, with whose returns each other's are
            compared.
        epochs: passes over each batch.
        sequences_per_minibatch: sequences (environments) per gradient step.
        learning_rate: of Adam at the start.
        anneal_lr: let the learning rate fall linearly to zero over the run.
        gamma: discount factor.
        credit: what a step is worth, the return of the whole `"episode"` or of what follows the
            `"step"`; the latter is compared with what follows the same step elsewhere in the group.
        spread_eps: what is added to the spread of a group before its advantages are divided by it,
            in units of the return: the larger, the less is learned from groups that hardly differ.
        clip_epsilon: clipping range of the probability ratio.
        entropy_coeff: weight of the entropy bonus.
        kl_coeff: weight of the divergence from the policy of the last batch.
        max_grad_norm: bound on the norm of the gradient; infinity for none.
        shaping: weight of the environment's `shaping` entry in the training reward, where it has
            one. Evaluation always uses the task's own reward.

    Raises:
        ValueError: a value is out of its range.

    Examples:
        >>> from torchrl_shm.configs import GRPO
        >>> GRPO(group_size=8).check_batch(num_envs=64)
    """

    rollout_length: int = 100
    group_size: int = 16
    epochs: int = 4
    sequences_per_minibatch: int = 32
    learning_rate: float = 1e-3
    anneal_lr: bool = True
    gamma: float = 1.0
    credit: Credit = "episode"
    spread_eps: float = 1e-6
    clip_epsilon: float = 0.2
    entropy_coeff: float = 0.0
    kl_coeff: float = 0.0
    max_grad_norm: float = 0.5
    shaping: float = 1.0

    def __post_init__(self) -> None:
        _check(
            self,
            counts=("rollout_length", "epochs", "sequences_per_minibatch"),
            positive=("learning_rate", "spread_eps", "clip_epsilon", "max_grad_norm"),
            not_negative=("kl_coeff",),
            shares=("gamma",),
        )
        check_option("algo.credit", self.credit, Credit)
        # one alone is always as good as its group
        check_count("algo.group_size", self.group_size, 2)

    def check_batch(self, num_envs: int, on_nonfinite: str = "stop") -> None:
        """Refuse minibatches and groups that do not fill a batch, or would lose a part of it.

        Args:
            num_envs: environments, hence sequences per batch.
            on_nonfinite: that of the experiment.

        Raises:
            ValueError: `sequences_per_minibatch` is more than `num_envs`, `group_size` does not
                divide it, or `on_nonfinite` is `"skip"`, which leaves sequences out.
        """
        _check_minibatch(self.sequences_per_minibatch, num_envs)
        if num_envs % self.group_size:
            raise ValueError(
                f"algo.group_size={self.group_size} must divide experiment.num_envs={num_envs}"
            )
        if on_nonfinite == "skip":
            raise ValueError(
                "experiment.on_nonfinite=skip leaves sequences out, and groups need all of theirs; "
                "use stop"
            )


def _check(
    algo: Any,
    *,
    counts: tuple[str, ...] = (),
    positive: tuple[str, ...] = (),
    not_negative: tuple[str, ...] = (),
    shares: tuple[str, ...] = (),
) -> None:
    """Raise ValueError for the first option that is out of its range, where it is not off."""
    for field in fields(algo):
        # python counts True as 1
        value = getattr(algo, field.name)
        if isinstance(value, bool) and not isinstance(field.default, bool | str):
            raise ValueError(f"algo.{field.name}={value} must be a number")
    for name in counts:
        check_count(f"algo.{name}", getattr(algo, name))
    off = {
        field.name for field in fields(algo)
        if field.default is None and getattr(algo, field.name) is None
    }  # fmt: skip
    positive, shares = (tuple(x for x in names if x not in off) for names in (positive, shares))
    for name in positive:
        if not (value := getattr(algo, name)) > 0:
            raise ValueError(f"algo.{name}={value} must be positive")
    for name in not_negative:
        if not (value := getattr(algo, name)) >= 0:
            raise ValueError(f"algo.{name}={value} must not be negative")
    for name in shares:
        if not 0 <= (value := getattr(algo, name)) <= 1:
            raise ValueError(f"algo.{name}={value} must be between 0 and 1")
    # a gradient without a bound is a choice
    for name in (field.name for field in fields(algo) if field.name != "max_grad_norm"):
        if isinstance(value := getattr(algo, name), float) and not isfinite(value):
            raise ValueError(f"algo.{name}={value} must be finite")


def _check_minibatch(sequences_per_minibatch: int, num_envs: int) -> None:
    if sequences_per_minibatch > num_envs:
        raise ValueError(
            f"algo.sequences_per_minibatch={sequences_per_minibatch} is more than "
            f"experiment.num_envs={num_envs}, the sequences of a batch"
        )
