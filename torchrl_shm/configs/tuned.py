"""Values of experiment, algorithm and network that suit a task: `tuned/<algo>/<env>`.

Choosing a task and an algorithm chooses them; the command line overrides them. An algorithm
without values for a task runs with its defaults. SHM has values of its own for some tasks,
`SHM_VALUES`.
"""

from __future__ import annotations

from typing import Any, get_args

from torchrl_shm.configs.envs import ENVS
from torchrl_shm.envs.popgym import Level

Values = dict[str, dict[str, Any]]

# rewards far away are worth as much as those at hand, and random actions have to go on
_DISCRETE: dict[str, Any] = {"gamma": 0.99, "entropy_coeff": 0.1, "learning_rate": 1e-3}
# what is remembered over long spans is learned in many small steps, and the first successes with
# what is remembered are rare
_LONG: dict[str, Any] = {
    "entropy_coeff": 0.05, "learning_rate": 5e-4, "sequences_per_minibatch": 16,
    "imitation_coeff": 0.1,
}  # fmt: skip
# the step of the episode: a memory that is addressed by content then finds what was k steps ago
_TIME: dict[str, Any] = {"time_size": 32}
# tasks in the plane, with a goal that is small beside the way to it
_WIND = ("wind", "wind_hard")
_POINT = ("point_robot", "point_robot_hard")
_FINE: dict[str, Any] = {"encoder": "fourier"}
# an observation and a choice of many cards
_WIDE: dict[str, Any] = {"embedding_size": 128, "hidden_sizes": [128, 128]}
# environments in python are stepped one after the other, so there are fewer of them
_PYTHON = {"num_envs": 32, "total_frames": 500_000, "num_test_episodes": 64}
# steps of an episode of games of POPGym: easy, medium, hard
_GAMES = {
    "autoencode": (103, 207, 311), "battleship": (64, 100, 144), "concentration": (104, 208, 104),
    "count_recall": (51, 103, 207), "higher_lower": (51, 103, 155), "mine_sweeper": (14, 30, 54),
    "multiarmed_bandit": (200, 400, 600), "noisy_position_only_cart_pole": (200, 200, 200),
    "noisy_position_only_pendulum": (200, 200, 200), "position_only_cart_pole": (200, 400, 600),
    "position_only_pendulum": (200, 150, 100), "repeat_first": (51, 415, 831),
    "repeat_previous": (51, 103, 155), "velocity_only_cart_pole": (200, 400, 600),
}  # fmt: skip
# the same of all tasks of which PPO's sequences may be shorter or longer
_LENGTHS = {
    "wind_original": 75, "point_robot": 200, "point_robot_hard": 200, "point_robot_original": 120,
    **{f"popgym_{game}_{level}": steps for game, lengths in _GAMES.items()
       for level, steps in zip(get_args(Level), lengths, strict=True)},
}  # fmt: skip
# those of which PPO's sequences are whole episodes: answers lie far back, and with the 100 steps of
# the others the two that were tried got less far (docs/results/long_spans.md)
_FAR_BACK = ("popgym_autoencode", "popgym_concentration", "popgym_repeat_previous_hard")
# tasks whose rewards come at once and whose actions change nothing but the reward
_ANSWERS = ("popgym_autoencode", "popgym_count_recall", "popgym_repeat")

# options of SHM, by what the names of tasks begin with: whatever the algorithm, or with the one
# that stands before them
SHM_VALUES: dict[str, dict[str, Any]] = {
    # keys and queries: where many steps are to be told apart they are learned sooner if their
    # length is one; with signs the medium Autoencode is, too, but then nothing that is old makes
    # room for what is new (docs/results/popgym_keys.md)
    "popgym_repeat_previous": {"qk_norm": "l2"},
    # with SAC, and keys as released, the critic had not learned which turn is right after 300,000
    # frames
    "t_maze": {"qk_norm": "l2"},
    "popgym_autoencode": {"qk_norm": "l2", "feature_map": "identity"},
    # as in T-Maze; with PPO all three levels are solved with keys as released
    "sac/visual_match": {"qk_norm": "l2"},
    # where the agent has just been decides where it searches next, and that is hard to read from a
    # memory that only adds; without the bound one run became infinite (docs/results/point_robot.md)
    "point_robot": {"forget": True, "clamp": 100.0},
}
# memories of which rows can forget
FORGETFUL = ("shm", "shm_fixed", "shm_popgym", "shm_pomdp")


