"""Gymnasium's pendulum without its angular velocity: what is seen is the cosine and the sine."""

import gymnasium
import numpy as np


class Positions(gymnasium.ObservationWrapper):
    """Leaves the first two of three numbers."""

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        self.observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        """Leave the velocity out."""
        return observation[:2]


def make() -> gymnasium.Env:
    """Make the environment, without a time limit."""
    return Positions(gymnasium.make("Pendulum-v1").unwrapped)


gymnasium.register("PendulumPositions-v0", entry_point=make, max_episode_steps=200)
