"""A module that registers environments that cannot be played for long, for `env.id=module:Id`."""

from __future__ import annotations

from functools import partial

import numpy as np
from gymnasium import register
from gymnasium.spaces import Discrete, Tuple

from tests.envs._gym_probe import Probe

_NAN = np.full(2, np.nan, np.float32)
register("Tuple-v0", partial(Probe, Tuple([Discrete(2)])), disable_env_checker=True)
register("Breaks-v0", partial(Probe, Discrete(2), break_at=15), disable_env_checker=True)
register("NaNReward-v0", partial(Probe, Discrete(2), reward=np.nan), disable_env_checker=True)
register("NaN-v0", partial(Probe, Discrete(2), first=_NAN), disable_env_checker=True)
