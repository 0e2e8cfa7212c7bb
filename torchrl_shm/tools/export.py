"""Write the policy of a run into a folder to be shared: weights, config.json and a model card."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from torchrl_shm.sharing import export_policy
from torchrl_shm.tools._parser import Parser


def main(arguments: Sequence[str]) -> None:
    """Export the policy and print which files were written, as JSON.

    Args:
        arguments: the options.

    Raises:
        FileNotFoundError: the folder is not that of a run, or has no checkpoint yet.
        FileExistsError: the folder to write to holds something else.
        ValueError: the policy has no equivalent in ONNX, or the extra `onnx` is not installed.
    """
    parser = Parser("torchrl-shm export", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--to", type=Path, help="folder to write to; default: `export` in the run")
    parser.add_argument("--checkpoint", choices=["latest", "best"], default="latest")
    parser.add_argument(
        "--onnx", action="store_true", help="also write policy.onnx, one step without torch"
    )
    options = parser.parse_args(arguments)
    try:
        folder = export_policy(
            options.run, options.to, checkpoint=options.checkpoint, onnx=options.onnx
        )
    except ImportError as error:
        raise ValueError(str(error)) from error
    print(json.dumps({"folder": str(folder), "files": sorted(x.name for x in folder.iterdir())}))
