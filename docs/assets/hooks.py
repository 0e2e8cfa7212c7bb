"""What mkdocs does to every page beside its plugins."""

from __future__ import annotations

from typing import Any

SOURCE = '<details class="mkdocstrings-source"'


def on_page_content(html: str, **kwargs: Any) -> str:
    """Keep source code out of the search, which would find each word of a class there."""
    return html.replace(SOURCE, f"{SOURCE} data-search-exclude")
