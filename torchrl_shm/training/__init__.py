"""The life of a run: collection, checkpoints, evaluation. Not the update loop."""

from torchrl_shm.renamed import refuse_old_name
from torchrl_shm.training.checkpoints import Checkpoints, Which
from torchrl_shm.training.collection import CollectorBackend, RolloutCollector
from torchrl_shm.training.compiling import Compile, Compiler
from torchrl_shm.training.evaluation import Evaluation, evaluate, make_test_env
from torchrl_shm.training.experiment import Experiment
from torchrl_shm.training.finite import FiniteCheck, OnNonfinite
from torchrl_shm.training.imitation import SelfImitation
from torchrl_shm.training.loggers import LoggerKind, make_logger
from torchrl_shm.training.ppo_loss import LeanClipPPOLoss, check_ratio
from torchrl_shm.training.run import Stateful, TrainingRun
from torchrl_shm.training.run_folder import RunFolder

__all__ = [
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
    "RolloutCollector",
    "RunFolder",
    "SelfImitation",
    "Stateful",
    "TrainingRun",
    "Which",
    "check_ratio",
    "evaluate",
    "make_logger",
    "make_test_env",
]


def __getattr__(name: str) -> object:
    return refuse_old_name(__name__, name)