def _ppo(env: str) -> Values | None:
    family = env.partition("/")[0]
    length = int(env.rpartition("_")[2]) if env[-1].isdigit() else 0
    experiment: dict[str, Any] = {"total_frames": 2_000_000}
    network: dict[str, Any] = {}
    if env in _WIND:
        # the goal is as wide as a hundredth of the way, which sines and cosines tell apart; smaller
        # batches, and with them more updates, come as far in fewer frames
        algo, network = {}, _FINE
        if env == "wind":
            # a wind shows within a few moves, and with a shorter look ahead training gets further;
            # with ten winds to learn from, that is worse on those of the test (results/wind.md)
            algo["lmbda"] = 0.8
        experiment = {"num_envs": 128, "total_frames": 1_200_000}
    elif env in _POINT:
        # to search pays within about twenty steps; who has not found the goal searches as long as
        # being unsure is worth something, and who has stays in it: the standard deviation of
        # actions depends on the state
        algo = {"gamma": 0.95, "lmbda": 0.9, "entropy_coeff": 0.005, "rollout_length": 200}
        # few episodes in a batch, so that there are many updates; at 1.5e-3 the memory of one run
        # grew until it was infinite
        algo |= {"sequences_per_minibatch": 16, "learning_rate": 1e-3}
        network = {**_FINE, "action_scale": "state"}
        experiment = {"num_envs": 128, "total_frames": 8_000_000}
    elif env.startswith("t_maze"):
        algo = {**_DISCRETE, "rollout_length": 51 if env == "t_maze_passive" else 53}
        # the penalty depends on the step: without it, only a memory learns to walk
        network = _TIME
    elif env == "memory_length":
        algo = {**_DISCRETE, "rollout_length": 51}
    elif env.startswith("visual_match"):
        # the field is chosen within a few steps: what is far away is noise of the apples, and the
        # color of the first room is learned through the memory, not through the discount
        algo = {**_LONG, "gamma": 0.9, "rollout_length": length + 25}
        network = _TIME
        experiment["total_frames"] = {100: 3_000_000, 250: 6_000_000}.get(length, 10_000_000)
    elif env.startswith("key_to_door"):
        # the key is paid for a hundred steps or more after it was taken: neither the discount nor
        # the estimator of advantages may forget it
        steps = length + 13 if length else 85
        algo = {**_LONG, "gamma": 0.9999, "lmbda": 0.999, "rollout_length": steps}
        network = _TIME
        experiment["total_frames"] = 10_000_000 if length > 100 else 4_000_000
        if length == 500:
            # fewer episodes fit into the frames, and with smaller batches the runs got further; and
            # luck with so many apples would hide the door, from what is learned again and from a
            # policy that learned from all of them
            algo |= {"sequences_per_minibatch": 4, "imitation_priority": "step"}
            algo |= {"lmbda": 0.95, "critic_lmbda": 1.0}
            experiment["num_envs"] = 64
    elif env.startswith("popgym_"):
        # games are about every single step, so the policy must not get sure of some too early
        algo = {**_LONG, "gamma": 0.0 if env.startswith(_ANSWERS) else 0.99, "imitation_coeff": 0.0}
        if env.startswith(_FAR_BACK):
            algo["rollout_length"] = _LENGTHS[env]
        network = _TIME
        experiment["total_frames"] = 4_000_000
        if env.startswith("popgym_autoencode"):
            # every card is learned by itself, in many updates: with twice as many from as many
            # frames one run of the easy level got to 0.57 instead of 0.49
            algo["sequences_per_minibatch"] = 8
            frames = 4_000_000 if env.endswith("_easy") else 10_000_000
            experiment |= {"num_envs": 128, "total_frames": frames}
        elif env.startswith("popgym_concentration"):
            # a card is turned over for the sake of the next one or two; networks of the default
            # width are slow to learn which of 52 cards not to touch (docs/results/popgym.md)
            algo |= {"gamma": 0.4, "entropy_coeff": 0.02, "learning_rate": 1e-3}
            network = {**_TIME, **_WIDE}
    elif family == "popgym":
        algo = {**_DISCRETE, "entropy_coeff": 0.01, "sequences_per_minibatch": 8}
        experiment = _PYTHON
    elif env == "gym":
        algo, experiment = {"gamma": 0.99, "sequences_per_minibatch": 8}, _PYTHON
    else:
        return None
    return {"experiment": experiment, "algo": algo, "network": network}


def _whole_episodes(env: str) -> Values:
    """What suits a task under algorithms that want whole episodes, beginning with their length."""
    # those of tasks in the plane, numbers of environments and wide networks were tried with PPO
    # alone
    nothing: Values = {"experiment": {}, "algo": {}, "network": {}}
    values = nothing if env in (*_WIND, *_POINT) else _ppo(env) or nothing
    kept = {"rollout_length": values["algo"].get("rollout_length", 100)}
    kept |= {"rollout_length": _LENGTHS[env]} if env in _LENGTHS else {}
    experiment = {key: x for key, x in values["experiment"].items() if key != "num_envs"}
    network = {key: x for key, x in values["network"].items() if key not in _WIDE}
    return {"experiment": experiment, "algo": kept, "network": network}


