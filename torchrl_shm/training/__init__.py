"""What recipes share: collection, evaluation, run folder, plots. Not the loss, not the update."""

from torchrl_shm.training.collection import CollectorBackend, RowCollector
from torchrl_shm.training.evaluation import Evaluation, evaluate, make_test_env
from torchrl_shm.training.loggers import LoggerKind, make_logger
from torchrl_shm.training.plots import plot_learning_curve, plot_trajectories
from torchrl_shm.training.policy import MemoryFactory, make_actor_critic
from torchrl_shm.training.run_folder import RunFolder

__all__ = [
    "CollectorBackend",
    "Evaluation",
    "LoggerKind",
    "MemoryFactory",
    "RowCollector",
    "RunFolder",
    "evaluate",
    "make_actor_critic",
    "make_logger",
    "make_test_env",
    "plot_learning_curve",
    "plot_trajectories",
]
