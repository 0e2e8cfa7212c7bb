"""One command for all tools, and one line for every mistake."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tools._helpers import tool
from torchrl_shm.tools.cli import TOOLS


@pytest.mark.parametrize("arguments", [(), ("--help",)])
def test_tools_are_listed(arguments: tuple[str, ...]) -> None:
    result = tool(*arguments)
    assert (result.code, result.stderr) == (0, "")
    files = Path(sys.modules["torchrl_shm.tools"].__path__[0]).glob("[a-z]*.py")
    assert {path.stem for path in files} - {"cli"} == TOOLS.keys()
    for name, text in TOOLS.items():
        assert f"  {name:<10} {text}\n" in result.stdout


def test_it_is_a_module_and_needs_no_torch_to_help(tmp_path: Path) -> None:
    code = """
import runpy, sys
try:
    runpy.run_module("torchrl_shm", run_name="__main__")
finally:
    assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("usage: torchrl-shm TOOL"), done.stderr


@pytest.mark.parametrize("name", TOOLS)
def test_each_explains_its_options(name: str) -> None:
    result = tool(name, "--help")
    assert (result.code, result.stderr) == (0, "")
    assert result.stdout.startswith(f"usage: torchrl-shm {name} ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evalute"], "there is no tool 'evalute'; did you mean evaluate?"),
        (
            ["zzz"],
            "there is no tool 'zzz'; choose one of evaluate, compare, export, suite, sweep",
        ),
        (["evaluate", "typo"], "typo holds neither config.yaml nor config.json; this must be"),
        (["export", "typo"], "typo/config.yaml does not exist; this must be the folder of a run"),
        (["compare", "typo"], "typo"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = tool(*arguments)
    assert (result.code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert result.stderr.startswith("torchrl-shm")
    assert message in result.stderr
    # a mistyped folder is not made
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["evaluate", "export"])
def test_runs_that_cannot_be_used(name: str, run: Path) -> None:
    assert tool(name, run, "--checkpoint", "first").code == 2
    shutil.rmtree(run / "checkpoints")
    result = tool(name, run)
    assert (result.code, result.stderr.count("\n")) == (2, 1)
    assert "checkpoints holds no checkpoint: the run" in result.stderr
    (run / "config.yaml").write_text("env: {}\nalgo: {}\n")
    assert "was written by an older version" in tool(name, run).stderr
