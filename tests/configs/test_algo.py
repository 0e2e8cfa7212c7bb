"""Hyper-parameters are checked before anything starts."""

import pytest

from torchrl_shm.configs import PPO


@pytest.mark.parametrize(
    "name",
    [
        "total_frames", "num_envs", "rollout_length", "epochs", "sequences_per_minibatch",
        "learning_rate",
        "clip_epsilon", "max_grad_norm", "embedding_size", "init_scale", "checkpoint_interval",
    ],
)  # fmt: skip
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_positive_values(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"algo\.{name}={value} must be positive"):
        PPO(**{name: value})


@pytest.mark.parametrize("name", ["gamma", "lmbda"])
@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_shares(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"algo\.{name}={value} must be between 0 and 1"):
        PPO(**{name: value})


@pytest.mark.parametrize("value", [0, 1])
def test_bounds_of_shares_are_allowed(value: int) -> None:
    assert PPO(gamma=value, lmbda=value).gamma == value


def test_minibatches_are_not_larger_than_batches() -> None:
    with pytest.raises(ValueError, match=r"algo\.sequences_per_minibatch=9 .* algo\.num_envs=8"):
        PPO(num_envs=8, sequences_per_minibatch=9)
    assert PPO(num_envs=8, sequences_per_minibatch=8).num_envs == 8
