"""The command `torchrl-shm`: the name of a tool, then its options."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from importlib import import_module

TOOLS = {
    "evaluate": "evaluate a run or a policy on every test task and draw what the agent does",
    "compare": "compare finished runs of one task: a picture and a table",
    "export": "write the policy of a run into a folder to be shared",
    "suite": "run a set of runs, take up what was stopped, collect the results",
    "sweep": "show what is finished, running, stopped and missing of a sweep",
    "results": "write the table and the pictures of a suite",
    "memories": "print how large each memory is",
}
"""Tools by name; each is a file of this folder with a function `main(arguments)`."""

_HELP = "\n".join(
    [
        "usage: torchrl-shm TOOL ...      (or: python -m torchrl_shm TOOL ...)",
        "",
        *(f"  {name:<10} {text}" for name, text in TOOLS.items()),
        "",
        "torchrl-shm TOOL --help explains the options of a tool.",
    ]
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a tool.

    Args:
        arguments: name of the tool and its options. Default: the command line.

    Returns:
        The exit code: 0, or 2 after a mistake of the command line, which is reported in one line.
    """
    given = sys.argv[1:] if arguments is None else arguments
    if not given or given[0] in ("-h", "--help"):
        print(_HELP)
        return 0
    tool, *options = given
    if tool not in TOOLS:
        near = difflib.get_close_matches(tool, TOOLS, 1)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(TOOLS)}"
        print(f"torchrl-shm: there is no tool {tool!r}; {hint}", file=sys.stderr)
        return 2
    try:
        import_module(f"torchrl_shm.tools.{tool}").main(options)
    except (OSError, ValueError) as error:
        # a mistake of the command line, which no traceback explains
        reason = error
        if isinstance(error, OSError) and error.strerror:
            reason = f"{error.filename}: {error.strerror}"
        print(f"torchrl-shm {tool}: {reason}", file=sys.stderr)
        return 2
    return 0
