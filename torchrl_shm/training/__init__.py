"""The life of a run: collection, checkpoints, evaluation. Not the update loop."""

from torchrl_shm.renamed import refuse_old_name
from torchrl_shm.training.advantages import change_lmbda
from torchrl_shm.training.checkpoints import Checkpoints, Which
from torchrl_shm.training.collection import CollectorBackend, RolloutCollector
from torchrl_shm.training.compiling import Compile, Compiler
from torchrl_shm.training.evaluation import Evaluation, evaluate, make_test_env
from torchrl_shm.training.experiment import Experiment
from torchrl_shm.training.finite import FiniteCheck, OnNonfinite
from torchrl_shm.training.imitation import SelfImitation
from torchrl_shm.training.loggers import LoggerKind, make_logger
from torchrl_shm.training.ppo_loss import LeanClipPPOLoss, check_ratio
from torchrl_shm.training.ranks import (
    average_buffers,
    average_gradients,
    largest,
    num_ranks,
    standardize,
)
from torchrl_shm.training.replay import ReplayStorage, SequenceReplay
from torchrl_shm.training.run import TrainingRun
from torchrl_shm.training.run_folder import RunFolder
from torchrl_shm.training.run_state import Stateful
from torchrl_shm.training.sac_loss import (
    ActorDivergence,
    SlowCritic,
    UnrolledDiscreteSACLoss,
    UnrolledSACLoss,
    make_sac_loss,
    unroll_features,
)

__all__ = [
    "ActorDivergence",
    "Checkpoints",
    "CollectorBackend",
    "Compile",
    "Compiler",
    "Evaluation",
    "Experiment",
    "FiniteCheck",
    "LeanClipPPOLoss",
    "LoggerKind",
    "OnNonfinite",
    "ReplayStorage",
    "RolloutCollector",
    "RunFolder",
    "SelfImitation",
    "SequenceReplay",
    "SlowCritic",
    "Stateful",
    "TrainingRun",
    "UnrolledDiscreteSACLoss",
    "UnrolledSACLoss",
    "Which",
    "average_buffers",
    "average_gradients",
    "change_lmbda",
    "check_ratio",
    "evaluate",
    "largest",
    "make_logger",
    "make_sac_loss",
    "make_test_env",
    "num_ranks",
    "standardize",
    "unroll_features",
]


def __getattr__(name: str) -> object:
    return refuse_old_name(__name__, name)
