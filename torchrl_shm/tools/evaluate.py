"""Evaluate the checkpoint of a run on every test task and draw what the agent does."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from torchrl_shm.configs import instantiate_saved
from torchrl_shm.figures import plot_trajectories, record_episode, save_animation
from torchrl_shm.training import RunFolder, evaluate, make_test_env


def main(arguments: Sequence[str]) -> dict[str, Any]:
    """Evaluate, draw an episode and, in the plane, paths into the run folder; print the results.

    Args:
        arguments: the options.

    Returns:
        The results, which are printed as JSON.

    Raises:
        FileNotFoundError: the folder is not that of a run, or has no checkpoint yet.
        ValueError: the run was made by an older version.
    """
    parser = argparse.ArgumentParser("torchrl-shm evaluate", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of the run, which also gets the pictures")
    parser.add_argument("--checkpoint", choices=["latest", "best"], default="latest")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--num-paths", type=int, default=8, help="paths, for tasks in the plane")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the environments and of random gates"
    )
    options = parser.parse_args(arguments)
    if options.num_paths < 1:
        parser.error(f"--num-paths {options.num_paths} must be at least 1")
    torch.set_num_threads(options.threads)
    parts = instantiate_saved(options.run)
    experiment, device = parts["experiment"], options.device
    env = make_test_env(parts["env"], num_episodes=experiment.num_test_episodes, device=device)
    operator = parts["network"](env, parts["memory"], device=device)
    state = RunFolder(options.run).checkpoints.load(options.checkpoint, map_location=device)
    operator.load_state_dict(state["operator"])
    policy = operator.get_policy_operator()
    result = evaluate(policy, env, seed=options.seed)

    pictures = [options.run / "episode.gif"]
    save_animation(record_episode(policy, env, seed=options.seed), pictures[0])
    paths = options.run / "trajectories.png"
    if plot_trajectories(env, result.rollout, paths, num_paths=options.num_paths):
        pictures.append(paths)
    summary = {
        **experiment.names,
        "seed": experiment.seed,
        "frames": state["frames"],
        "eval_return": round(result.mean_return, 4),
        "eval_success": result.success_rate,
        "pictures": [str(picture) for picture in pictures],
    }
    print(json.dumps(summary), flush=True)
    return summary
