"""Make moving pictures of policies of the results, with memory and calibration beside the board.

python docs/pictures/episodes.py wind visual_match_100

writes `episodes/<policy>.webp` beside this file.
"""

from __future__ import annotations

import sys
from pathlib import Path

from torchrl_shm.figures import record_episode, save_animation
from torchrl_shm.sharing import load_policy, load_task
from torchrl_shm.training import make_test_env

HERE = Path(__file__).parent
POLICIES = HERE.parent / "results" / "policies"


def main(names: list[str]) -> None:
    """Record a test episode of each policy."""
    folder = HERE / "episodes"
    folder.mkdir(exist_ok=True)
    for name in names:
        env = make_test_env(load_task(POLICIES / name), num_episodes=1)
        episode = record_episode(load_policy(POLICIES / name).module, env)
        save_animation(episode, folder / f"{name}.webp")
        print(f"{name}: a return of {episode.total:g}")


if __name__ == "__main__":
    main(sys.argv[1:])
