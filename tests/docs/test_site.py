"""Every page of the site as a browser shows it, see `check_site.py`."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.docs.check_site import ROOT, find_browser


@pytest.mark.slow
def test_every_page_in_a_browser() -> None:
    for package in ("mkdocs", "playwright", "axe_playwright_python"):
        pytest.importorskip(package, reason='needs pip install -e ".[docs,browser]"')
    if find_browser() is None:
        pytest.skip("needs Chromium, as apt-get install chromium gives it")
    result = subprocess.run(
        [sys.executable, "-m", "tests.docs.check_site"], cwd=ROOT, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
