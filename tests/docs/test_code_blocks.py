"""Every python block of the README and of the site runs.

Blocks of one page share their names, top to bottom, as a reader would type them. A block that
cannot run here stands below a comment that says why: `<!-- no-run: reason -->`.
"""

import re
import textwrap
from pathlib import Path
from unittest.mock import patch

import gymnasium
import pytest

from tests._night import at_night

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(
    r"(?P<skip><!-- no-run: \S.*? -->\s*\n)?"
    r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n"
    r"(?P<code>.*?)"
    r"^(?P=indent)```$",
    re.M | re.S,
)

# they train for seconds
SLOW = tuple(
    f"docs/{name}.md"
    for name in (
        "concepts/losses", "tutorials/own_algorithm", "tutorials/own_environment",
        "tutorials/pipeline", "tutorials/several_agents",
    )
)  # fmt: skip


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(text: str) -> list[tuple[int, str]]:
    """First line and code of every python block that is to run."""
    return [
        (text.count("\n", 0, match.start("code")), textwrap.dedent(match["code"]))
        for match in BLOCK.finditer(text)
        if match["language"].startswith("py") and not match["skip"]
    ]


@pytest.mark.parametrize(
    "page",
    at_night(PAGES, unless=lambda page: name_of(page) not in SLOW),
    ids=name_of,
)
def test_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # a model card is read where it lies, and pages in the repository
    policy = page.parent.parent.name == "policies"
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    monkeypatch.chdir(page.parent if policy else tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    # what a page registers is not there for the next
    with patch.dict(gymnasium.registry):
        for line, code in blocks(page.read_text()):
            # blank lines in front, so that a traceback names the line of the page
            exec(compile("\n" * line + code, page, "exec"), names)


def test_blocks_are_found() -> None:
    page = textwrap.dedent("""\
        ```python
        a = 1
        ```
        <!-- no-run: needs a GPU -->
        ```python
        b = 2
        ```
        ```bash
        c
        ```

            ```py title="indented"
            d = 4
            ```
        """)
    assert blocks(page) == [(1, "a = 1\n"), (12, "d = 4\n")]
