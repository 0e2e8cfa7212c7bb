"""The page "Install" names the extras that there are, and what they bring."""

from __future__ import annotations

import re
import tomllib

from tests.docs.test_code_blocks import ROOT

PAGE = (ROOT / "docs" / "install.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ROW = re.compile(r"^\| `([\w-]+)` \| (`.*?`) \|", re.M)
# a requirement without its version and its marker
NAME = re.compile(r"[\w-]+(?:\[[\w,]+\])?")


def test_table_of_extras() -> None:
    found = {extra: re.findall(r"`(.*?)`", names) for extra, names in ROW.findall(PAGE)}
    expected = {
        extra: [match[0] for match in map(NAME.match, requirements) if match]
        for extra, requirements in PROJECT["optional-dependencies"].items()
    }
    assert found == expected


def test_python_version() -> None:
    version = PROJECT["requires-python"].removeprefix(">=")
    assert f"Python {version} or later" in PAGE


def test_versions_of_torch() -> None:
    torch, torchrl, *_ = PROJECT["dependencies"]
    assert torch.startswith("torch>")
    assert torchrl.startswith("torchrl>")
    assert f"`{torchrl}`, for `{torch}`" in PAGE
