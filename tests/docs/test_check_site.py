"""The check of the site measures text in figures."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.docs.check_site import smallest_text


@pytest.mark.parametrize(("text", "expected"), [("20.0", 10.0), ("none", math.inf), (None, None)])
def test_png(tmp_path: Path, text: str | None, expected: float | None) -> None:
    info = PngInfo()
    if text is not None:
        info.add_text("Smallest text", text)
    Image.new("RGB", (800, 10)).save(tmp_path / "a.png", pnginfo=info)
    assert smallest_text(tmp_path / "a.png", 400) == expected


def test_svg(tmp_path: Path) -> None:
    path = tmp_path / "a.svg"
    path.write_text('<svg viewBox="0 0 400 100"><g font-size="12"><text font-size="11"/></g></svg>')
    assert smallest_text(path, 200) == 5.5
    path.write_text('<svg viewBox="0 0 400 100"></svg>')
    assert smallest_text(path, 200) == math.inf
