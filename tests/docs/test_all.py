"""All pages in one file of plain text."""

from __future__ import annotations

import pytest

from tests.docs.test_code_blocks import ROOT

config = pytest.importorskip("mkdocs.config", reason='needs pip install -e ".[docs]"')
files = pytest.importorskip("mkdocs.structure.files")


def test_all_pages_in_one_file() -> None:
    values = config.load_config(str(ROOT / "mkdocs.yml"))
    found = values.plugins.on_files(files.get_files(values), config=values)
    text = found.src_uris["all.txt"].content_string
    for page in ("index.md", "gpu.md", "tutorials/own_environment.md", "concepts/shm.md"):
        assert (ROOT / "docs" / page).read_text().splitlines()[0] in text
    # tables are there, not the lines that include them
    assert "--8<--" not in text
    assert (ROOT / "docs" / "pictures" / "presets.md").read_text() in text
    assert "# SHMModule\n" not in text, "reference pages are made from docstrings"
    # as a reader goes through them
    places = [text.index(f"<!-- {x}.md -->") for x in ("index", "gpu", "tasks/index", "citation")]
    assert places == sorted(places)
