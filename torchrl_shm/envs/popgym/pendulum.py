"""Pendulum with the velocity hidden, or with noise on what is seen."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from torchrl_shm.envs.contract import State, Transition
from torchrl_shm.envs.popgym._base import Level
from torchrl_shm.envs.popgym._control import ControlEnv


class PositionOnlyPendulumEnv(ControlEnv):
    """Swing a pendulum up and see its direction only.

    ## Description

    Gymnasium's Pendulum without its angular velocity. POPGym's `PositionOnlyPendulum`
    (`popgym/envs/position_only_pendulum.py`), step by step, in float64; with `noise` it is
    `NoisyPositionOnlyPendulum`.

    ## Action Space

    `action`: float32 of shape `[B, 1]`, a torque in [-2, 2] N m; clipped.

    ## Observation Space

    `observation`: float32 of shape `[B, 5]`: cosine and sine of the angle, previous action (1),
    time flags (2).

    ## Rewards

    Gymnasium's cost c = angle² + 0.1 velocity² + 0.001 torque² as (8.137 - c) / 8.137 / H: in
    [-1, 1] over an episode of H steps.

    ## Starting State

    Angle uniform in [-pi, pi], velocity in [-1, 1] rad/s. `reset(TensorDict({"state": state}),
    set_state=True)` takes both, float64 of shape `[B, 2]`.

    ## Episode End

    Truncated after H = 200, 150, 100 steps.

    Args:
        num_envs: number of environments B.
        level: `"easy"`, `"medium"` or `"hard"`.
        max_steps: length of an episode; `None` is the level's.
        noise: standard deviation of what is added to cosine and sine, which are then clipped to
            [-1, 1]; `None` is the level's: 0.
        previous_action: append the previous action to the observation.
        antialias: append whether this is the reset to the observation.
        seed: seed of the environment's own generator; `None` draws one from torch's default
            generator.
        device: device of all tensors, state and generator included.

    Raises:
        ValueError: `level` is unknown, `max_steps` not positive or `noise` negative.

    Examples:
        >>> from torchrl_shm.envs.popgym import PositionOnlyPendulumEnv
        >>> PositionOnlyPendulumEnv(num_envs=3).rollout(3)["observation"].shape
        torch.Size([3, 3, 5])

    ## Version History

    - v0: as in popgym 1.0.7.
    """

    _STEPS: ClassVar[dict[str, int]] = {"easy": 200, "medium": 150, "hard": 100}
    _STATE_SIZE = 2

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
        self._prepare(max_steps, noise, [1.0, 1.0], [math.pi, 1.0])
        # the cost of hanging down at full speed and torque, as popgym has it
        self._half = 16.2736044 / 2
        scale = 1 / self.max_steps
        rewards = (-scale, scale)
        self._specify(blocks=[], actions=[], rewards=rewards, seed=seed, bound=2.0, numbers=2)

    def _begin(self, layout: State) -> State:
        return {"state": layout["state"]}

    def _play(self, state: State, action: Tensor) -> Transition:
        angle, speed = state["state"].unbind(-1)
        # what depends on the torque alone is rounded to float32, as in the original
        torque = action.squeeze(-1).float().clamp(-2, 2)
        wrapped = (angle + math.pi).remainder_(2 * math.pi).sub_(math.pi)
        cost = wrapped.square_().add_(speed.square().mul_(0.1))
        cost = cost.add_(torque.square().mul_(0.001))
        # gravity 10 m/s², length 1 m, mass 1 kg, steps of 0.05 s
        push = angle.sin().mul_(15).add_(3 * torque)
        speed = push.mul_(0.05).add_(speed).clamp_(-8, 8)
        new = torch.stack([angle + speed * 0.05, speed], -1)
        reward = ((self._half - cost) / self._half / self.max_steps).unsqueeze(-1)
        return Transition({"state": new}, reward, None, state["step"] >= self.max_steps - 1)

    def _features(self, state: State) -> Tensor:
        angle = state["state"][:, 0]
        return self._see(torch.stack([angle.cos(), angle.sin()], -1))


class NoisyPositionOnlyPendulumEnv(PositionOnlyPendulumEnv):
    """Swing a pendulum up and see its direction with noise.

    ## Description

    Gymnasium's Pendulum without its angular velocity and with noise on its direction, of which many
    have to be averaged. POPGym's `NoisyPositionOnlyPendulum`
    (`popgym/envs/noisy_position_only_pendulum.py`), step by step, in float64; its noise is drawn
    from the environment's generator.

    ## Action Space

    `action`: float32 of shape `[B, 1]`, a torque in [-2, 2] N m; clipped.

    ## Observation Space

    `observation`: float32 of shape `[B, 5]`: cosine and sine of the angle, both with noise, at the
    reset, too, and clipped to [-1, 1]; previous action (1), time flags (2).

    ## Rewards

    Gymnasium's cost c = angle² + 0.1 velocity² + 0.001 torque², without the noise, as
    (8.137 - c) / 8.137 / H: in [-1, 1] over an episode of H steps.

    ## Starting State

    Angle uniform in [-pi, pi], velocity in [-1, 1] rad/s. `reset(TensorDict({"state": state}),
    set_state=True)` takes both, float64 of shape `[B, 2]`.

    ## Episode End

    Truncated after H = 200 steps at every level.

    Args:
        num_envs: number of environments B.
        level: `"easy"`, `"medium"` or `"hard"`.
        max_steps: length of an episode; `None` is the level's.
        noise: standard deviation of what is added to the two numbers that are seen, which are then
            clipped to [-1, 1]; `None` is the level's: 0.1, 0.2, 0.3.
        previous_action: append the previous action to the observation.
        antialias: append whether this is the reset to the observation.
        seed: seed of the environment's own generator; `None` draws one from torch's default
            generator.
        device: device of all tensors, state and generator included.

    Raises:
        ValueError: `level` is unknown, `max_steps` not positive or `noise` negative.

    Examples:
        >>> from torchrl_shm.envs.popgym import NoisyPositionOnlyPendulumEnv
        >>> NoisyPositionOnlyPendulumEnv(num_envs=3).noise
        0.1

    ## Version History

    - v0: as in popgym 1.0.7.
    """

    _STEPS: ClassVar[dict[str, int]] = {"easy": 200, "medium": 200, "hard": 200}
    _NOISE: ClassVar[dict[str, float]] = {"easy": 0.1, "medium": 0.2, "hard": 0.3}
