"""The tutorials as notebooks: their cells are the python blocks, which another test runs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.docs.test_code_blocks import ROOT, blocks

config = pytest.importorskip("mkdocs.config", reason='needs pip install -e ".[docs]"')
files = pytest.importorskip("mkdocs.structure.files")
pages = pytest.importorskip("mkdocs.structure.pages")
nbformat = pytest.importorskip("nbformat")
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
NAMES = [path.stem for path in TUTORIALS]
# what only mkdocs understands, outside of code
UNKNOWN = re.compile(r"^(?:===|!!!|\?\?\?)|--8<--|<!--|\]\[\w|\]\([^)]*\.md|\{[:.#]|^ {4}\S", re.M)
CODE = re.compile(r"^```.*?^```$|`[^`]*`", re.M | re.S)


@contextmanager
def site(**options: str) -> Iterator[tuple[Any, Any]]:
    """Configuration and files of the site, as they are before pages are made."""
    values = config.load_config(str(ROOT / "mkdocs.yml"), **options)
    yield values, values.plugins.on_files(files.get_files(values), config=values)


@pytest.fixture(scope="module")
def notebooks() -> dict[str, Any]:
    with site() as (_, found):
        return {
            uri: json.loads(file.content_string)
            for uri, file in found.src_uris.items()
            if uri.endswith(".ipynb")
        }


def cells(notebook: dict[str, Any], kind: str) -> list[str]:
    return ["".join(x["source"]) for x in notebook["cells"] if x["cell_type"] == kind]


def test_every_tutorial_has_one(notebooks: dict[str, Any]) -> None:
    assert sorted(notebooks) == [f"tutorials/{name}.ipynb" for name in NAMES]


@pytest.mark.parametrize("name", NAMES)
def test_cells_are_the_blocks_of_the_page(notebooks: dict[str, Any], name: str) -> None:
    notebook = notebooks[f"tutorials/{name}.ipynb"]
    nbformat.validate(notebook)
    page = (ROOT / "docs" / "tutorials" / f"{name}.md").read_text()
    install, *code = cells(notebook, "code")
    assert "%pip install" in install
    assert ("gymnasium" in install) == ("import gymnasium" in page)
    assert code == [block.rstrip("\n") for _, block in blocks(page)]
    text = cells(notebook, "markdown")
    assert all(text)
    assert text[0].startswith(page.partition("\n")[0])
    assert UNKNOWN.findall(CODE.sub("", "\n".join(text))) == []


def test_one_runs_from_its_first_cell(notebooks: dict[str, Any]) -> None:
    """The quickest; nothing is installed where the package is."""
    install, *code = cells(notebooks["tutorials/own_memory.ipynb"], "code")
    names: dict[str, object] = {"__name__": "__main__"}
    for cell in (install.replace("%pip", "assert False  #"), *code):
        exec(cell, names)
    assert "Traces" in names


def test_pages_link_their_notebooks() -> None:
    github = "https://github.com/someone/memory"
    there = "/someone/memory/blob/gh-pages/tutorials/pipeline.ipynb)"
    for address, colab in (("", 0), ("https://example.org/memory", 0), (github + ".git", 1)):
        with site(repo_url=address) as (values, found):
            page = pages.Page(None, found.src_uris["tutorials/pipeline.md"], values)
            lines = values.plugins.on_page_markdown(
                "# Title\n\nText.\n", page=page, config=values, files=found
            ).splitlines()
            assert lines[0] == "# Title"
            assert '(pipeline.ipynb){ download="pipeline.ipynb" }' in lines[2]
            assert lines[2].count(there) == colab
            other = pages.Page(None, found.src_uris["faq.md"], values)
            assert "ipynb" not in values.plugins.on_page_markdown(
                "# Title\n", page=other, config=values, files=found
            )
            notebook = json.loads(found.src_uris["tutorials/pipeline.ipynb"].content_string)
            source = f"git+{address}" if address else "-e ."
            assert f"%pip install -q {source}" in cells(notebook, "code")[0]


def test_links_lead_to_the_site() -> None:
    with site(site_url="https://example.org/shm/") as (_, found):
        notebook = json.loads(found.src_uris["tutorials/pipeline.ipynb"].content_string)
    text = "\n".join(cells(notebook, "markdown"))
    assert "(https://example.org/shm/concepts/gates/)" in text
    assert "(https://example.org/shm/concepts/memory/)" in text


def test_what_only_mkdocs_understands_becomes_plain() -> None:
    with site() as (values, _):
        make = values.hooks["docs/assets/hooks.py"].make_notebook
    page = """\
# Title

!!! note "Mind *this*"
    Read `[a](b.md)` and [that](b.md#c), or [`x`][some.x] and [home](https://example.org/).

    ```py title="a.py"
    a = 1
    ```

??? warning

    ![A picture](p.png){ width="20" }

1. first

   ```python
   b = 2
   ```

<!-- no-run: it takes long -->
```python
c = 3


d = 4
```
"""
    notebook = json.loads(make(page, lambda x: x if "://" in x else None, "git+https://a.b/c"))
    assert cells(notebook, "code")[1:] == ["a = 1", "b = 2"]
    text = [cell.strip() for cell in cells(notebook, "markdown")]
    assert text == [
        "# Title\n\n**Mind *this***\n\n"
        "Read `[a](b.md)` and that, or `x` and [home](https://example.org/).",
        "**Warning**\n\nA picture\n\n1. first",
        "```python\nc = 3\n\n\nd = 4\n```",
    ]
