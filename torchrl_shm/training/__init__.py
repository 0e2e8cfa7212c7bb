"""What recipes share: collection, evaluation, run folder, plots. Not the loss, not the update."""

from torchrl_shm.training.animation import Episode, record_episode, save_animation
from torchrl_shm.training.checkpoints import Checkpoints, Which
from torchrl_shm.training.collection import CollectorBackend, RowCollector
from torchrl_shm.training.comparison import (
    Run,
    comparison_table,
    confidence_band,
    load_runs,
    plot_comparison,
)
from torchrl_shm.training.evaluation import Evaluation, evaluate, make_test_env
from torchrl_shm.training.finite import FiniteCheck, OnNonfinite
from torchrl_shm.training.loggers import LoggerKind, make_logger
from torchrl_shm.training.plain_policy import PlainPolicy
from torchrl_shm.training.plots import plot_learning_curve, plot_trajectories
from torchrl_shm.training.policy import EnvSpecs, MemoryFactory, get_behaviour, make_actor_critic
from torchrl_shm.training.run_folder import RunFolder
from torchrl_shm.training.run_guard import Interrupted, RunGuard, Stateful
from torchrl_shm.training.sizes import MemorySize, measure_memory

__all__ = [
    "Checkpoints",
    "CollectorBackend",
    "EnvSpecs",
    "Episode",
    "Evaluation",
    "FiniteCheck",
    "Interrupted",
    "LoggerKind",
    "MemoryFactory",
    "MemorySize",
    "OnNonfinite",
    "PlainPolicy",
    "RowCollector",
    "Run",
    "RunFolder",
    "RunGuard",
    "Stateful",
    "Which",
    "comparison_table",
    "confidence_band",
    "evaluate",
    "get_behaviour",
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
