"""A mistake on the command line costs one reading: a few words, code 2, and nothing left behind."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from tests.configs._helpers import compose_recipe
from tests.recipes._helpers import command, process

SMALL = ("experiment.total_frames=200", "experiment.num_envs=2", "algo.rollout_length=10",
         "algo.sequences_per_minibatch=2")  # fmt: skip
UNKNOWN = [
    # the nearest names, or all of them
    ("env=wnd", "did you mean wind?"),
    ("env=popgym_autoencode", "did you mean popgym_autoencode_"),
    ("env=xyz", "env=xyz is unknown; --help lists what there is\na task of gymnasium is env=gym"),
    ("env=gym env.kwargs.wind=1", 'all of them are one value: "env.kwargs={wind: ...}"'),
    ("env=gym env.length=5", 'for an argument of the environment write "env.kwargs={length: ...}"'),
    ("env=gym env.max_episode_step=5", "did you mean env.max_episode_steps?"),
    ("memory=ggru", "did you mean gru?"),
    ("memory=transformer", "choose one of dnc, elman,"),
    ("size=big", "choose one of own, params, state"),
    ("collector=multi", "did you mean multi_sync?"),
    ("logger=tensorbord", "did you mean tensorboard?"),
    ("network=critic", "actor_critic"),
    ("experiment=long", "choose one of default"),
    ("algo=sacc", "algo=sacc is unknown"),
    ("algo.totl_frames=1", "did you mean experiment.total_frames?"),
    ("total_frame=1", "did you mean experiment.total_frames?"),
    ("gama=1", "did you mean algo.gamma?"),
    ("time_size=0", "did you mean network.time_size?"),
    ("algos.epochs=1", "did you mean algo?"),
    ("foo=1", "choose one of algo, collector, env,"),
    ("algo.lr=1", "algo has anneal_lr, "),
    # of another algorithm
    ("algo.group_size=8", "algo has anneal_lr, "),
    ("algo=grpo", "algo=grpo is unknown; choose one of"),
    ("network=soft_actor_critic", "did you mean actor_critic?"),
    ("network/actor_memory=gru", "network/actor_memory is unknown"),
    ("experiment.totalframes=3", "did you mean experiment.total_frames?"),
    ("env.foo=1", "env has goal_radius, max_steps,"),
    ("env.max_step=1", "did you mean env.max_steps"),
    ("memory.memory_size=3 memory=gru", "memory has hidden_size, num_layers, state"),
    ("memory.memory_size=3 memory=gru", "memory=fast_weights and memory="),
    ("collector.address=auto", "collector has backend\ncollector=ray has it"),
    ("memory.calibratoin=none", "did you mean memory.calibration?"),
    ("network.embeding_size=3", "did you mean network.embedding_size?"),
    ("+algo.foo=1", "algo.foo=1: Unexpected keyword"),
    ("+memory.foo=1", "foo"),
]
UNREADABLE = [
    ("algo.epochs", "missing EQUAL"),
    ("=1", "override"),
    ("algo.epochs=[1", "algo.epochs=[1 cannot be read"),
    ("network.hidden_sizes=[1,", "cannot be read"),
    ("env=", "env"),
    ("~algo.gamma", "~algo.gamma"),
    ("~algo", "algo"),
]
TYPES = [
    ("algo.epochs=abc", "algo.epochs=abc: Value 'abc'"),
    ("algo.epochs=1.5", "algo.epochs=1.5: Value '1.5'"),
    ("algo.gamma=high", "algo.gamma=high: Value 'high'"),
    ("algo.anneal_lr=perhaps", "algo.anneal_lr=perhaps"),
    ("algo.epochs=null", "algo.epochs"),
    ("memory.norm=maybe", "memory.norm=maybe: Value 'maybe'"),
    ("network.hidden_sizes=abc", "hidden_sizes='abc'"),
    ("network.hidden_sizes=[a]", "hidden_sizes"),
    ("experiment.names=3", "experiment.names=3"),
    ("experiment.seed=first", "experiment.seed=first"),
    ("experiment.total_frames=many", "experiment.total_frames=many"),
    ("env.max_steps=long", "env.max_steps=long"),
]
VALUES = [
    ("algo.epochs=0", "algo.epochs must be at least 1, got 0"),
    ("algo.gamma=2", "algo.gamma=2.0 must be between 0 and 1"),
    ("algo.learning_rate=nan", "algo.learning_rate=nan must be positive"),
    ("algo.sequences_per_minibatch=9", "is more than experiment.num_envs=2"),
    ("algo.imitation_coeff=-1", "algo.imitation_coeff=-1"),
    (
        "algo.imitation_priority=steps",
        "algo.imitation_priority='steps': Input should be",
    ),
    ("experiment.device=gpu", "experiment.device='gpu' is unknown"),
    ("experiment.threads=0", "experiment.threads must be at least 1, got 0"),
    ("experiment.seed=-1", "experiment.seed must be at least 0, got -1"),
    ("experiment.total_frames=-3", "experiment.total_frames must be at least 1"),
    ("experiment.num_envs=0", "experiment.num_envs must be at least 1"),
    ("experiment.compile=some", "experiment.compile='some'"),
    ("experiment.on_nonfinite=ignore", "experiment.on_nonfinite='ignore'"),
    ("experiment.resume=nowhere", "experiment.resume=<folder> keeps"),
    ("memory.memory_size=0", "memory_size must be at least 1, got 0"),
    ("memory.calibration=rnd", "calibration='rnd' is unknown"),
    (
        "env=popgym_autoencode_easy memory.qk_norm=sum",
        "may be zero; pass qk_norm='l2', or feature_map='relu'",
    ),
    ("memory.backend=numba2", "backend='numba2' is unknown"),
    ("memory.clamp=-1", "clamp=-1 must be positive"),
    (
        "algo.critic_lmbda=true",
        "algo.critic_lmbda=true: Value 'True' of type 'bool' could not be converted to Float",
    ),
    ("memory.state=full", "state='full'"),
    ("network.embedding_size=0", "network.embedding_size must be at least 1"),
    ("network.hidden_sizes=[0]", "network.hidden_sizes must be at least 1"),
    ("env.max_steps=0", "max_steps must be at least 1"),
    ("env.num_train_tasks=0", "num_train_tasks must be"),
    ("network.policy_keys=[place]", "place"),
    ("collector.backend=foo", "'single', 'multi_sync', 'multi_async', 'ray' or 'ray_async'"),
    ("collector=multi_sync collector.num_workers=3", "num_workers=3 must divide num_envs=2"),
    ("hydra.run.dir=/proc/nowhere", "/proc/nowhere: "),
]
# some of each kind; all the others together take long
FAST = (
    "env=wnd", "env=xyz", "env=gym env.kwargs.wind=1", "memory=transformer", "algo.totl_frames=1",
    "foo=1", "algo.group_size=8", "algo=grpo", "network/actor_memory=gru", "env.max_step=1",
    "memory.memory_size=3 memory=gru", "collector.address=auto", "+algo.foo=1", "algo.epochs",
    "algo.epochs=[1", "~algo", "algo.epochs=abc", "network.hidden_sizes=abc", "algo.epochs=0",
    "algo.sequences_per_minibatch=9", "experiment.device=gpu", "experiment.resume=nowhere",
    "memory.memory_size=0", "env.max_steps=0", "network.policy_keys=[place]",
    "algo.critic_lmbda=true", "collector=multi_sync collector.num_workers=3",
    "hydra.run.dir=/proc/nowhere",
)  # fmt: skip
assert {*FAST} <= {given for given, _ in (*UNKNOWN, *UNREADABLE, *TYPES, *VALUES)}
CASES = [
    pytest.param(given, message, marks=() if given in FAST else pytest.mark.slow)
    for given, message in (*UNKNOWN, *UNREADABLE, *TYPES, *VALUES)
]


def check(arguments: list[str], message: str, stdout: str, stderr: str, code: int) -> None:
    assert code == 2, (arguments, stderr)
    assert stdout == ""
    assert len(stderr.splitlines()) <= 3, stderr
    assert message in stderr


@pytest.mark.parametrize(("given", "message"), CASES)
def test_a_mistake_is_a_line(
    given: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = given.split()
    named = {x.partition("=")[0] for x in arguments}
    small = [x for x in SMALL if x.partition("=")[0] not in named]
    result = command("ppo_shm.py", *small, *arguments)
    check(arguments, message, result.stdout, result.stderr, result.code)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="it is about machines without CUDA")
def test_a_missing_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = command("ppo_shm.py", *SMALL, "experiment.device=cuda")
    check([], "torch finds no CUDA device; use cpu", result.stdout, result.stderr, result.code)
    assert not list(tmp_path.iterdir())


def test_a_folder_of_ones_own_stays(tmp_path: Path) -> None:
    """With what was in it."""
    note = tmp_path / "note.txt"
    note.write_text("mine")
    where = f"hydra.run.dir={tmp_path}"
    result = command("ppo_shm.py", *SMALL, where, "memory.memory_size=0")
    check([], "memory_size", result.stdout, result.stderr, result.code)
    assert list(tmp_path.iterdir()) == [note]


def test_a_folder_of_a_run_that_is_not_there() -> None:
    result = command("ppo_shm.py", "experiment.resume=nowhere")
    message = "experiment.resume=nowhere is not the folder of a run"
    check([], message, result.stdout, result.stderr, result.code)


def test_a_sweep_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job with the mistake is named, and the others are run."""
    monkeypatch.chdir(tmp_path)
    result = command("ppo_shm.py", "-m", *SMALL, "algo.epochs=0,1")
    assert result.code == 2
    assert "algo.epochs=0" in result.stderr
    assert result.stderr.splitlines()[-1] == "algo.epochs must be at least 1, got 0"
    assert len(list(tmp_path.rglob("summary.json"))) == 1


