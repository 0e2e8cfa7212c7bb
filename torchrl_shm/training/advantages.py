"""Advantages for a policy that looks less far ahead than its critic."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchrl.objectives.value.functional import generalized_advantage_estimate


def change_lmbda(
    advantage: Tensor, done: Tensor, *, gamma: float, lmbda: float, new_lmbda: float
) -> Tensor:
    """Weigh the temporal differences in advantages by another lambda.

    What pays hundreds of steps later is learned by a critic whose targets are whole returns, with a
    lambda of 1. A policy that learned from the same would learn from the luck of all steps between
    as well. With a smaller lambda of its own it is taught by how far the critic's value rose at an
    action, and by the few steps after it.

    An advantage is a sum of temporal differences, so those of another lambda need no second pass
    over the values.

    Source: decoupled generalized advantage estimation, Yuan et al., What's Behind PPO's Collapse in
    Long-CoT? Value Optimization Holds the Secret (arXiv 2503.01491, 2025).

    Args:
        advantage: as an estimator with `lmbda` made them and not standardized, floats of shape
            `[B, T, 1]`.
        done: whether an episode ends with a step, bool `[B, T, 1]`.
        gamma: discount factor of both.
        lmbda: the lambda of `advantage`.
        new_lmbda: that of the result.

    Returns:
        Floats `[B, T, 1]`; `advantage` itself where both lambdas are the same.

    Examples:
        >>> import torch
        >>> from torchrl_shm.training import change_lmbda
        >>> advantage = torch.tensor([3.0, 2.0, 1.0]).reshape(1, 3, 1)  # of differences of 1
        >>> done = torch.zeros(1, 3, 1, dtype=torch.bool)
        >>> change_lmbda(advantage, done, gamma=1.0, lmbda=1.0, new_lmbda=0.5).flatten()
        tensor([1.7500, 1.5000, 1.0000])
    """
    if new_lmbda == lmbda:
        return advantage
    later = F.pad(advantage[:, 1:], (0, 0, 0, 1))
    difference = advantage - gamma * lmbda * later * ~done
    zero = torch.zeros_like(difference)
    # differences are rewards to it, of states without a value
    changed, _ = generalized_advantage_estimate(
        gamma, new_lmbda, zero, zero, difference, done, done
    )
    return changed
