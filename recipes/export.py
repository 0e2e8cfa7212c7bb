# explained in docs/recipes/sharing.md
"""Write the policy of a run into a folder to be shared: weights, config.json and a model card.

python recipes/export.py run=outputs/ppo_shm/<date>/<time>
python recipes/export.py run=outputs/ppo_shm/<date>/<time> to=my_policy
"""

from __future__ import annotations

import json
import sys
from typing import Any

from hydra.conf import HelpConf, HydraConf, JobConf, RunDir
from hydra_zen import MISSING, ZenStore, make_config, zen
from omegaconf import DictConfig, OmegaConf

from torchrl_shm.configs import export_policy
from torchrl_shm.training import Which


def main(run: str, to: str | None, checkpoint: Which) -> dict[str, Any]:
    """Export the policy, print and return which files were written."""
    folder = export_policy(run, to, checkpoint=checkpoint)
    written = {"folder": str(folder), "files": sorted(path.name for path in folder.iterdir())}
    print(json.dumps(written), flush=True)
    return written


def require_run(config: DictConfig) -> None:
    """Stop with one line if the command does not say which run."""
    if OmegaConf.is_missing(config, "run") or not config.run:
        message = "export.py: pass the folder of a run, run=outputs/ppo_shm/<date>/<time>_..."
        print(message, file=sys.stderr)
        raise SystemExit(2)


HELP = f"""\
{__doc__}
run         folder of the run
to          folder to write to; null is `export` in the folder of the run
checkpoint  latest or best

== Configuration ==
$CONFIG"""

if __name__ == "__main__":
    config = make_config(
        hydra_defaults=["_self_", {"override hydra/job_logging": "none"}],
        run=MISSING,
        to=None,
        checkpoint="latest",
    )
    store = ZenStore(name="export", deferred_hydra_store=True, overwrite_ok=True)
    store(config, name="export")
    # all output goes to the exported folder
    store(
        HydraConf(
            job=JobConf(name="export"),
            run=RunDir("."),
            output_subdir=None,
            help=HelpConf(app_name="export", template=HELP),
        )
    )
    store.add_to_hydra_store(overwrite_ok=True)
    task = zen(main, pre_call=require_run)
    task.hydra_main(config_name="export", config_path=None, version_base="1.3")
