"""Hyperparameters are checked before anything starts."""

from typing import Any

import pytest

from torchrl_shm.configs import GRPO, PPO, SAC, Reinforce


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rollout_length": 0}, r"algo\.rollout_length must be at least 1, got 0"),
        ({"epochs": 1.5}, r"algo\.epochs must be a whole number, got 1\.5"),
        ({"sequences_per_minibatch": -1}, r"algo\.sequences_per_minibatch must be at least 1"),
        ({"learning_rate": 0.0}, r"algo\.learning_rate=0\.0 must be positive"),
        ({"clip_epsilon": -1.0}, r"algo\.clip_epsilon=-1\.0 must be positive"),
        ({"critic_coeff": float("nan")}, r"algo\.critic_coeff=nan must be positive"),
        ({"max_grad_norm": 0.0}, r"algo\.max_grad_norm=0\.0 must be positive"),
        ({"gamma": 1.1}, r"algo\.gamma=1\.1 must be between 0 and 1"),
        ({"lmbda": float("nan")}, r"algo\.lmbda=nan must be between 0 and 1"),
        ({"critic_lmbda": 1.5}, r"algo\.critic_lmbda=1\.5 must be between 0 and 1"),
        ({"critic_lmbda": True}, r"algo\.critic_lmbda=True must be a number"),
        ({"imitation_coeff": float("inf")}, r"algo\.imitation_coeff=inf must be finite"),
        ({"shaping": float("nan")}, r"algo\.shaping=nan must be finite"),
        ({"entropy_coeff": float("-inf")}, r"algo\.entropy_coeff=-inf must be finite"),
    ],
)
def test_values_out_of_range(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PPO(**values)


@pytest.mark.parametrize(
    ("algo", "values", "message"),
    [
        (Reinforce, {"rollout_length": 0}, r"algo\.rollout_length must be at least 1"),
        (Reinforce, {"critic_coeff": 0.0}, r"algo\.critic_coeff=0\.0 must be positive"),
        (Reinforce, {"gamma": -0.1}, r"algo\.gamma=-0\.1 must be between 0 and 1"),
        (GRPO, {"epochs": 0}, r"algo\.epochs must be at least 1"),
        (GRPO, {"group_size": 1}, r"algo\.group_size must be at least 2, got 1"),
        (GRPO, {"clip_epsilon": 0.0}, r"algo\.clip_epsilon=0\.0 must be positive"),
        (GRPO, {"kl_coeff": float("nan")}, r"algo\.kl_coeff=nan must not be negative"),
    ],
)
def test_values_of_others_out_of_range(algo: Any, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        algo(**values)


def test_what_is_no_option_is_not_called_a_number() -> None:
    with pytest.raises(ValueError, match=r"algo\.credit=True is unknown; choose one of"):
        GRPO(credit=True)  # pyright: ignore[reportArgumentType]


def test_bounds_are_allowed() -> None:
    assert PPO(critic_lmbda=0).critic_lmbda == 0
    assert (PPO(gamma=0, lmbda=0).gamma, PPO(gamma=1, lmbda=1).gamma) == (0, 1)
    assert PPO(max_grad_norm=float("inf")).max_grad_norm == float("inf")


def test_minibatches_are_not_larger_than_batches() -> None:
    PPO(sequences_per_minibatch=8).check_batch(num_envs=8)
    message = r"algo\.sequences_per_minibatch=9 .* experiment\.num_envs=8"
    for algo in (PPO(sequences_per_minibatch=9), GRPO(sequences_per_minibatch=9)):
        with pytest.raises(ValueError, match=message):
            algo.check_batch(num_envs=8)


def test_groups_fill_a_batch() -> None:
    GRPO(group_size=4, sequences_per_minibatch=8).check_batch(num_envs=8)
    with pytest.raises(ValueError, match=r"^algo\.group_size=16 must divide .*num_envs=40$"):
        GRPO().check_batch(num_envs=40)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rollout_length": 0}, r"algo\.rollout_length must be at least 1, got 0"),
        ({"random_frames": -1}, r"algo\.random_frames must be at least 0, got -1"),
        ({"burn_in": 100}, r"algo\.burn_in=100 leaves nothing of .*algo\.rollout_length=100 steps"),
        ({"storage": "tape"}, r"algo\.storage='tape' is unknown"),
        ({"updates_per_step": 0.0}, r"algo\.updates_per_step=0\.0 must be positive"),
        ({"temperature": 0.0}, r"algo\.temperature=0\.0 must be positive"),
        ({"temperature": 1.0, "target_entropy": 0.1}, r"algo\.temperature=1\.0 is fixed; drop one"),
        ({"temperature": 1.0, "max_temperature": 0.1}, r"algo\.max_temperature=0\.1 is for a temp"),
        ({"max_temperature": 0.0}, r"algo\.max_temperature=0\.0 must be positive"),
        ({"tau": 1.1}, r"algo\.tau=1\.1 must be between 0 and 1"),
        ({"temperature": True}, r"algo\.temperature=True must be a number"),
        ({"target_entropy": False}, r"algo\.target_entropy=False must be a number"),
    ],
)
def test_values_of_sac_out_of_range(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SAC(**values)


def test_a_buffer_holds_what_is_drawn_and_what_is_collected() -> None:
    algo = SAC(buffer_size=850, rollout_length=100, batch_size=8)
    assert algo.num_sequences == 8
    algo.check_buffer(num_envs=8)
    with pytest.raises(ValueError, match=r"850 steps hold 8 sequences .* experiment\.num_envs=9"):
        algo.check_buffer(num_envs=9)
    with pytest.raises(ValueError, match=r"less than algo\.batch_size=9"):
        SAC(buffer_size=850, batch_size=9).check_buffer(num_envs=1)
