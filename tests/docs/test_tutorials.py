"""What the tutorials quote and what they ask the reader to run is as they say."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path

import pytest

from tests._processes import Child, python
from tests.docs.test_code_blocks import BLOCK, ROOT, blocks

TUTORIALS = ROOT / "docs" / "tutorials"
QUOTE = "part of recipes/ppo_shm.py"


def skipped(page: str, reason: str) -> list[str]:
    """Code below `<!-- no-run: ... -->` comments that hold the reason."""
    text = (TUTORIALS / page).read_text()
    return [m["code"] for m in BLOCK.finditer(text) if m["skip"] and reason in m["skip"]]


def unindented(code: str) -> str:
    return "\n".join(line.strip() for line in code.strip().splitlines())


def test_the_recipe_is_quoted_as_it_is() -> None:
    recipe = unindented((ROOT / "recipes" / "ppo_shm.py").read_text())
    main = recipe[recipe.index("def main(") :]
    quotes = [unindented(code) for code in skipped("first_agent.md", QUOTE)]
    assert len(quotes) == 9
    # `...` leaves something out
    for part in (part for quote in quotes for part in quote.split("\n...\n")):
        assert part in main, f"not in the recipe any more:\n{part}"


def test_the_recipe_runs_from_python(tmp_path: Path) -> None:
    (code,) = skipped("configs.md", "test_tutorials.py")
    (tmp_path / "train.py").write_text(code)
    train = partial(python, tmp_path, "train.py", paths=[ROOT / "recipes"])
    with Child(train, tmp_path / "out") as child:
        assert child.wait(300) == 0, child.text()
    (summary,) = tmp_path.glob("outputs/ppo_shm/*/*_shm_seed0/summary.json")
    assert json.loads(summary.read_text())["env"] == "memory_length"


def test_bugs_break_the_promise_that_the_page_names(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "concepts" / "bugs.md").read_text()
    names: dict[str, object] = {}
    for _, code in blocks(page):
        exec(code, names)
    found = [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert found == re.findall(r"^print\(examine\(\w+\(\)\)\)  # ([\w ]+)$", page, re.M)
    assert len(found) == 8
