"""Print how large each memory is, in the network that the recipes build around it."""

from __future__ import annotations

from collections.abc import Sequence

from hydra_zen import instantiate

from torchrl_shm.configs import MEMORIES, SIZES
from torchrl_shm.modules import MemorySize, measure_memory
from torchrl_shm.tools._parser import Parser, count


def main(arguments: Sequence[str]) -> dict[str, MemorySize]:
    """Measure every memory of the group `memory`, print a table, return the sizes.

    Args:
        arguments: the options.

    Returns:
        Sizes by name.
    """
    parser = Parser("torchrl-shm memories", description=__doc__)
    parser.add_argument("--size", choices=["own", *SIZES], default="own", help="see size= of a run")
    parser.add_argument(
        "--features", type=count, default=64, help="features in and out, network.embedding_size"
    )
    options = parser.parse_args(arguments)
    sizes: dict[str, MemorySize] = {}
    print(f"| {'memory':<23} | parameters | state floats | FLOPs per step |")
    print(f"|{'-' * 25}|-----------:|-------------:|---------------:|")
    for name, config in MEMORIES.items():
        make = instantiate(config, **SIZES.get(options.size, {}).get(name, {}))
        module = make(
            input_size=options.features, output_size=options.features, in_key="x", out_key="y"
        )
        size = sizes[name] = measure_memory(module, input_size=options.features, in_key="x")
        numbers = f"{size.parameters:>10,} | {size.state:>12,} | {size.flops:>14,}"
        print(f"| {f'`{name}`':<23} | {numbers} |")
    return sizes
