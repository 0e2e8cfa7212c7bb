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
from torchrl_shm.figures.statistics import (
    interquartile_mean,
    performance_profile,
    probability_of_improvement,
    stratified_interval,
)
from torchrl_shm.figures.suite import (
    SuiteScores,
    load_suite,
    plot_gaps,
    plot_suite,
    suite_table,
)

__all__ = [
    "Episode",
    "Run",
    "SuiteScores",
    "comparison_table",
    "confidence_band",
    "interquartile_mean",
    "load_runs",
    "load_suite",
    "performance_profile",
    "plot_comparison",
    "plot_gaps",
    "plot_learning_curve",
    "plot_suite",
    "plot_trajectories",
    "probability_of_improvement",
    "record_episode",
    "save_animation",
    "stratified_interval",
    "suite_table",
]
