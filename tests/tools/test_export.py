"""From a run to a folder to be shared, and from there to the numbers of the run."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from recipes import export
from tests.docs.test_code_blocks import BLOCK
from tests.recipes._helpers import FRAMES, MEMORIES, ROOT, command, process
from torchrl_shm.configs import instantiate_saved
from torchrl_shm.sharing import load_policy
from torchrl_shm.training import evaluate, make_test_env

FILES = ["README.md", "config.json", "model.safetensors"]


@pytest.fixture
def run(finished: Any, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished("shm")[0], tmp_path / "run"))


def test_command(run: Path, tmp_path: Path) -> None:
    cwd = tmp_path / "cwd"
    cwd.mkdir()
    before = {path.name for path in run.iterdir()}
    result = process("export.py", f"run={run}", cwd=cwd)
    assert (result.code, result.stderr) == (0, "")
    assert result.summary == {"folder": str(run / "export"), "files": FILES}
    assert {path.name for path in run.iterdir()} - before == {"export"}
    assert list(cwd.iterdir()) == []


@pytest.mark.parametrize("memory", MEMORIES)
def test_it_evaluates_as_the_run(finished: Any, tmp_path: Path, memory: str) -> None:
    run = finished(memory)[0]
    folder = tmp_path / "shared"
    export.main(str(run), str(folder), "latest")
    parts = instantiate_saved(run)
    env = make_test_env(parts["env"], num_episodes=parts["algo"].num_test_episodes)
    result = evaluate(load_policy(folder).module, env)
    summary = json.loads((run / "summary.json").read_text())
    # a mixture, or equality shows nothing
    assert 0 < summary["eval_success"] < 1
    assert round(result.mean_return, 4) == summary["eval_return"]
    assert result.success_rate == summary["eval_success"]
    config = json.loads((folder / "config.json").read_text())
    assert config["evaluation"] == {
        "mean_return": summary["eval_return"],
        "success_rate": summary["eval_success"],
    }
    assert (config["task"], config["memory_name"], config["frames"]) == ("wind", memory, FRAMES)


def test_the_command_on_the_card_makes_the_run_again(run: Path, tmp_path: Path) -> None:
    """Evaluated, it gives the numbers that stand beside it."""
    export.main(str(run), None, "latest")
    config = json.loads((run / "export" / "config.json").read_text())
    arguments = config["command"].split()
    assert arguments[:2] == ["python", "recipes/ppo_shm.py"]
    result = command("ppo_shm.py", *arguments[2:], f"hydra.run.dir={tmp_path / 'again'}")
    assert result.code == 0, result.stderr
    assert result.summary["eval_return"] == config["evaluation"]["mean_return"]


def test_the_best_checkpoint(run: Path) -> None:
    export.main(str(run), None, "best")
    config = json.loads((run / "export" / "config.json").read_text())
    # of all that were written
    assert (config["frames"] == FRAMES) == (config["evaluation"] is not None)


def test_page_of_the_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("popgym", reason="gymnasium comes with the extra popgym")
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "recipes" / "sharing.md").read_text()
    train, share = re.search(r"```bash\n(.*?)```", page, re.S)[1].splitlines()  # type: ignore[index]
    tiny = ("algo.total_frames=40", "algo.num_envs=2", "algo.rollout_length=10",
            "algo.sequences_per_minibatch=2", "algo.epochs=1", "algo.num_test_episodes=2")  # fmt: skip
    for line, more in ((train, tiny), (share, ())):
        _, script, *arguments = line.split()
        result = command(Path(script).name, *arguments, *more)
        assert result.code == 0, result.stderr
    names: dict[str, Any] = {}
    blocks = [match["code"] for match in BLOCK.finditer(page) if match["language"] == "python"]
    assert len(blocks) == 2
    for code in blocks:
        exec(code, names)
    assert names["score"] > 0


def test_help() -> None:
    result = command("export.py", "--help")
    assert result.code == 0
    assert "python recipes/export.py run=outputs/ppo_shm/<date>/<time>" in result.stdout
    for line in ("run: ???", "to: null", "checkpoint: latest"):
        assert line in result.stdout.splitlines()


class TestMistakes:
    @pytest.mark.parametrize("arguments", [[], ["to=folder"], ["run="]])
    def test_no_run(self, arguments: list[str]) -> None:
        result = command("export.py", *arguments)
        assert (result.code, result.stdout) == (2, "")
        # one line, which says what to pass
        assert result.stderr.count("\n") == 1
        assert "run=outputs/ppo_shm/" in result.stderr

    def test_missing_folder(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"config\.yaml does not exist"):
            export.main(str(tmp_path / "no_run"), None, "latest")
        assert list(tmp_path.iterdir()) == []

    def test_unknown_checkpoint(self, run: Path) -> None:
        with pytest.raises(ValueError, match="checkpoint='worst' is unknown"):
            export.main(str(run), None, "worst")  # type: ignore[arg-type]
        assert not (run / "export").exists()