def _reinforce(env: str) -> Values:
    values = _whole_episodes(env)
    # there is one step per batch, so batches are small
    values["experiment"] |= {"num_envs": 64}
    if env == "memory_length":
        # the last step alone decides; with a discount near one what it earns would count for all
        # steps before, too, and be their noise
        values["algo"]["gamma"] = 0.5
        values["experiment"]["total_frames"] = 1_500_000
    return values


def _grpo(env: str) -> Values | None:
    if env == "gym" or "/" in env:
        # has no layouts that groups could share
        return None
    values = _whole_episodes(env)
    if env.startswith(("wind", "point_robot")):
        # there are rewards along the way, and those far away are noise
        values["algo"] |= {"credit": "step", "gamma": 0.9, "learning_rate": 1.5e-3}
        values["experiment"]["total_frames"] = 1_600_000
    elif env == "t_maze_passive":
        # what decides is the last step. With a discount near one its reward would count for the
        # whole walk, too, and the noise of fifty steps would hide which turn was right; to be late
        # costs at once. Who is too sure of how to walk never tries to turn
        values["algo"] |= {
            "credit": "step", "gamma": 0.5, "learning_rate": 5e-4, "entropy_coeff": 0.03,
            "spread_eps": 0.1,
        }  # fmt: skip
    return values


def _sac(env: str) -> Values | None:
    """The released constants of the tasks in the plane where nothing else is said.

    There are fewer updates, in larger steps.

    Released are 250,000 updates at a learning rate of 3e-4 for Wind and 200,000 for Point Robot.
    """
    experiment: dict[str, Any] = {"num_envs": 20, "total_frames": 510_000}
    network: dict[str, Any] = {"hidden_sizes": [64, 64]}
    algo: dict[str, Any] = {"batch_size": 16, "tau": 0.01}
    length = int(env.rpartition("_")[2]) if env[-1].isdigit() else 0
    if env in _WIND:
        # the goal is as wide as a tenth of the largest move: with the released entropy, minus two,
        # actions spread as wide as that, and to stay in it takes critics that have come to rest
        algo |= {"gamma": 0.9, "updates_per_step": 0.06, "target_entropy": -3.0, "anneal_lr": True}
        # where that entropy costs more, strong winds are given up (docs/results/sac.md)
        algo["max_temperature"] = 0.01
        network |= _FINE
    elif env in _POINT:
        # two episodes of a task, between which memories are kept
        algo |= {
            "gamma": 0.9, "rollout_length": 200, "random_frames": 80_000,
            "buffer_size": 4_000_000, "updates_per_step": 0.02,
        }  # fmt: skip
        experiment["total_frames"] = 1_080_000
    elif env == "memory_length":
        algo |= {"rollout_length": 51, "temperature": 0.02, "updates_per_step": 0.03}
        experiment |= {"num_envs": 32, "total_frames": 100_000}
        network |= _TIME
    elif env == "t_maze_passive":
        # a step that does not lead on costs 0.02: more than entropy may be worth, and too little
        # for networks whose outputs are about 1. Before its memory tells which turn is right the
        # actor would get sure of one of them, and keep to it (docs/recipes/sac_shm.md)
        algo |= {"rollout_length": 51, "reward_scale": 20.0, "temperature": 0.1}
        algo |= {"updates_per_step": 0.03, "actor_divergence": "forward"}
        # with a memory as small as its class has it, the turn is learned within 400,000
        experiment |= {"num_envs": 32, "total_frames": 500_000}
        network |= _TIME
    elif env.startswith(("visual_match", "key_to_door")):
        steps = length + 25 if env.startswith("visual_match") else length + 13 if length else 85
        algo |= {"rollout_length": steps, "temperature": 0.1}
        if env.startswith("visual_match"):
            # as with PPO what is far away is noise of the apples, and as in T-Maze an actor would
            # get sure of one field before its memory tells the colors apart
            algo |= {"gamma": 0.9, "temperature": 0.03, "actor_divergence": "forward"}
        experiment["total_frames"] = 1_000_000
        network |= _TIME
    else:
        return None
    return {"experiment": experiment, "algo": algo, "network": network}


_MAKERS = {"ppo": _ppo, "sac": _sac, "reinforce": _reinforce, "grpo": _grpo}
TUNED: dict[str, dict[str, Values]] = {
    algo: {env: values for env in ENVS if (values := make(env)) is not None}
    for algo, make in _MAKERS.items()
}
"""Values by algorithm and environment."""
