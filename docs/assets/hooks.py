"""What mkdocs does to every page beside its plugins."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from markdown import Markdown
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

SOURCE = '<details class="mkdocstrings-source"'
# what is no text to be read from begin to end
LEFT_OUT = ("reference/", "changelog.md")


def on_page_content(html: str, **kwargs: Any) -> str:
    """Keep source code out of the search, which would find each word of a class there."""
    return html.replace(SOURCE, f"{SOURCE} data-search-exclude")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Offer all pages in one file of plain text, in the order of the navigation."""
    options = {"pymdownx.snippets": {"base_path": [str(Path(config.config_file_path).parent)]}}
    reader = Markdown(extensions=list(options), extension_configs=options)
    pages = [name for name in paths(config.nav) if not name.startswith(LEFT_OUT)]
    texts = [f"<!-- {name} -->\n\n{files.src_uris[name].content_string}" for name in pages]
    lines = reader.preprocessors["snippet"].run("\n\n".join(texts).splitlines())
    files.append(File.generated(config, "all.txt", content="\n".join([*lines, ""])))
    return files


def paths(nav: Any) -> Iterator[str]:
    """Pages of a part of the navigation."""
    if isinstance(nav, str):
        yield nav
    else:
        for part in nav.values() if isinstance(nav, dict) else nav:
            yield from paths(part)
