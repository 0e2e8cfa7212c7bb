"""The common look: one color for SHM, few highlighted lines, labels apart, legible text."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

from torchrl_shm.figures import style


def test_shm_is_strong_and_few_others_are_highlighted() -> None:
    names = ["dnc", "s6", "shm (2)", "gru", "lstm", "ffm", "lru", "mlp", "elman"]
    lines = style.choose_lines(names)
    assert list(lines) == names
    assert lines["shm (2)"].color == style.SHM
    assert max(lines.values(), key=lambda line: line.width) is lines["shm (2)"]
    highlighted = [name for name, line in lines.items() if line.label]
    # no memory is always among them
    assert highlighted == ["dnc", "s6", "shm (2)", "gru", "lstm", "mlp"]
    colors = [lines[name].color for name in highlighted]
    assert len(set(colors)) == len(colors)
    assert lines["elman"].color == lines["lru"].color


def test_a_memory_keeps_its_color() -> None:
    few, many = style.choose_lines(["gru", "shm"]), style.choose_lines(["lstm", "mlp", "gru"])
    assert few["gru"] == many["gru"]


@pytest.mark.parametrize("ends", [[0.5] * 6, [1.0] * 6, [0.0, 0.0, 1.0, 1.0, 0.99, 0.01]])
def test_labels_do_not_overlap(ends: list[float]) -> None:
    names = ["shm", "gru", "lstm", "ffm", "lru", "mlp"]
    figure = style.new_figure(3)
    axes = figure.subplots()
    axes.set_ylim(0, 1)
    style.label_curves(axes, dict(zip(names, ends, strict=True)), style.choose_lines(names))
    figure.draw_without_rendering()
    boxes = sorted((text.get_window_extent() for text in axes.texts), key=lambda box: box.y0)
    assert len(boxes) == 6
    assert all(low.y1 <= high.y0 + 1 for low, high in pairwise(boxes))


@pytest.mark.parametrize("height", [2.0, 6.0])
def test_png_tells_how_small_its_text_is(tmp_path: Path, height: float) -> None:
    figure = style.new_figure(height)
    axes = figure.subplots()
    style.dress(axes)
    axes.set_title("title")
    style.save(figure, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        smallest = float(image.info["Smallest text"])
        # on a phone
        assert smallest * 358 / image.width >= 8
    figure = style.new_figure(height)
    style.save(figure, tmp_path / "b.png")
    with Image.open(tmp_path / "b.png") as image:
        assert image.info["Smallest text"] == "none"
    style.save(figure, tmp_path / "c.svg")
