"""The commands that the README and the site ask the reader to type."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

from tests.docs.test_code_blocks import BLOCK, PAGES, ROOT

PROGRAM = re.compile(
    r"^(?:\w+=\S+ )*(?:python|torchrl-shm|torchrun|pytest|srun|compute-sanitizer)\b"
)


def lines(page: Path) -> Iterator[str]:
    """Every line of a page's shell blocks, continued ones as one, without comments."""
    for block in BLOCK.finditer(page.read_text()):
        if block["language"] == "bash":
            code = textwrap.dedent(block["code"]).replace("\\\n", " ")
            for line in re.split(r"\n| && ", code):
                bare = re.sub(r"\s+(#.*|&)$", "", re.sub(r" +", " ", line)).strip()
                if bare:
                    yield bare


def commands(page: Path) -> Iterator[str]:
    """Every command of a page that starts something of ours."""
    return (line for line in lines(page) if PROGRAM.match(line))


def all_commands() -> dict[str, list[str]]:
    """Commands by page, each where it stands first."""
    seen: set[str] = set()
    found: dict[str, list[str]] = {}
    for page in PAGES:
        new = [line for line in dict.fromkeys(commands(page)) if line not in seen]
        seen.update(new)
        if new:
            found[page.relative_to(ROOT).as_posix()] = new
    return found
