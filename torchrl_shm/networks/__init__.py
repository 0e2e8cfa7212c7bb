"""What stands around a memory: an encoder before it, action and value heads behind it."""

from torchrl_shm.networks.actor_critic import (
    EnvSpecs,
    MemoryFactory,
    get_behaviour,
    make_actor_critic,
)

__all__ = ["EnvSpecs", "MemoryFactory", "get_behaviour", "make_actor_critic"]
