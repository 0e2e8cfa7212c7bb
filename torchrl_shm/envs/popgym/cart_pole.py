"""Cart pole with velocities or positions hidden, or with noise on them."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from torchrl_shm.envs.contract import State, Transition
from torchrl_shm.envs.popgym._base import Level
from torchrl_shm.envs.popgym._control import ControlEnv


class PositionOnlyCartPoleEnv(ControlEnv):
    """Balance a pole on a cart and see positions only.

    ## Description

    Gymnasium's CartPole without its two velocities. POPGym's `PositionOnlyCartPole`
    (`popgym/envs/position_only_cartpole.py`), step by step, in float64; with `noise` it is
    `NoisyPositionOnlyCartPole`.

    ## Action Space

    `action`: int64 of shape `[B]`: 0 pushes left, 1 right, with 10 N.

    ## Observation Space

    `observation`: float32 of shape `[B, 6]`: position of the cart in m, angle of the pole in rad,
    previous action (2), time flags (2).

    ## Rewards

    1/H per step, H the longest episode.

    ## Starting State

    Position, velocity, angle and angular velocity uniform in [-0.05, 0.05].
    `reset(TensorDict({"state": state}), set_state=True)` takes them, float64 of shape `[B, 4]`.

    ## Episode End

    Terminated beyond 2.4 m or 12 degrees; truncated after H = 200, 400, 600 steps.

    Args:
        num_envs: number of environments B.
        level: `"easy"`, `"medium"` or `"hard"`.
        max_steps: length of an episode; `None` is the level's.
        noise: standard deviation of what is added to the two numbers that are seen, which are then
            clipped to twice the limits; `None` is the level's: 0.
        previous_action: append the previous action to the observation.
        antialias: append whether this is the reset to the observation.
        seed: seed of the environment's own generator; `None` draws one from torch's default
            generator.
        device: device of all tensors, state and generator included.

    Raises:
        ValueError: `level` is unknown, `max_steps` not positive or `noise` negative.

    Examples:
        >>> from torchrl_shm.envs.popgym import PositionOnlyCartPoleEnv
        >>> PositionOnlyCartPoleEnv(num_envs=3).rollout(3)["observation"].shape
        torch.Size([3, 3, 6])

    ## Version History

    - v0: as in popgym 1.0.7.
    """

    _STEPS: ClassVar[dict[str, int]] = {"easy": 200, "medium": 400, "hard": 600}
    _STATE_SIZE = 4
    _tensors = (*ControlEnv._tensors, "_limits", "_forces")
    # which of x, its velocity, the angle and its velocity are seen after a step
    _SEEN: ClassVar[slice] = slice(0, None, 2)

    def __init__(
        self,
        num_envs: int = 64,
        *,
        level: Level = "easy",
        max_steps: int | None = None,
        noise: float | None = None,
        previous_action: bool = True,
        antialias: bool = True,
        seed: int | None = None,
        device: torch.device | str | int = "cpu",
    ) -> None:
        super().__init__(num_envs, level, previous_action, antialias, device)
        far, tilted = 2.4, 12 * 2 * math.pi / 360
        self._prepare(max_steps, noise, [2 * far, 2 * tilted], [0.05] * 4)
        double: dict[str, Any] = {"dtype": torch.float64, "device": self.device}
        self._limits = torch.tensor([far, math.inf, tilted, math.inf], **double)
        self._forces = torch.tensor([-10.0, 10.0], **double)
        scale = 1 / self.max_steps
        self._specify(blocks=[], actions=[2], rewards=(0, scale), seed=seed, numbers=2)

    def _begin(self, layout: State) -> State:
        return {"state": layout["state"]}

    def _play(self, state: State, action: Tensor) -> Transition:
        _, speed, angle, turn = state["state"].unbind(-1)
        sine, cosine = angle.sin(), angle.cos()
        # masses 1 and 0.1 kg, half a pole of 0.5 m, steps of 0.02 s, Euler's method
        force = self._forces.index_select(0, action)
        push = turn.square().mul_(0.1 * 0.5).mul_(sine).add_(force).div_(1.1)
        inertia = torch.rsub(cosine.square().mul_(0.1).div_(1.1), 4.0 / 3.0).mul_(0.5)
        pull = sine.mul_(9.8).sub_(cosine * push).div_(inertia)
        acceleration = push.sub_((pull * (0.1 * 0.5)).mul_(cosine).div_(1.1))
        new = torch.stack([speed, acceleration, turn, pull], -1).mul_(0.02).add_(state["state"])
        fell = (new.abs() > self._limits).any(-1, keepdim=True)
        reward = torch.full_like(fell, 1 / self.max_steps, dtype=torch.float32)
        return Transition({"state": new}, reward, fell, state["step"] >= self.max_steps - 1)

    def _features(self, state: State) -> Tensor:
        return self._see(state["state"][:, self._SEEN])

    def _first_features(self, state: State) -> Tensor:
        # positions at the reset, whatever is seen later: popgym's velocity-only task does so, too
        return self._see(state["state"][:, ::2])


class VelocityOnlyCartPoleEnv(PositionOnlyCartPoleEnv):
    """Balance a pole on a cart and see velocities only.

    ## Description

    Gymnasium's CartPole without its two positions, which have to be summed up from the velocities,
    from the start on. POPGym's `VelocityOnlyCartPole` (`popgym/envs/velocity_only_cartpole.py`),
    step by step, in float64, with one quirk of it: the observation at the reset is the positions.

    ## Action Space

    `action`: int64 of shape `[B]`: 0 pushes left, 1 right, with 10 N.

    ## Observation Space

    `observation`: float32 of shape `[B, 6]`: velocity of the cart in m/s, angular velocity of the
    pole in rad/s (at the reset: position in m, angle in rad), previous action (2), time flags (2).

    ## Rewards

    1/H per step, H the longest episode.

    ## Starting State

    Position, velocity, angle and angular velocity uniform in [-0.05, 0.05].
    `reset(TensorDict({"state": state}), set_state=True)` takes them, float64 of shape `[B, 4]`.

    ## Episode End

    Terminated beyond 2.4 m or 12 degrees; truncated after H = 200, 400, 600 steps.

    Args:
        num_envs: number of environments B.
        level: `"easy"`, `"medium"` or `"hard"`.
        max_steps: length of an episode; `None` is the level's.
        noise: standard deviation of what is added to the two numbers that are seen, which are then
            clipped to twice the limits of the position and the angle; `None` is the level's: 0.
        previous_action: append the previous action to the observation.
        antialias: append whether this is the reset to the observation.
        seed: seed of the environment's own generator; `None` draws one from torch's default
            generator.
        device: device of all tensors, state and generator included.

    Raises:
        ValueError: `level` is unknown, `max_steps` not positive or `noise` negative.

    Examples:
        >>> from torchrl_shm.envs.popgym import VelocityOnlyCartPoleEnv
        >>> VelocityOnlyCartPoleEnv(num_envs=3, level="hard").max_steps
        600

    ## Version History

    - v0: as in popgym 1.0.7.
    """

    _SEEN: ClassVar[slice] = slice(1, None, 2)


class NoisyPositionOnlyCartPoleEnv(PositionOnlyCartPoleEnv):
    """Balance a pole on a cart and see positions with noise.

    ## Description

    Gymnasium's CartPole without its two velocities and with noise on its two positions, of which
    many have to be averaged. POPGym's `NoisyPositionOnlyCartPole`
    (`popgym/envs/noisy_position_only_cartpole.py`), step by step, in float64; its noise is drawn
    from the environment's generator.

    ## Action Space

    `action`: int64 of shape `[B]`: 0 pushes left, 1 right, with 10 N.

    ## Observation Space

    `observation`: float32 of shape `[B, 6]`: position of the cart in m, angle of the pole in rad,
    both with noise, at the reset, too, and clipped to twice the limits; previous action (2), time
    flags (2).

    ## Rewards

    1/H per step, H the longest episode.

    ## Starting State

    Position, velocity, angle and angular velocity uniform in [-0.05, 0.05].
    `reset(TensorDict({"state": state}), set_state=True)` takes them, float64 of shape `[B, 4]`.

    ## Episode End

    Terminated beyond 2.4 m or 12 degrees, without the noise; truncated after H = 200 steps at
    every level.

    Args:
        num_envs: number of environments B.
        level: `"easy"`, `"medium"` or `"hard"`.
        max_steps: length of an episode; `None` is the level's.
        noise: standard deviation of what is added to the two numbers that are seen, which are then
            clipped to twice the limits; `None` is the level's: 0.1, 0.2, 0.3.
        previous_action: append the previous action to the observation.
        antialias: append whether this is the reset to the observation.
        seed: seed of the environment's own generator; `None` draws one from torch's default
            generator.
        device: device of all tensors, state and generator included.

    Raises:
        ValueError: `level` is unknown, `max_steps` not positive or `noise` negative.

    Examples:
        >>> from torchrl_shm.envs.popgym import NoisyPositionOnlyCartPoleEnv
        >>> NoisyPositionOnlyCartPoleEnv(num_envs=3, level="hard").noise
        0.3

    ## Version History

    - v0: as in popgym 1.0.7.
    """

    _STEPS: ClassVar[dict[str, int]] = {"easy": 200, "medium": 200, "hard": 200}
    _NOISE: ClassVar[dict[str, float]] = {"easy": 0.1, "medium": 0.2, "hard": 0.3}
