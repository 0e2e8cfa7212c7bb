"""What pages of the site build trains from the command line, as the pages say."""

from __future__ import annotations

import csv
from functools import partial
from pathlib import Path

import pytest

from tests._processes import Child, python
from tests.docs.test_code_blocks import BLOCK, ROOT, blocks


@pytest.mark.parametrize(
    ("page", "module", "options"),
    [
        (
            "own_memory.md",
            "traces.py",
            ["env=memory_length", "env.length=3", "memory=traces", "memory.memory_size=7"],
        ),
        pytest.param(
            "own_environment.md", "lamp.py", ["env=lamp", "env.delay=4"], marks=pytest.mark.slow
        ),
    ],
)
def test_it_trains_and_is_evaluated(
    tmp_path: Path, page: str, module: str, options: list[str]
) -> None:
    text = (ROOT / "docs" / "tutorials" / page).read_text()
    classes = [code for _, code in blocks(text) if "class " in code]
    (train,) = (match["code"] for match in BLOCK.finditer(text) if match["skip"])
    (tmp_path / module).write_text("\n".join(classes))
    (tmp_path / "train.py").write_text(train)
    run(
        tmp_path,
        ["train.py", *options, "experiment.total_frames=200", "experiment.num_envs=8",
         "algo.rollout_length=12", "algo.sequences_per_minibatch=4",
         "experiment.num_test_episodes=4", "hydra.run.dir=run"],
    )  # fmt: skip
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").read_text().splitlines()))
    assert len(rows) == 3
    option = options[-1].partition(".")[2].replace("=", ": ")
    assert option in (tmp_path / "run" / "config.yaml").read_text()
    run(tmp_path, ["-m", "torchrl_shm", "evaluate", "run"])
    assert (tmp_path / "run" / "episode.gif").read_bytes().startswith(b"GIF")


def run(folder: Path, arguments: list[str]) -> None:
    paths = (ROOT / "recipes", ROOT)
    with Child(partial(python, folder, *arguments, paths=paths), folder / "out") as child:
        assert child.wait(300) == 0, child.text()
