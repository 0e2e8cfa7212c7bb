"""Evaluate a run, or a shared policy, on every test task and draw what the agent does."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tensordict.nn import TensorDictModuleBase
from torchrl.envs import EnvBase

from torchrl_shm.checks import check_device
from torchrl_shm.configs import instantiate_saved
from torchrl_shm.envs import ask_env
from torchrl_shm.figures import plot_trajectories, record_episode, save_animation
from torchrl_shm.sharing import load_policy, load_task
from torchrl_shm.sharing.policy_file import CONFIG_FILE, read_policy_file
from torchrl_shm.tools._parser import Parser, count
from torchrl_shm.training import Experiment, RunFolder, evaluate, make_test_env
from torchrl_shm.training.weights import load_weights


def main(arguments: Sequence[str]) -> dict[str, Any]:
    """Evaluate, draw an episode and, in the plane, paths; print the results.

    Args:
        arguments: the options.

    Returns:
        The results, which are printed as JSON.

    Raises:
        FileNotFoundError: the folder is neither that of a run with a checkpoint nor that of a
            policy.
        ValueError: it was made by an older version, or the environment of the policy is not in
            this package.
    """
    parser = Parser("torchrl-shm evaluate", description=__doc__)
    parser.add_argument(
        "folder", type=Path, help="of a run that you trust, whose config.yaml is code, or one that "
        "was exported, which runs no code",
    )  # fmt: skip
    parser.add_argument(
        "--checkpoint", choices=["latest", "best"], help="of the run; default: latest"
    )
    parser.add_argument(
        "--pictures", type=Path, help="folder for the pictures; default: that of the run, or "
        "outputs/evaluate/<name> for a policy",
    )  # fmt: skip
    parser.add_argument(
        "--num-episodes", type=count, help="for tasks without a list of test tasks; default: the "
        "number of the run, 256 for a policy",
    )  # fmt: skip
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=count, default=1, help="threads of torch")
    parser.add_argument("--num-paths", type=count, default=8, help="paths, for tasks in the plane")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the environments, random gates, sampled actions"
    )
    parser.add_argument(
        "--sample-actions", action="store_true",
        help="sample actions, as in training, instead of the mean or the most likely one",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    check_device("--device", options.device)
    torch.set_num_threads(options.threads)
    shared = (options.folder / CONFIG_FILE).exists()
    loaded = _load_shared(options) if shared else _load_run(options)
    policy, env = loaded.policy, loaded.env
    # of which paths are drawn
    plane = callable(ask_env(env, "plane"))
    how = {"seed": options.seed, "deterministic": not options.sample_actions}
    result = evaluate(policy, env, **how, keep_rollout=plane)

    folder = options.pictures or loaded.pictures
    folder.mkdir(parents=True, exist_ok=True)
    pictures = [folder / "episode.gif"]
    save_animation(record_episode(policy, env, **how), pictures[0])
    paths = folder / "trajectories.png"
    if result.rollout is not None and plot_trajectories(
        env, result.rollout, paths, num_paths=options.num_paths
    ):
        pictures.append(paths)
    summary = {
        **loaded.facts,
        **({"sampled_actions": True} if options.sample_actions else {}),
        "eval_return": round(result.mean_return, 4),
        "eval_success": result.success_rate,
        "pictures": [str(picture) for picture in pictures],
    }
    print(json.dumps(summary), flush=True)
    return summary


class _Loaded(NamedTuple):
    policy: TensorDictModuleBase
    env: EnvBase
    # what is printed beside the results
    facts: dict[str, Any]
    # where pictures go if nothing else is said
    pictures: Path


def _load_run(options: argparse.Namespace) -> _Loaded:
    if not (options.folder / "config.yaml").exists():
        raise FileNotFoundError(
            f"{options.folder} holds neither config.yaml nor {CONFIG_FILE}; this must be the "
            "folder of a run, or one that torchrl-shm export has written"
        )
    parts = instantiate_saved(options.folder)
    experiment = parts["experiment"]
    episodes = options.num_episodes or experiment.num_test_episodes
    env = make_test_env(
        parts["env"],
        num_episodes=episodes,
        max_steps=experiment.max_test_steps,
        device=options.device,
    )
    operator = parts["network"](env, parts["memory"], device=options.device)
    checkpoints = RunFolder(options.folder).checkpoints
    state = checkpoints.load(options.checkpoint or "latest", map_location=options.device)
    load_weights(operator, state["operator"], options.folder)
    facts = {**experiment.names, "seed": experiment.seed, "frames": state["frames"]}
    return _Loaded(operator.get_policy_operator(), env, facts, options.folder)


def _load_shared(options: argparse.Namespace) -> _Loaded:
    if options.checkpoint:
        raise ValueError(f"--checkpoint is for runs; {options.folder} holds one policy")
    file = read_policy_file(options.folder / CONFIG_FILE)
    episodes = options.num_episodes or Experiment.num_test_episodes
    env = make_test_env(load_task(options.folder), num_episodes=episodes, device=options.device)
    policy = load_policy(options.folder, options.device)
    facts = {
        "env": file.task, "memory": file.memory_name, "seed": file.seed, "frames": file.frames,
    }  # fmt: skip
    # what is shared stays as it was written
    pictures = Path("outputs", "evaluate", options.folder.resolve().name)
    return _Loaded(policy.module, env, facts, pictures)
