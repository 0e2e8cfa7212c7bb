"""What stands around a memory: an encoder before it, action and value heads behind it."""

from torchrl_shm.networks.actor_critic import (
    MemoryFactory,
    get_behavior,
    make_actor_critic,
)
from torchrl_shm.networks.clock import Clock
from torchrl_shm.networks.encoder import Encoder
from torchrl_shm.networks.heads import Head, make_actor
from torchrl_shm.networks.policy import Behavior, Layer, Operator, Policy
from torchrl_shm.networks.specs import EnvSpecs

__all__ = [
    "Behavior",
    "Clock",
    "Encoder",
    "EnvSpecs",
    "Head",
    "Layer",
    "MemoryFactory",
    "Operator",
    "Policy",
    "get_behavior",
    "make_actor",
    "make_actor_critic",
]
