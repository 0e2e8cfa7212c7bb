"""The tasks of POPGym as batched tensor environments."""

from torchrl_shm.envs.popgym._base import Level, POPGymEnv
from torchrl_shm.envs.popgym.autoencode import AutoencodeEnv
from torchrl_shm.envs.popgym.battleship import BattleshipEnv
from torchrl_shm.envs.popgym.cart_pole import (
    NoisyPositionOnlyCartPoleEnv,
    PositionOnlyCartPoleEnv,
    VelocityOnlyCartPoleEnv,
)
from torchrl_shm.envs.popgym.concentration import ConcentrationEnv
from torchrl_shm.envs.popgym.count_recall import CountRecallEnv
from torchrl_shm.envs.popgym.higher_lower import HigherLowerEnv
from torchrl_shm.envs.popgym.mine_sweeper import MineSweeperEnv
from torchrl_shm.envs.popgym.multiarmed_bandit import MultiarmedBanditEnv
from torchrl_shm.envs.popgym.pendulum import (
    NoisyPositionOnlyPendulumEnv,
    PositionOnlyPendulumEnv,
)
from torchrl_shm.envs.popgym.repeat_first import RepeatFirstEnv
from torchrl_shm.envs.popgym.repeat_previous import RepeatPreviousEnv

__all__ = [
    "AutoencodeEnv",
    "BattleshipEnv",
    "ConcentrationEnv",
    "CountRecallEnv",
    "HigherLowerEnv",
    "Level",
    "MineSweeperEnv",
    "MultiarmedBanditEnv",
    "NoisyPositionOnlyCartPoleEnv",
    "NoisyPositionOnlyPendulumEnv",
    "POPGymEnv",
    "PositionOnlyCartPoleEnv",
    "PositionOnlyPendulumEnv",
    "RepeatFirstEnv",
    "RepeatPreviousEnv",
    "VelocityOnlyCartPoleEnv",
]
