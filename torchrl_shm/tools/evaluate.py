# explained in docs/recipes/ppo_shm.md, section "Look at a trained agent"
"""Evaluate the checkpoint of a run on every test task and draw what the agent does.

python recipes/evaluate.py run=outputs/ppo_shm/<date>/<time>
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from torchrl_shm.configs import instantiate_saved, run_on_run
from torchrl_shm.figures import plot_trajectories, record_episode, save_animation
from torchrl_shm.networks import make_actor_critic
from torchrl_shm.training import RunFolder, Which, evaluate, make_test_env


def main(
    run: str, checkpoint: Which, device: str, threads: int, num_paths: int, seed: int
) -> dict[str, Any]:
    """Evaluate, draw an episode and, in the plane, paths into the run folder, return results."""
    torch.set_num_threads(threads)
    parts = instantiate_saved(run)
    algo = parts["algo"]
    env = make_test_env(parts["env"], num_episodes=algo.num_test_episodes, device=device)
    operator = make_actor_critic(
        env,
        parts["memory"],
        **algo.network(),
        device=device,
    )
    state = RunFolder(run).load_checkpoint(checkpoint, map_location=device)
    operator.load_state_dict(state["operator"])
    policy = operator.get_policy_operator()
    result = evaluate(policy, env, seed=seed)

    pictures = [Path(run) / "episode.gif"]
    save_animation(record_episode(policy, env, seed=seed), pictures[0])
    paths = Path(run) / "trajectories.png"
    if plot_trajectories(env, result.rollout, paths, num_paths=num_paths):
        pictures.append(paths)
    summary = {
        **parts["names"],
        "seed": parts["seed"],
        "frames": state["frames"],
        "eval_return": round(result.mean_return, 4),
        "eval_success": result.success_rate,
        "pictures": [str(picture) for picture in pictures],
    }
    print(json.dumps(summary), flush=True)
    return summary


HELP = f"""\
{__doc__}
run         folder of the run, which also gets the pictures
checkpoint  latest or best
device      cpu or cuda
threads     threads of torch
num_paths   paths that are drawn, where the task is in the plane
seed        of what the environment draws, and of the random gates"""

if __name__ == "__main__":
    run_on_run(
        main, name="evaluate", help=HELP,
        checkpoint="latest", device="cpu", threads=1, num_paths=8, seed=0,
    )  # fmt: skip
