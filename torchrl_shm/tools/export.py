# explained in docs/recipes/sharing.md
"""Write the policy of a run into a folder to be shared: weights, config.json and a model card.

python recipes/export.py run=outputs/ppo_shm/<date>/<time>
python recipes/export.py run=outputs/ppo_shm/<date>/<time> to=my_policy
"""

from __future__ import annotations

import json
from typing import Any

from torchrl_shm.configs import run_on_run
from torchrl_shm.sharing import export_policy
from torchrl_shm.training import Which


def main(run: str, to: str | None, checkpoint: Which) -> dict[str, Any]:
    """Export the policy, print and return which files were written."""
    folder = export_policy(run, to, checkpoint=checkpoint)
    written = {"folder": str(folder), "files": sorted(path.name for path in folder.iterdir())}
    print(json.dumps(written), flush=True)
    return written


HELP = f"""\
{__doc__}
run         folder of the run
to          folder to write to; null is `export` in the folder of the run
checkpoint  latest or best"""

if __name__ == "__main__":
    run_on_run(main, name="export", help=HELP, to=None, checkpoint="latest")
