"""Two classic tasks of gymnasium whose velocities are left out."""

import gymnasium
import numpy as np


class Positions(gymnasium.ObservationWrapper):
    """Leaves cosine and sine of the pendulum's angle, the first two of three numbers."""

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        self.observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        """Leave the velocity out."""
        return observation[:2]


class CartAndPole(gymnasium.ObservationWrapper):
    """Leaves the place of the cart and the angle of the pole."""

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        self.observation_space = gymnasium.spaces.Box(-5, 5, (2,), np.float32)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        """Leave both velocities out."""
        return observation[[0, 2]]


def make() -> gymnasium.Env:
    """Make the environment, without a time limit."""
    return Positions(gymnasium.make("Pendulum-v1").unwrapped)


def make_cart_pole() -> gymnasium.Env:
    """Make the environment, without a time limit."""
    return CartAndPole(gymnasium.make("CartPole-v1").unwrapped)


gymnasium.register("PendulumPositions-v0", entry_point=make, max_episode_steps=200)
gymnasium.register("CartPolePositions-v0", entry_point=make_cart_pole, max_episode_steps=500)
