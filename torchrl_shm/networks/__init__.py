"""What stands around a memory: an encoder before it, action and value heads behind it."""

from torchrl_shm.networks.actor_critic import (
    COMPUTED_KEYS,
    MemoryFactory,
    get_behavior,
    make_actor_critic,
)
from torchrl_shm.networks.encoder import Encoder
from torchrl_shm.networks.heads import Head, make_actor
from torchrl_shm.networks.specs import EnvSpecs

__all__ = [
    "COMPUTED_KEYS",
    "Encoder",
    "EnvSpecs",
    "Head",
    "MemoryFactory",
    "get_behavior",
    "make_actor",
    "make_actor_critic",
]
