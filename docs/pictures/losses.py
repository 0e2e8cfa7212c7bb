"""The table of losses on the page "Which loss, which state", from the table that the tests check.

PYTHONPATH=. python docs/pictures/losses.py
"""

from __future__ import annotations

import re
from pathlib import Path

from tests.modules._loss_table import CASES, DETACHED, EXACT, Refused

WHERE = {"actor": "actor", "critic": "critic", "both": "one each", "shared": "one for both"}
HEADER = (
    "| loss | memories | `lean` | `stored` | `zero` | on features of `unroll` |",
    "|---|---|---|---|---|---|",
)


def show(outcome: Refused | str) -> str:
    """An outcome; errors link to their reason."""
    if isinstance(outcome, Refused):
        return f"[error: {outcome.reason}](#{outcome.reason})"
    return {EXACT: "exact", DETACHED: "[**learns nothing**](#detached)"}[outcome]


def make_table() -> str:
    """Markdown; what has the same outcomes shares a row."""
    places: dict[tuple[str, ...], list[str]] = {}
    for name, case in CASES.items():
        # "PPOLoss, ..." is PPOLoss in a certain way
        loss, way = re.fullmatch(r"([^ ,]+)(.*)", name).groups()  # pyright: ignore
        for where, outcomes in case.outcomes.items():
            key = (loss, way, *map(show, outcomes), show(case.unrolled))
            places.setdefault(key, []).append(WHERE[where])
    rows: dict[tuple[str, ...], list[str]] = {}
    for (loss, way, *cells), where in places.items():
        rows.setdefault((way, ", ".join(where), *cells), []).append(f"`{loss}`")
    lines: list[str] = []
    for (way, *cells), losses in rows.items():
        first = ", ".join(losses) + re.sub(r"(\w+=\w+)", r"`\1`", way)
        lines.append(f"| {' | '.join([first, *cells])} |")
    return "\n".join([*HEADER, *lines]) + "\n"


if __name__ == "__main__":
    Path(__file__).with_suffix(".md").write_text(make_table())
