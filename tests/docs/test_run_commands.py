"""Every command of the README and of the site is run, with less to do than the reader asks for.

Commands of a page run in their order, as a shell reads them, in a copy of the repository, where a
command finds what those before it made. Recipes get few environments and frames, sweeps one seed,
and benchmarks small sizes.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.docs._commands import PROGRAM, all_commands, lines
from tests.docs.test_code_blocks import BLOCK, PAGES, ROOT

# what is not run here, and where it is; a command may ask for what no machine of the tests has
ELSEWHERE = {
    r"^pytest -n auto$": "these tests",
    r"-m gpu\b|device[= ]cuda": "a GPU",
    r"--nnodes=4": "four machines",
    r"^srun|submitit_slurm": "tests/recipes/test_slurm.py, with a Slurm of its own",
    r"address=auto": "a cluster that is there",
    r"launcher=ray": "its extra does not go together with that of the other launchers",
    r"CarRacing|ale_py:": "packages of others",
    r"train\.py|_shm_seed1$|_traces_seed0$": "tests/docs/test_own_memory.py",
    r"suite run": "tests/tools/test_suite.py, with a small one",
}
RECIPE = (
    "experiment.num_envs=8",
    "experiment.total_frames=2000",
    "experiment.num_test_episodes=2",
)
LESS = {
    "recipes/ppo_shm.py": (*RECIPE, "algo.sequences_per_minibatch=4"),
    "recipes/a2c_shm.py": RECIPE,
    "recipes/reinforce_shm.py": RECIPE,
    "recipes/grpo_shm.py": (*RECIPE, "algo.sequences_per_minibatch=4", "algo.group_size=4"),
    "recipes/sac_shm.py": (*RECIPE, "algo.random_frames=100", "algo.updates_per_step=0.01"),
    "tests.benchmarks.accuracy": ("--steps 64", "--size 8"),
    "tests.benchmarks.envs": (
        "--only Wind,RepeatPreviousEasy", "--batches 4", "--seconds 0.01", "--wait 0",
    ),
    "tests.benchmarks.gym": ("--only CartPole-v1", "--seconds 0.05"),
    "tests.benchmarks.latency": ("--memories shm,gru",),
    "tests.benchmarks.memories": (
        "--memories shm,gru", "--steps 32", "--budget 0.02", "--wait 0",
    ),
    "tests.benchmarks.probe": ("--memories shm", "--tasks recall", "--seeds 7", "--updates 20"),
    "tests.benchmarks.ranks": ("--updates 3", "--wait 0"),
    "tests.benchmarks.recipe": ("--backends reference,chunked", "--repeats 1", "--wait 0"),
    "tests.benchmarks.scan": ("--shapes 2,16,8", "--wait 0"),
    "tests.benchmarks.workers": ("--num-envs 4", "--rounds 2", "--wait 0"),
}  # fmt: skip
# said by some pages, too, whose choice stays; all else of the above takes the place of theirs
KEPT = ("algo.group_size", "algo.updates_per_step", "--memories")
# runs that a page takes for made, in place of those that it leaves open
DATE = "2026-01-01/00-00-00"
RESUME = re.compile(r"experiment\.resume=(outputs/\S+)")
# environments of the reader's own
OWN = """\
from gymnasium import register

for name in ("Game-v0", "Strict-v0"):
    register(name, "gymnasium.envs.classic_control:CartPoleEnv", max_episode_steps=20)
