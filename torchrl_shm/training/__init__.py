"""What recipes share: collection, evaluation, run folder, plots. Not the loss, not the update."""

from torchrl_shm.training.animation import Episode, record_episode, save_animation
from torchrl_shm.training.collection import CollectorBackend, RowCollector
from torchrl_shm.training.comparison import (
    Run,
    comparison_table,
    confidence_band,
    load_runs,
    plot_comparison,
)
from torchrl_shm.training.evaluation import Evaluation, evaluate, make_test_env
from torchrl_shm.training.loggers import LoggerKind, make_logger
from torchrl_shm.training.plots import plot_learning_curve, plot_trajectories
from torchrl_shm.training.policy import MemoryFactory, make_actor_critic
from torchrl_shm.training.run_folder import RunFolder
from torchrl_shm.training.sizes import MemorySize, measure_memory

__all__ = [
    "CollectorBackend",
    "Episode",
    "Evaluation",
    "LoggerKind",
    "MemoryFactory",
    "MemorySize",
    "RowCollector",
    "Run",
    "RunFolder",
    "comparison_table",
    "confidence_band",
    "evaluate",
    "load_runs",
    "make_actor_critic",
    "make_logger",
    "make_test_env",
    "measure_memory",
    "plot_comparison",
    "plot_learning_curve",
    "plot_trajectories",
    "record_episode",
    "save_animation",
]
