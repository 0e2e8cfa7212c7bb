"""Write the table and the pictures of a suite: table.md, curves.png and, over lengths, gaps.png."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torchrl_shm.figures import load_suite, plot_gaps, plot_suite, suite_table
from torchrl_shm.tools._parser import Parser


def main(arguments: Sequence[str]) -> None:
    """Read what was collected, write beside it, print the table.

    Args:
        arguments: the options.

    Raises:
        FileNotFoundError: nothing was collected there.
    """
    parser = Parser("torchrl-shm results", description=__doc__)
    parser.add_argument("folder", type=Path, help="such as docs/results/paper_credit")
    folder: Path = parser.parse_args(arguments).folder
    suite = load_suite(folder)
    table = suite_table(suite)
    (folder / "table.md").write_text(table + "\n")
    plot_suite(suite, folder / "curves.png")
    plot_gaps(suite, folder / "gaps.png")
    print(table)
