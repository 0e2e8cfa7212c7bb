"""The commands that the README and the site ask the reader to type."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

from tests.docs.test_code_blocks import BLOCK, PAGES, ROOT

PROGRAM = re.compile(r"^(?:\w+=\S+ )*(?:python|torchrl-shm|torchrun|pytest|srun)\b")


def commands(page: Path) -> Iterator[str]:
    """Every command of a page that starts something of ours, on one line and without a comment."""
    for block in BLOCK.finditer(page.read_text()):
        if block["language"] != "bash":
            continue
        code = textwrap.dedent(block["code"]).replace("\\\n", " ")
        for line in re.split(r"\n| && ", code):
            line = re.sub(r"\s+(#.*|&)$", "", re.sub(r" +", " ", line)).strip()
            if PROGRAM.match(line):
                yield line


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
