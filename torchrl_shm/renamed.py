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
    "seed": "experiment.seed",
    "device": "experiment.device",
    "threads": "experiment.threads",
    "resume": "experiment.resume",
    "names": "experiment.names",
    "run_dir": "experiment.run_dir",
}
"""Options of the command line."""


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
