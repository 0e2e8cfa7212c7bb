"""What makes configs: the builder of factories, and tables of configs that are made when needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from hydra_zen import make_custom_builds_fn

factory_config = make_custom_builds_fn(zen_partial=True, populate_full_signature=True)
"""Makes the config of a factory: a recipe calls it with what only it knows."""


class Presets(Mapping[str, Any]):
    """Configs by name, each made when it is asked for: a run needs one of a hundred.

    Args:
        makers: makes a config, by name.

    Examples:
        >>> from torchrl_shm.configs.presets import Presets
        >>> Presets({"empty": dict})["empty"]
        {}
    """

    def __init__(self, makers: Mapping[str, Callable[[], Any]]) -> None:
        self._makers = makers

    def __getitem__(self, name: str) -> Any:
        """Make the config of that name."""
        return self._makers[name]()

    def __iter__(self) -> Iterator[str]:
        """Names, in the order in which they are listed."""
        return iter(self._makers)

    def __len__(self) -> int:
        """Number of names."""
        return len(self._makers)
