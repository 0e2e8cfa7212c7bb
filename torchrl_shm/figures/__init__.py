"""Pictures of runs: learning curves, comparisons, paths, moving pictures of episodes."""

from torchrl_shm.figures.animation import Episode, record_episode, save_animation
from torchrl_shm.figures.comparison import (
    Run,
    comparison_table,
    confidence_band,
    load_runs,
    plot_comparison,
)
from torchrl_shm.figures.plots import plot_learning_curve, plot_trajectories

__all__ = [
    "Episode",
    "Run",
    "comparison_table",
    "confidence_band",
    "load_runs",
    "plot_comparison",
    "plot_learning_curve",
    "plot_trajectories",
    "record_episode",
    "save_animation",
]