"""


def is_elsewhere(line: str) -> bool:
    return any(re.search(pattern, line) for pattern in ELSEWHERE)


def shortened(line: str) -> str:
    """The command with less to do, and with a run of the test where the page names one."""
    line = re.sub(r"(experiment\.seed=\d+)(,\d+)+", r"\1", line)
    line = re.sub(r"range\(\d+\)", "range(2)", line)
    line = line.replace("<preset>", "t_maze_passive").replace("path/to/checkout/", "")
    line = line.replace("<folder>", f"outputs/ppo_shm/{DATE}_shm_seed0")
    line = re.sub(r"outputs/(\w+)/\.\.\.", rf"outputs/\1/{DATE}_shm_seed0", line)
    line = re.sub(r"multirun/(\w+)/\.\.\.", rf"multirun/\1/{DATE}", line)
    line = line.replace("<date>/<time>", DATE)
    # a run that goes on keeps its values
    if re.search(rf"--help|--cfg|--from|{RESUME.pattern}", line):
        return line
    words = line.split()
    start, arrow, output = line.partition(" > ")
    less = [option for name in LESS if name in words for option in LESS[name]]
    for option in less:
        name = re.split("[= ]", option)[0]
        if not (name in KEPT and name in line):
            start += f" {option}"
    return f"{start}{arrow}{output}"


def made_before(asked: Sequence[str]) -> list[str]:
    """Commands that make the runs which others take for made."""
    text = "\n".join(map(shortened, asked))
    made: list[str] = []
    for recipe in sorted({*re.findall(rf"(?:outputs|multirun)/(\w+)/{DATE}", text)}):
        script = f"recipes/{recipe.removesuffix('_shm')}_shm.py"
        less = " ".join(LESS[script])
        start = f"python {script} {{}}env=t_maze_passive memory=shm {less} {{}}"
        if f"outputs/{recipe}/" in text:
            made.append(start.format("", f"hydra.run.dir=outputs/{recipe}/{DATE}_shm_seed0"))
        if f"multirun/{recipe}/" in text:
            made.append(start.format("-m ", f"hydra.sweep.dir=multirun/{recipe}/{DATE}"))
    return made


def code_of(page: str, *words: str) -> str:
    """Blocks of a page that hold any of the words."""
    found = BLOCK.finditer((ROOT / "docs" / page).read_text())
    blocks = (x["code"] for x in found if x["language"] == "python")
    return "\n\n".join(code for code in blocks if any(word in code for word in words))


def copy_repository(folder: Path) -> None:
    """Copy what commands read and write, and make the files that pages ask the reader to make."""
    for name in ("docs", "recipes", "tests"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    a2c = code_of("tutorials/own_algorithm.md", "class A2C", "def main", "add_algo(")
    (folder / "recipes" / "a2c_shm.py").write_text(a2c)
    (folder / "my_encoders.py").write_text(
        code_of("concepts/observations.md", "class Grid").partition("\noperator = ")[0]
    )
    for name in ("cards.py", "my_envs.py"):
        (folder / name).write_text(OWN)


def run(line: str, folder: Path) -> str:
    """Run a command as the shell of a reader would; returns what went wrong, if anything did."""
    own = os.path.dirname(sys.executable)
    environment = os.environ | {
        "PATH": f"{own}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "MPLBACKEND": "agg",
    }
    # commands that need it say so
    environment.pop("PYTHONPATH", None)
    resumed = RESUME.search(line)
    rows = leave_unfinished(folder / resumed[1]) if resumed else 0
    with subprocess.Popen(
        ["bash", "-o", "pipefail", "-c", line], cwd=folder, env=environment, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            _, text = process.communicate(timeout=900)
        except subprocess.TimeoutExpired:
            # with all that it has started
            os.killpg(process.pid, signal.SIGKILL)
            return "did not end"
    if resumed and count_rows(folder / resumed[1]) <= rows:
        return "has not gone on"
    return text[-2000:] if process.returncode or "Traceback" in text else ""


def leave_unfinished(run: Path) -> int:
    """Make a finished run one that has twice as far to go; returns its updates so far."""
    (run / "summary.json").unlink()
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("total_frames: 2000", "total_frames: 4000"))
    return count_rows(run)


def count_rows(run: Path) -> int:
    return len((run / "metrics.csv").read_text().splitlines())


def test_the_rest_of_the_lines() -> None:
    """What is not taken for a command of ours is one of others, or a part of a script."""
    others = re.compile(r"(pip|git|cd|source|python3 -m venv|hf|trap|wait)\b|#!|#SBATCH")
    found = [line for page in PAGES for line in lines(page) if not PROGRAM.match(line)]
    assert len(found) > 10
    assert not [line for line in found if not others.match(line)]


def test_all_are_run_here_or_elsewhere() -> None:
    all_lines = [line for found in all_commands().values() for line in found]
    here = [line for line in all_lines if not is_elsewhere(line)]
    assert len(here) > 100
    for pattern, where in ELSEWHERE.items():
        assert all((ROOT / path).exists() for path in re.findall(r"tests/\S+\.py", where))
        assert any(re.search(pattern, line) for line in all_lines), f"no command has {pattern}"
    for name in LESS:
        assert any(name in line.split() for line in here), f"no command has {name}"
    # nothing that a reader has to fill in is left, and no recipe is as long as on the page
    for line in map(shortened, here):
        assert not re.search(r"<\w|\.\.\.|\bpath/to\b", line), line
        if "recipes/" in line and not re.search(rf"--help|--cfg|{RESUME.pattern}", line):
            assert "total_frames=2000" in line, line


@pytest.mark.slow
@pytest.mark.parametrize("page", all_commands())
def test_commands_run(page: str, tmp_path: Path) -> None:
    asked = [line for line in all_commands()[page] if not is_elsewhere(line)]
    if importlib.util.find_spec("ray") is None:
        asked = [line for line in asked if not re.search(r"collector=ray|\.workers\b", line)]
    copy_repository(tmp_path)
    failed: list[str] = []
    for line in [*made_before(asked), *map(shortened, asked)]:
        if wrong := run(line, tmp_path):
            failed.append(f"{line}\n{wrong}")
    assert not failed, "\n\n".join(failed)
