# explained in docs/memories/index.md
"""Print how large each memory is, in the network that the recipes build around it.

python recipes/memories.py
python recipes/memories.py size=params
python recipes/memories.py size=state algo.embedding_size=32
"""

from __future__ import annotations

import argparse
import sys

from hydra import compose, initialize
from hydra_zen import instantiate

from torchrl_shm.configs import MEMORIES, register
from torchrl_shm.modules import MemorySize, measure_memory


def main(overrides: list[str]) -> dict[str, MemorySize]:
    """Measure every memory of the group `memory`, print a table, return the sizes."""
    if chosen := [override for override in overrides if override.startswith("memory")]:
        sys.exit(f"{chosen} would be the same for all memories, which this table compares; drop it")
    register("memories", algo="ppo")
    sizes: dict[str, MemorySize] = {}
    print(f"| {'memory':<23} | parameters | state floats | FLOPs per step |")
    print(f"|{'-' * 25}|-----------:|-------------:|---------------:|")
    with initialize(version_base="1.3", config_path=None):
        for name in MEMORIES:
            # outside of a run there is no Hydra to ask for names and folders
            fixed = [f"memory={name}", "names={}", "run_dir=''"]
            config = compose("memories", [*fixed, *overrides])
            features = config.algo.embedding_size
            make = instantiate(config.memory)
            module = make(input_size=features, output_size=features, in_key="x", out_key="y")
            size = sizes[name] = measure_memory(module, input_size=features, in_key="x")
            numbers = f"{size.parameters:>10,} | {size.state:>12,} | {size.flops:>14,}"
            print(f"| {f'`{name}`':<23} | {numbers} |")
    return sizes


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("overrides", nargs="*", help="options of ppo_shm.py, such as size=params")
    main(parser.parse_args().overrides)
