"""Multiarmed Bandit: find the arm that pays best."""

from __future__ import annotations

import torch
from torch import Tensor

from torchrl_shm.envs._checks import check_range
from torchrl_shm.envs.contract import Entry, State, Transition
from torchrl_shm.envs.popgym._base import Level, POPGymEnv, level_count


class MultiarmedBanditEnv(POPGymEnv):
    """Find the arm that pays best, and keep to it.

    ## Description

    Every arm pays with its own probability, drawn at the start of the episode. POPGym's
    `MultiarmedBandit` (`popgym/envs/multiarmed_bandit.py`), step by step.

    ## Action Space

    `action`: int64 of shape `[B]`, an arm.

    ## Observation Space

    `observation`: float32: no payout, payout (2), previous action (10, 20 or 30), time flags (2).

    ## Rewards

    1/H for a payout and -1/H otherwise, H steps.

    ## Starting State

    Probabilities uniform in [0, 1). `reset(TensorDict({"arms": arms}), set_state=True)` takes
    them, float32 of shape `[B, arms]`. Payouts are drawn from the environment's generator at every
    step.

    ## Episode End

    Truncated after H = 200, 400, 600 steps.

    Args:
        num_envs: number of environments B.
        level: `"easy"`, `"medium"` or `"hard"`: 10, 20, 30 arms and 200, 400, 600 steps.
        num_arms: number of arms; `None` is the level's.
        max_steps: length of an episode; `None` is the level's.
        previous_action: append the previous action to the observation.
        antialias: append whether this is the reset to the observation.
        seed: seed of the environment's own generator; `None` draws one from torch's default
            generator.
        device: device of all tensors, state and generator included.

    Raises:
        ValueError: `level` is unknown, or a number is not positive.

    Examples:
        >>> from torchrl_shm.envs.popgym import MultiarmedBanditEnv
        >>> MultiarmedBanditEnv(num_envs=3).rollout(3)["observation"].shape
        torch.Size([3, 3, 14])

    ## Version History

    - v0: as in popgym 1.0.7.
    """

    def __init__(
        self,
        num_envs: int = 64,
        *,
        level: Level = "easy",
        num_arms: int | None = None,
        max_steps: int | None = None,
        previous_action: bool = True,
        antialias: bool = True,
        seed: int | None = None,
        device: torch.device | str | int = "cpu",
    ) -> None:
        super().__init__(num_envs, level, previous_action, antialias, device)
        arms, steps = (
            {"easy": 10, "medium": 20, "hard": 30},
            {"easy": 200, "medium": 400, "hard": 600},
        )
        self.num_arms = level_count("num_arms", num_arms, arms, level)
        self.max_steps = level_count("max_steps", max_steps, steps, level)
        scale = 1 / self.max_steps
        self._specify(blocks=[2], actions=[self.num_arms], rewards=(-scale, scale), seed=seed)

    def _layout(self) -> dict[str, Entry]:
        return {"arms": Entry((self.num_arms,), torch.float32)}

    def _draw(self, count: int) -> State:
        shape = (count, self.num_arms)
        return {"arms": torch.rand(shape, generator=self._generator, device=self.device)}

    def _check_layout(self, layout: State) -> None:
        check_range("arms", layout["arms"], 0, 1)

    def _begin(self, layout: State) -> State:
        arms = layout["arms"]
        return {"arms": arms, "paid": torch.zeros_like(arms[:, :1], dtype=torch.int64)}

    def _chance(self) -> Tensor:
        """A number in [0, 1) per environment, `[B, 1]`."""
        shape = (self.num_envs, 1)
        return torch.rand(shape, generator=self._generator, device=self.device)

    def _play(self, state: State, action: Tensor) -> Transition:
        paid = self._chance() < state["arms"].gather(1, action.unsqueeze(-1))
        reward = torch.where(paid, 1 / self.max_steps, -1 / self.max_steps)
        new = {"arms": state["arms"], "paid": paid.long()}
        return Transition(new, reward, None, state["step"] >= self.max_steps - 1)

    def _features(self, state: State) -> Tensor:
        return state["paid"]
