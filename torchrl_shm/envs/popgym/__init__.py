"""The tasks of POPGym as batched tensor environments."""

from torchrl_shm.envs.popgym._base import Level, POPGymEnv
from torchrl_shm.envs.popgym.boards import BattleshipEnv, MineSweeperEnv
from torchrl_shm.envs.popgym.cards import (
    AutoencodeEnv,
    ConcentrationEnv,
    CountRecallEnv,
    HigherLowerEnv,
    RepeatFirstEnv,
    RepeatPreviousEnv,
)
from torchrl_shm.envs.popgym.control import (
    MultiarmedBanditEnv,
    NoisyPositionOnlyCartPoleEnv,
    NoisyPositionOnlyPendulumEnv,
    PositionOnlyCartPoleEnv,
    PositionOnlyPendulumEnv,
    VelocityOnlyCartPoleEnv,
)

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
