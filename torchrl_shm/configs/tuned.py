"""Values of experiment and algorithm that suit a task: `tuned/<algo>/<env>`.

Choosing a task and an algorithm chooses them; the command line overrides them. An algorithm
without values for a task runs with its defaults.
"""

from __future__ import annotations

from typing import Any

from torchrl_shm.configs.envs import ENVS

Values = dict[str, dict[str, Any]]

# rewards far away are worth as much as those at hand, and random actions have to go on
_DISCRETE: dict[str, Any] = {"gamma": 0.99, "entropy_coeff": 0.1, "learning_rate": 1e-3}
# environments in python are stepped one after the other, so there are fewer of them
_PYTHON = {"num_envs": 32, "total_frames": 500_000, "num_test_episodes": 64}


def _ppo(env: str) -> Values | None:
    family = env.partition("/")[0]
    length = int(env.rpartition("_")[2]) if env[-1].isdigit() else 0
    experiment: dict[str, Any] = {"total_frames": 2_000_000}
    if env.startswith("t_maze"):
        algo = {**_DISCRETE, "rollout_length": 51 if env == "t_maze_passive" else 53}
    elif env == "memory_length":
        algo = {**_DISCRETE, "rollout_length": 51}
    elif env.startswith("visual_match"):
        # the field is chosen within a few steps: what is far away is noise of the apples, and the
        # color of the first room is learned through the memory, not through the discount
        algo = {**_DISCRETE, "gamma": 0.9, "entropy_coeff": 0.02, "rollout_length": length + 25}
    elif env.startswith("key_to_door"):
        # the key is paid for a hundred steps or more after it was taken
        steps = length + 13 if length else 85
        algo = {**_DISCRETE, "gamma": 0.998, "entropy_coeff": 0.02, "lmbda": 0.97,
                "rollout_length": steps}  # fmt: skip
        experiment["total_frames"] = 3_000_000
    elif env.startswith("popgym_"):
        algo = {**_DISCRETE, "entropy_coeff": 0.01}
        experiment["total_frames"] = 4_000_000
    elif family == "popgym":
        algo = {**_DISCRETE, "entropy_coeff": 0.01, "sequences_per_minibatch": 8}
        experiment = _PYTHON
    elif env == "gym":
        algo, experiment = {"gamma": 0.99, "sequences_per_minibatch": 8}, _PYTHON
    else:
        return None
    return {"experiment": experiment, "algo": algo}


TUNED: dict[str, dict[str, Values]] = {
    "ppo": {env: values for env in ENVS if (values := _ppo(env)) is not None}
}
"""Values by algorithm and environment."""
