"""What mkdocs does to every page beside its plugins."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

from markdown import Markdown
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from notebooks import make_notebook  # beside this file

SOURCE = '<details class="mkdocstrings-source"'
# what is no text to be read from begin to end
LEFT_OUT = ("reference/", "changelog.md")
# pages that are notebooks, too
TUTORIALS = "tutorials/"
GITHUB = "https://github.com/"
COLAB = "https://colab.research.google.com/github/"


def on_page_content(html: str, **kwargs: Any) -> str:
    """Keep source code out of the search, which would find each word of a class there."""
    return html.replace(SOURCE, f"{SOURCE} data-search-exclude")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Offer all pages in one file of plain text, in the order of the navigation, and notebooks."""
    pages = [name for name in paths(config.nav) if not name.startswith(LEFT_OUT)]
    texts = [f"<!-- {name} -->\n\n{files.src_uris[name].content_string}" for name in pages]
    lines = include("\n\n".join(texts), config)
    files.append(File.generated(config, "all.txt", content="\n".join([*lines, ""])))
    source = f"git+{config.repo_url}" if config.repo_url else "-e ."
    for page in [file for file in files.documentation_pages() if is_tutorial(file)]:

        def find(target: str, page: File = page) -> str | None:
            return find_address(target, page, files, config)

        text = "\n".join(include(page.content_string, config))
        notebook = make_notebook(text, find, source)
        files.append(File.generated(config, notebook_of(page), content=notebook))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Link the notebook of a tutorial below its title."""
    if not is_tutorial(page.file):
        return markdown
    uri = notebook_of(page.file)
    name = uri.rpartition("/")[2]
    links = [f'[Open as a notebook]({name}){{ download="{name}" }}']
    if (config.repo_url or "").startswith(GITHUB):
        repository = config.repo_url.removeprefix(GITHUB).removesuffix("/").removesuffix(".git")
        # the site is a branch of the repository
        links.append(f"[Open in Colab]({COLAB}{repository}/blob/{config.remote_branch}/{uri})")
    title, _, rest = markdown.partition("\n")
    return f"{title}\n\n{' · '.join(links)}\n{rest}"


def include(text: str, config: MkDocsConfig) -> list[str]:
    """Lines of a text with the files that it includes."""
    options = {"pymdownx.snippets": {"base_path": [str(Path(config.config_file_path).parent)]}}
    reader = Markdown(extensions=list(options), extension_configs=options)
    return reader.preprocessors["snippet"].run(text.splitlines())


def is_tutorial(file: File) -> bool:
    """Whether there is a notebook of a page."""
    return file.src_uri.startswith(TUTORIALS) and file.is_documentation_page()


def notebook_of(file: File) -> str:
    """Where the notebook of a page lies."""
    return file.src_uri.removesuffix(".md") + ".ipynb"


def find_address(target: str, page: File, files: Files, config: MkDocsConfig) -> str | None:
    """Address of what a page links, if it can be opened from elsewhere."""
    if "://" in target:
        return target
    if not config.site_url:
        return None
    path, mark, anchor = target.partition("#")
    linked = files.get_file_from_path(urljoin(page.src_uri, path))
    return linked and urljoin(config.site_url, linked.url) + mark + anchor


def paths(nav: Any) -> Iterator[str]:
    """Pages of a part of the navigation."""
    if isinstance(nav, str):
        yield nav
    else:
        for part in nav.values() if isinstance(nav, dict) else nav:
            yield from paths(part)
