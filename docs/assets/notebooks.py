"""A page of the site as a notebook: its python blocks are cells, and all else is plain Markdown."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable

import jupytext

# packages that the project does not install, and that are installed where a page imports them
OTHERS = ("gymnasium",)
BLOCK = re.compile(
    r"(?P<skip><!-- no-run: \S.*? -->\s*\n)?"
    r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^(?P=indent)```$",
    re.M | re.S,
)
# what stands above indented text: a tab, or a box that may be closed
HEAD = re.compile(r'(?:===\+?|!!!|\?\?\?\+?) +(?=\S)(?P<kind>[\w ]*?) *(?:"(?P<title>.*)")?')
COMMENT = re.compile(r"<!--.*?-->\n*", re.S)
# code is skipped; a picture or a link, to a page or into the reference, with its attributes
LINK = re.compile(
    r"(?P<code>`+).+?(?P=code)|"
    r"(?P<picture>!?)\[(?P<text>(?:`[^`]*`|[^\[\]`])+)\]"
    r"(?:\((?P<target>[^()\s]+)\)|\[(?P<name>[\w.]+)\])(?:\{[^{}\n]*\})?",
    re.S,
)


def make_notebook(page: str, find: Callable[[str], str | None], source: str) -> str:
    """Convert a page.

    Args:
        page: Markdown of the page, in which all files are included.
        find: the address of what a link of the page leads to, if it can be reached from elsewhere.
        source: from which pip installs this project.

    Returns:
        The notebook as JSON. Python that is not to be run stays text, as all other languages do.
    """
    page, parts, texts, end = unwrap(page), [install(page, source)], [], 0
    for block in BLOCK.finditer(page):
        python = block["language"].startswith("py")
        texts.append(make_plain(page[end : block.start()], find))
        language, code = "python" if python else block["language"], textwrap.dedent(block["code"])
        end, fenced = block.end(), f"```{language}\n{code}```"
        if python and not block["skip"]:
            parts += [join(texts), fenced]
            texts = []
        else:
            texts.append(fenced)
    parts.append(join([*texts, make_plain(page[end:], find)]))
    notebook = jupytext.reads("\n\n".join(filter(None, parts)), "md")
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    # the same at every build
    for i, cell in enumerate(notebook.cells):
        cell.update(id=f"cell-{i}", metadata={})
    return jupytext.writes(notebook, "ipynb")


def install(page: str, source: str) -> str:
    """First cell: install what is missing."""
    needs = [name for name in OTHERS if re.search(rf"^import {name}\b", page, re.M)]
    return (
        "```python\n"
        "from importlib.util import find_spec\n\n"
        'if find_spec("torchrl_shm") is None:\n'
        "    # a folder with a checkout, or git+ and the address of a repository\n"
        f"    %pip install -q {' '.join([source, *needs])}\n"
        "```"
    )


def join(texts: list[str]) -> str:
    """One cell of Markdown, even where there is code in it; none of no text."""
    text = "\n\n".join(filter(None, texts))
    return f"<!-- #region -->\n{text}\n<!-- #endregion -->" if text else ""


def unwrap(text: str) -> str:
    """Write tabs and boxes as a bold title and the text that was indented below it."""
    lines, found = text.strip("\n").splitlines(), []
    while lines:
        line = lines.pop(0)
        head = HEAD.fullmatch(line)
        if head is None:
            found.append(line)
            continue
        body = []
        while lines and (not lines[0] or lines[0].startswith("    ")):
            body.append(lines.pop(0))
        title = head["title"] or head["kind"].capitalize()
        found += [f"**{title}**", "", unwrap(textwrap.dedent("\n".join(body))), ""]
    return "\n".join(found)


def make_plain(text: str, find: Callable[[str], str | None]) -> str:
    """Drop comments, and what leads nowhere from a notebook."""

    def replace(link: re.Match[str]) -> str:
        if link["code"]:
            return link[0]
        address = link["target"] and find(link["target"])
        return f"{link['picture']}[{link['text']}]({address})" if address else link["text"]

    return LINK.sub(replace, COMMENT.sub("", text)).strip()
