"""Control with half of the state hidden, and bandits: the other tasks of POPGym."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from torchrl_shm.envs._base import Entry, State
from torchrl_shm.envs.popgym._base import Level, Outcome, POPGymEnv, level_value


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
        self.num_arms: int = level_value(num_arms, {"easy": 10, "medium": 20, "hard": 30}, level)
        self.max_steps: int = level_value(
            max_steps, {"easy": 200, "medium": 400, "hard": 600}, level
        )
        for name in ("num_arms", "max_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        scale = 1 / self.max_steps
        self._specify(blocks=[2], actions=[self.num_arms], rewards=(-scale, scale), seed=seed)

    def _layout(self) -> dict[str, Entry]:
        return {"arms": Entry((self.num_arms,), torch.float32)}

    def _draw(self, count: int) -> State:
        shape = (count, self.num_arms)
        return {"arms": torch.rand(shape, generator=self._generator, device=self.device)}

    def _check_layout(self, layout: State) -> None:
        low, high = float(layout["arms"].min()), float(layout["arms"].max())
        if not 0 <= low <= high <= 1:
            raise ValueError(f"arms are probabilities in [0, 1], got {low} to {high}")

    def _begin(self, layout: State) -> State:
        arms = layout["arms"]
        return {"arms": arms, "paid": torch.zeros_like(arms[:, :1], dtype=torch.int64)}

    def _chance(self) -> Tensor:
        """A number in [0, 1) per environment, `[B, 1]`."""
        shape = (self.num_envs, 1)
        return torch.rand(shape, generator=self._generator, device=self.device)

    def _play(self, state: State, action: Sequence[Tensor]) -> Outcome:
        paid = self._chance() < state["arms"].gather(1, action[0].unsqueeze(-1))
        reward = (paid.double() * 2 - 1) / self.max_steps
        new = {**state, "paid": paid.long()}
        return Outcome(new, reward, None, state["step"] >= self.max_steps - 1)

    def _features(self, state: State) -> Tensor:
        return state["paid"]


class _ControlEnv(POPGymEnv):
    """Numbers instead of categories, with noise on what is seen if there is any."""

    _STEPS: ClassVar[dict[str, int]]
    _NOISE: ClassVar[dict[str, float]] = {"easy": 0.0, "medium": 0.0, "hard": 0.0}
    _STATE_SIZE: ClassVar[int]
    _tensors = (*POPGymEnv._tensors, "_bound", "_spread")

    def _prepare(
        self,
        max_steps: int | None,
        noise: float | None,
        bound: Sequence[float],
        spread: Sequence[float],
    ) -> None:
        self.max_steps: int = level_value(max_steps, self._STEPS, self.level)
        self.noise: float = level_value(noise, self._NOISE, self.level)
        if self.max_steps < 1:
            raise ValueError(f"max_steps must be at least 1, got {self.max_steps}")
        if not 0 <= self.noise < math.inf:
            raise ValueError(f"noise must be finite and not negative, got {self.noise}")
        # what is seen stays within this once there is noise on it
        self._bound = torch.tensor(bound, device=self.device)
        self._spread = torch.tensor(spread, dtype=torch.float64, device=self.device)

    def _layout(self) -> dict[str, Entry]:
        return {"state": Entry((self._STATE_SIZE,), torch.float64)}

    def _draw(self, count: int) -> State:
        numbers = torch.rand(
            count, self._STATE_SIZE, dtype=torch.float64, generator=self._generator,
            device=self.device,
        )  # fmt: skip
        return {"state": (numbers * 2 - 1) * self._spread}

    def _check_layout(self, layout: State) -> None:
        if not bool(layout["state"].isfinite().all()):
            raise ValueError("state must be finite")

    def _normal(self, like: Tensor) -> Tensor:
        """Standard normal numbers, float64."""
        return torch.randn(
            like.shape, dtype=torch.float64, generator=self._generator, device=self.device
        )

    def _see(self, seen: Tensor) -> Tensor:
        """What is seen of numbers `[B, 2]`, with noise."""
        seen = seen.float()
        if not self.noise:
            return seen
        noisy = seen + (self._normal(seen) * self.noise).float()
        return torch.maximum(torch.minimum(noisy, self._bound), -self._bound)

    def _features(self, state: State) -> Tensor:
        return state["seen"]


class PositionOnlyCartPoleEnv(_ControlEnv):
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
        self._limits = (2.4, 12 * 2 * math.pi / 360)
        self._prepare(max_steps, noise, [2 * limit for limit in self._limits], [0.05] * 4)
        scale = 1 / self.max_steps
        self._specify(blocks=[], actions=[2], rewards=(0, scale), seed=seed, numbers=2)

    def _begin(self, layout: State) -> State:
        state = layout["state"]
        # positions at the reset, whatever is seen later: popgym's velocity-only task does so, too
        return {"state": state, "seen": self._see(state[:, ::2])}

    def _play(self, state: State, action: Sequence[Tensor]) -> Outcome:
        x, speed, angle, turn = state["state"].unbind(-1)
        force = action[0].double() * 20 - 10
        sine, cosine = angle.sin(), angle.cos()
        # masses 1 and 0.1 kg, half a pole of 0.5 m, steps of 0.02 s, Euler's method
        push = (force + 0.1 * 0.5 * turn.square() * sine) / 1.1
        pull = (9.8 * sine - cosine * push) / (0.5 * (4.0 / 3.0 - 0.1 * cosine.square() / 1.1))
        acceleration = push - 0.1 * 0.5 * pull * cosine / 1.1
        new = torch.stack(
            [
                x + 0.02 * speed,
                speed + 0.02 * acceleration,
                angle + 0.02 * turn,
                turn + 0.02 * pull,
            ],
            -1,
        )
        far, tilted = (
            new[:, i].abs() > limit for i, limit in zip((0, 2), self._limits, strict=True)
        )
        reward = torch.full_like(new[:, :1], 1 / self.max_steps)
        seen = self._see(new[:, self._SEEN])
        truncated = state["step"] >= self.max_steps - 1
        return Outcome(
            {"state": new, "seen": seen, "step": state["step"]},
            reward, (far | tilted).unsqueeze(-1), truncated,
        )  # fmt: skip


class VelocityOnlyCartPoleEnv(PositionOnlyCartPoleEnv):
    """Balance a pole on a cart and see velocities only.

    POPGym's `VelocityOnlyCartPole` (`popgym/envs/velocity_only_cartpole.py`), step by step. As
    there, the observation at the reset is the positions. Everything else is as in
    `PositionOnlyCartPoleEnv`.

    Examples:
        >>> from torchrl_shm.envs.popgym import VelocityOnlyCartPoleEnv
        >>> VelocityOnlyCartPoleEnv(num_envs=3, level="hard").max_steps
        600
    """

    _SEEN: ClassVar[slice] = slice(1, None, 2)


class NoisyPositionOnlyCartPoleEnv(PositionOnlyCartPoleEnv):
    """Balance a pole on a cart and see positions with noise.

    POPGym's `NoisyPositionOnlyCartPole` (`popgym/envs/noisy_position_only_cartpole.py`): noise of
    0.1, 0.2, 0.3 by level, 200 steps at every level. Everything else is as in
    `PositionOnlyCartPoleEnv`.

    Examples:
        >>> from torchrl_shm.envs.popgym import NoisyPositionOnlyCartPoleEnv
        >>> NoisyPositionOnlyCartPoleEnv(num_envs=3, level="hard").noise
        0.3
    """

    _STEPS: ClassVar[dict[str, int]] = {"easy": 200, "medium": 200, "hard": 200}
    _NOISE: ClassVar[dict[str, float]] = {"easy": 0.1, "medium": 0.2, "hard": 0.3}


class PositionOnlyPendulumEnv(_ControlEnv):
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
        return {"state": layout["state"], "seen": self._see(_direction(layout["state"]))}

    def _play(self, state: State, action: Sequence[Tensor]) -> Outcome:
        angle, speed = state["state"].unbind(-1)
        # what depends on the torque alone is rounded to float32, as in the original
        torque = action[0].squeeze(-1).float().clamp(-2, 2)
        wrapped = (angle + math.pi).remainder(2 * math.pi) - math.pi
        cost = wrapped.square() + 0.1 * speed.square() + (0.001 * torque.square()).double()
        # gravity 10 m/s², length 1 m, mass 1 kg, steps of 0.05 s
        speed = (speed + (15 * angle.sin() + (3 * torque).double()) * 0.05).clamp(-8, 8)
        new = torch.stack([angle + speed * 0.05, speed], -1)
        reward = ((self._half - cost) / self._half / self.max_steps).unsqueeze(-1)
        truncated = state["step"] >= self.max_steps - 1
        seen = self._see(_direction(new))
        return Outcome({"state": new, "seen": seen, "step": state["step"]}, reward, None, truncated)


class NoisyPositionOnlyPendulumEnv(PositionOnlyPendulumEnv):
    """Swing a pendulum up and see its direction with noise.

    POPGym's `NoisyPositionOnlyPendulum` (`popgym/envs/noisy_position_only_pendulum.py`): noise of
    0.1, 0.2, 0.3 by level, 200 steps at every level. Everything else is as in
    `PositionOnlyPendulumEnv`.

    Examples:
        >>> from torchrl_shm.envs.popgym import NoisyPositionOnlyPendulumEnv
        >>> NoisyPositionOnlyPendulumEnv(num_envs=3).noise
        0.1
    """

    _STEPS: ClassVar[dict[str, int]] = {"easy": 200, "medium": 200, "hard": 200}
    _NOISE: ClassVar[dict[str, float]] = {"easy": 0.1, "medium": 0.2, "hard": 0.3}


def _direction(state: Tensor) -> Tensor:
    angle = state[:, 0]
    return torch.stack([angle.cos(), angle.sin()], -1)
