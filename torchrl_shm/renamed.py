"""Old names, each with the new one; goes with the first release."""

from __future__ import annotations

OPTIONS = {
    "algo.row_length": "algo.rollout_length",
    "algo.rows_per_minibatch": "algo.sequences_per_minibatch",
    "algo.anneal": "algo.anneal_lr",
    "algo.total_frames": "experiment.total_frames",
    "algo.num_envs": "experiment.num_envs",
    "algo.num_test_episodes": "experiment.num_test_episodes",
    "algo.checkpoint_interval": "experiment.checkpoint_interval",
    "algo.keep_checkpoints": "experiment.keep_checkpoints",
    "algo.on_nonfinite": "experiment.on_nonfinite",
    "algo.policy_keys": "network.policy_keys",
    "algo.embedding_size": "network.embedding_size",
    "algo.hidden_sizes": "network.hidden_sizes",
    "algo.init_scale": "network.init_scale",
    "algo.shared_memory": "network.shared_memory",
    "memory.normalised": "memory.normalized",
    "seed": "experiment.seed",
    "device": "experiment.device",
    "threads": "experiment.threads",
    "resume": "experiment.resume",
    "names": "experiment.names",
    "run_dir": "experiment.run_dir",
}
"""Options of the command line."""


_MOVED = {
    "torchrl_shm.networks": (
        "torchrl_shm.training", "EnvSpecs", "MemoryFactory", "make_actor_critic",
    ),
    "torchrl_shm.figures": (
        "torchrl_shm.training", "Episode", "Run", "comparison_table", "confidence_band",
        "load_runs", "plot_comparison", "plot_learning_curve", "plot_trajectories",
        "record_episode", "save_animation",
    ),
    "torchrl_shm.sharing": ("torchrl_shm.configs", "export_policy", "load_policy"),
    "torchrl_shm.modules": ("torchrl_shm.training", "MemorySize", "measure_memory"),
}  # fmt: skip
NAMES = {
    "torchrl_shm.training.RowCollector": "torchrl_shm.training.RolloutCollector",
    "torchrl_shm.training.RunGuard": "torchrl_shm.training.TrainingRun",
    "torchrl_shm.training.Interrupted": "SystemExit, which a signal raises in a TrainingRun",
    "torchrl_shm.training.PlainPolicy": "torchrl_shm.sharing.PlainPolicy",
    "torchrl_shm.training.get_behaviour": "torchrl_shm.networks.get_behavior",
    "torchrl_shm.configs.run_on_run": "a tool of `torchrl-shm`",
    "torchrl_shm.configs.save_config": "torchrl_shm.training.TrainingRun.open",
    "torchrl_shm.modules.make_rnn": "torchrl_shm.modules.make_memory(GRU, ...), or of LSTM",
    "torchrl_shm.modules.make_gru": "torchrl_shm.modules.make_memory(GRU, ...)",
    "torchrl_shm.modules.make_lstm": "torchrl_shm.modules.make_memory(LSTM, ...)",
    **{f"{old}.{name}": f"{new}.{name}" for new, (old, *names) in _MOVED.items() for name in names},
}
"""Names of Python."""


def refuse_old_name(module: str, name: str) -> None:
    """Raise for a name that a package had; its `__getattr__` calls this.

    Args:
        module: the package.
        name: the name that it does not have.

    Raises:
        ImportError: the name is an old one. No AttributeError, whose text `from ... import` hides.
        AttributeError: it is unknown.
    """
    if new := NAMES.get(f"{module}.{name}"):
        raise ImportError(f"{module}.{name} is now {new}")
    raise AttributeError(f"module {module!r} has no attribute {name!r}")


def refuse_old_options(arguments: list[str]) -> None:
    """End with one line per option that has an old name.

    Args:
        arguments: the command line.

    Raises:
        SystemExit: there are such options.
    """
    found = [
        f"{name} is now {OPTIONS[name]}: write {OPTIONS[name]}={value}"
        for name, equals, value in (x.lstrip("+~").partition("=") for x in arguments)
        if equals and name in OPTIONS
    ]
    if found:
        raise SystemExit("\n".join(found))
