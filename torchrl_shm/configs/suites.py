"""Sets of runs that belong together: the tasks of the paper, every memory, the ablation.

A suite is a list of commands. All memories of a suite have about as many parameters, and all
settings in which two of its runs differ are in their names, but for the start and some options of
SHM, which suit the task.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from torchrl_shm.configs.memories import MEMORIES
from torchrl_shm.configs.presets import Presets


@dataclass(frozen=True)
class SuiteRun:
    """One run of a suite.

    Attributes:
        env: member of the group `env`.
        memory: member of the group `memory`.
        seed: `experiment.seed`.
        variant: what sets the run apart from others of that task and memory, for its name.
        options: further values of the command line.
        recipe: the file in `recipes/` that makes it.
    """

    env: str
    memory: str
    seed: int
    variant: str = ""
    options: tuple[str, ...] = ()
    recipe: str = "ppo_shm"

    @property
    def name(self) -> str:
        """Name of the run, distinct in its suite."""
        parts = (self.env, self.memory, self.variant, f"seed{self.seed}")
        return "-".join(part for part in parts if part)

    @property
    def overrides(self) -> list[str]:
        """Values of the command line that make the run."""
        own = [f"env={self.env}", f"memory={self.memory}", f"experiment.seed={self.seed}"]
        return [*own, "size=params", *self.options]


# settings were chosen on runs with smaller seeds
_OURS, _OTHERS = range(10, 15), range(10, 13)
# instead of the 50 steps of the preset
_TWENTY = ("env.length=20", "algo.rollout_length=21")


def _cross(
    envs: Sequence[str],
    others: Sequence[str],
    *,
    variant: str = "",
    options: tuple[str, ...] = (),
) -> list[SuiteRun]:
    """SHM with five seeds and the others with three on every task, task by task."""
    return [
        SuiteRun(env, memory, seed, variant, options)
        for env in envs
        for memory, seeds in [("shm", _OURS), *((other, _OTHERS) for other in others)]
        for seed in seeds
    ]


def _credit() -> list[SuiteRun]:
    tasks = [f"{task}_{n}" for n in (100, 250, 500) for task in ("visual_match", "key_to_door")]
    return _cross(tasks, ["gru", "ffm", "lru", "mlstm"])


def _no_clock() -> list[SuiteRun]:
    tasks = ["visual_match_250", "key_to_door_100", "popgym_repeat_previous_easy"]
    options = ("network.time_size=0",)
    return _cross(tasks, ["gru", "ffm", "lru"], variant="no_time", options=options)


def _meta() -> list[SuiteRun]:
    tasks = ["wind", "wind_hard", "point_robot", "point_robot_hard"]
    return _cross(tasks, ["gru", "lstm", "ffm", "lru", "mlp"])


def _popgym() -> list[SuiteRun]:
    games = ("repeat_previous", "autoencode", "battleship", "concentration")
    tasks = [f"popgym_{game}_{level}" for game in games for level in ("easy", "medium", "hard")]
    return _cross(tasks, ["gru", "ffm", "lru"])


def _memories() -> list[SuiteRun]:
    done = {"shm", "gru", "ffm", "lru", "mlstm"}
    names = [x for x in MEMORIES if x not in done and not x.startswith("shm_")]
    tasks = ("popgym_repeat_previous_easy", "visual_match_250")
    return [SuiteRun(env, name, seed) for env, name, seed in product(tasks, names, _OTHERS)]


def _ablation() -> list[SuiteRun]:
    kinds = ["", "_fixed", "_neural", "_none", "_constant", "_noise"]
    clocks = (("", ()), ("no_time", ("network.time_size=0",)))
    # `shm` itself, with a clock, is in `paper_popgym`
    made = [
        SuiteRun("popgym_autoencode_easy", f"shm{kind}", seed, variant, options)
        for (variant, options), kind, seed in product(clocks, kinds, _OURS)
        if kind or variant
    ]
    # as large as `shm`, where a single row of theta leaves parameters for more columns
    made += [
        SuiteRun("popgym_autoencode_easy", "shm_fixed", seed, "48", ("memory.memory_size=48",))
        for seed in _OURS
    ]
    # of these, a theta for all steps and no calibration on other tasks where SHM is far ahead
    made += [
        SuiteRun(env, memory, seed)
        for env in ("visual_match_250", "popgym_repeat_previous_hard")
        for memory, seed in product(("shm_fixed", "shm_none"), _OURS)
    ]
    # keys and queries as released, beside the runs of `paper_popgym`
    released = ("memory.feature_map=relu", "memory.qk_norm=sum")
    levels = product(("repeat_previous", "autoencode"), ("easy", "medium", "hard"))
    variants: list[tuple[str, str, tuple[str, ...]]] = [
        (f"popgym_{game}_{level}", "sum", released) for game, level in levels
    ]
    # and of these the gradient as released, and keys that are never silent
    easy = "popgym_repeat_previous_easy"
    variants += [
        (easy, "not_revived", (*released, "memory.revive=false")),
        (easy, "softplus", ("memory.feature_map=softplus", "memory.qk_norm=sum")),
        # keys of length one where they are not the preset's
        ("wind_hard", "l2", ("memory.qk_norm=l2",)),
        # rows that do not fade where they are the preset's
        ("point_robot", "keeps", ("memory.forget=false", "memory.clamp=null")),
    ]
    # the start as released where the others are far behind
    far = ("visual_match_250", "popgym_autoencode_easy", "popgym_repeat_previous_hard")
    variants += [(env, "released_start", ("memory.span=null",)) for env in far]
    return made + [
        SuiteRun(env, "shm", seed, variant, options)
        for (env, variant, options), seed in product(variants, _OURS)
    ]


def _sac() -> list[SuiteRun]:
    """The tasks in the plane, as in the paper, and small ones with actions that are chosen."""
    runs = [
        ("wind", {"shm": _OURS, "gru": _OURS, "mlp": _OURS}),
        ("point_robot", {"shm": _OURS}),
        ("visual_match_100", {"shm": _OTHERS, "mlp": _OTHERS}),
    ]
    made = [
        SuiteRun(env, memory, seed, recipe="sac_shm")
        for env, memories in runs
        for memory, seeds in memories.items()
        for seed in seeds
    ]
    # the authors' set-up: only the critic has their memory
    released = ("network/actor_memory=gru",)
    short = (*_TWENTY, "experiment.total_frames=40_000")
    # at this size the turn is learned in fewer frames than the preset has
    turn = ("experiment.total_frames=300_000",)
    variants = [
        ("wind", "gru_actor", released), ("memory_length", "20", short),
        ("t_maze_passive", "", turn),
    ]  # fmt: skip
    return made + [
        SuiteRun(env, "shm", seed, variant, options, "sac_shm")
        for env, variant, options in variants
        for seed in _OTHERS
    ]


def _policy_gradients() -> list[SuiteRun]:
    short = (*_TWENTY, "experiment.total_frames=1_000_000")
    runs = [
        ("reinforce", "memory_length", "_20", short),
        ("reinforce", "memory_length", "", ()),
        ("grpo", "t_maze_passive", "", ()),
        ("grpo", "wind", "", ()),
    ]
    return [
        SuiteRun(env, "shm", seed, f"{algo}{variant}", options, f"{algo}_shm")
        for algo, env, variant, options in runs
        for seed in _OTHERS
    ]


SUITES = Presets(
    {
        "paper_credit": _credit,
        "no_time": _no_clock,
        "paper_meta": _meta,
        "paper_popgym": _popgym,
        "memories": _memories,
        "ablation": _ablation,
        "sac": _sac,
        "policy_gradients": _policy_gradients,
    }
)
"""Lists of `SuiteRun` by name."""
