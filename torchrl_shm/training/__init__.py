"""The life of a run: collection, checkpoints, evaluation. Not the loss, not the update loop."""

from torchrl_shm.training.checkpoints import Checkpoints, Which
from torchrl_shm.training.collection import CollectorBackend, RolloutCollector
from torchrl_shm.training.evaluation import Evaluation, evaluate, make_test_env
from torchrl_shm.training.finite import FiniteCheck, OnNonfinite
from torchrl_shm.training.loggers import LoggerKind, make_logger
from torchrl_shm.training.run_folder import RunFolder
from torchrl_shm.training.run_guard import Interrupted, RunGuard, Stateful

__all__ = [
    "Checkpoints",
    "CollectorBackend",
    "Evaluation",
    "FiniteCheck",
    "Interrupted",
    "LoggerKind",
    "OnNonfinite",
    "RolloutCollector",
    "RunFolder",
    "RunGuard",
    "Stateful",
    "Which",
    "evaluate",
    "make_logger",
    "make_test_env",
]
