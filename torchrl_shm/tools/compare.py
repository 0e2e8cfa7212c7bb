# explained in docs/memories/compare.md
"""Compare finished runs of one task: a picture with confidence bands, and a table.

python recipes/ppo_shm.py -m env=wind memory=mlp,gru,shm seed=0,1,2
python recipes/compare.py multirun/ppo_shm/<date>/<time>
python recipes/compare.py <folder> <folder> --output comparison
"""

from __future__ import annotations

import argparse
from pathlib import Path

from torchrl_shm.figures import comparison_table, load_runs, plot_comparison


def main() -> None:
    """Read the runs, write `<output>.png` and `<output>.md`, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", help="folders of runs, or folders that hold them")
    parser.add_argument(
        "--output", type=Path, help="without ending; default: `comparison` in the first folder"
    )
    arguments = parser.parse_args()
    output: Path = arguments.output or Path(arguments.folders[0]) / "comparison"
    try:
        runs = load_runs(arguments.folders)
        table = comparison_table(runs)
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    output.parent.mkdir(parents=True, exist_ok=True)
    # the name may have dots
    plot_comparison(runs, output.with_name(f"{output.name}.png"))
    output.with_name(f"{output.name}.md").write_text(table + "\n")
    print(table)


if __name__ == "__main__":
    main()
