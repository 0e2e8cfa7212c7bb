"""Compare finished runs of one task: a picture with confidence bands, and a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torchrl_shm.figures import comparison_table, load_runs, plot_comparison
from torchrl_shm.tools._parser import Parser


def main(arguments: Sequence[str]) -> None:
    """Read the runs, write `<output>.png` and `<output>.md`, print the table.

    Args:
        arguments: the options.

    Raises:
        FileNotFoundError: there is no finished run in a folder.
        ValueError: the runs cannot be compared.
    """
    parser = Parser("torchrl-shm compare", description=__doc__)
    parser.add_argument("folders", nargs="+", help="folders of runs, or folders that hold them")
    parser.add_argument(
        "--output", type=Path, help="without ending; default: `comparison` in the first folder"
    )
    options = parser.parse_args(arguments)
    output: Path = options.output or Path(options.folders[0]) / "comparison"
    runs = load_runs(options.folders)
    table = comparison_table(runs)
    output.parent.mkdir(parents=True, exist_ok=True)
    # the name may have dots
    plot_comparison(runs, output.with_name(f"{output.name}.png"))
    output.with_name(f"{output.name}.md").write_text(table + "\n")
    print(table)
