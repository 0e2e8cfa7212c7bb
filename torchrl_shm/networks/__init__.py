"""What stands around a memory: an encoder before it, action and value heads behind it."""

from torchrl_shm.networks.actor_critic import get_behavior, make_actor_critic
from torchrl_shm.networks.backbone import MemoryFactory
from torchrl_shm.networks.clock import Clock
from torchrl_shm.networks.encoder import Encoder
from torchrl_shm.networks.heads import Head, make_actor
from torchrl_shm.networks.policy import Behavior, Layer, Operator, Policy
from torchrl_shm.networks.soft_actor_critic import SoftOperator, make_soft_actor_critic
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
    "SoftOperator",
    "get_behavior",
    "make_actor",
    "make_actor_critic",
    "make_soft_actor_critic",
]