@pytest.mark.slow
def test_a_process_ends_with_the_line_alone(tmp_path: Path) -> None:
    result = process("ppo_shm.py", *SMALL, "memory.memory_size=0", cwd=tmp_path)
    check([], "memory_size must be", result.stdout, result.stderr, result.code)
    assert result.stderr == "memory_size must be at least 1, got 0\n"
    assert not list(tmp_path.iterdir())


def test_a_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = command("ppo_shm.py", "-m", *SMALL, "memory=shm,ggru")
    assert result.code == 2
    assert result.stderr == "memory=ggru is unknown; did you mean gru?\n"


def test_what_nobody_has_foreseen_keeps_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And so does all of it where the environment asks for that."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.nn.LayerNorm, "__init__", lambda *_, **__: [][0])
    result = command("ppo_shm.py", *SMALL)
    assert (result.code, result.stdout) == (1, "")
    assert "Traceback" in result.stderr
    assert result.stderr.endswith("IndexError: list index out of range\n")
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    result = command("ppo_shm.py", *SMALL, "memory.memory_size=0")
    assert result.code == 1
    assert "Traceback" in result.stderr
    assert "ValueError: memory_size must be" in result.stderr
    assert not list(tmp_path.iterdir())


def test_numbers_that_are_not_finite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the first update, of which nothing is left."""
    monkeypatch.chdir(tmp_path)
    result = command("ppo_shm.py", *SMALL, "algo.learning_rate=1e30")
    assert result.code == 1
    what, where, how = result.stderr.splitlines()
    assert what.startswith("update 0: non-finite gradient: ")
    assert "lower algo.learning_rate" in what
    assert (where, how) == (
        "The error is of the training, update 0; nothing was saved.",
        "(HYDRA_FULL_ERROR=1 shows where)",
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_any_option_with_any_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two hundred at random: accepted, or refused in a line."""
    monkeypatch.chdir(tmp_path)
    config = OmegaConf.to_container(compose_recipe())
    assert isinstance(config, dict)
    names = [
        f"{group}.{name}"
        for group in ("env", "memory", "network", "experiment", "algo", "collector")
        for name in config[group]
        if not name.startswith("_") and name != "cell"
    ]
    values = ["abc", "-1", "0", "1.5", "nan", "inf", "null", "[]", "[1,2]", "{a:1}", "''", "true"]
    draw = random.Random(0)
    for _ in range(200):
        given = f"{draw.choice(names)}={draw.choice(values)}"
        small = [x for x in SMALL if not given.startswith(x.partition("=")[0])]
        result = command("ppo_shm.py", *small, given)
        if result.code:
            check([given], "", result.stdout, result.stderr, result.code)
            assert not list(tmp_path.glob("outputs/*/*/*")) or "nowhere" in given, given
        for path in sorted(tmp_path.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
