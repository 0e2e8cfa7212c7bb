"""What stands around a memory: an encoder before it, action and value heads behind it."""

from torchrl_shm.networks.actor_critic import get_behavior, make_actor_critic
from torchrl_shm.networks.backbone import MemoryFactory
from torchrl_shm.networks.clock import Clock
from torchrl_shm.networks.encoder import (
    Encoder,
    EncoderFactory,
    FourierEncoder,
    ImageEncoder,
)
from torchrl_shm.networks.heads import ActionScale, Head, make_actor
from torchrl_shm.networks.image import Convolution, is_image
from torchrl_shm.networks.normalization import Moments, Normalized, find_normalized
from torchrl_shm.networks.policy import Behavior, Layer, Operator, Policy
from torchrl_shm.networks.soft_actor_critic import SoftOperator, make_soft_actor_critic
from torchrl_shm.networks.specs import EnvSpecs

__all__ = [
    "ActionScale",
    "Behavior",
    "Clock",
    "Convolution",
    "Encoder",
    "EncoderFactory",
    "EnvSpecs",
    "FourierEncoder",
    "Head",
    "ImageEncoder",
    "Layer",
    "MemoryFactory",
    "Moments",
    "Normalized",
    "Operator",
    "Policy",
    "SoftOperator",
    "find_normalized",
    "get_behavior",
    "is_image",
    "make_actor",
    "make_actor_critic",
    "make_soft_actor_critic",
]
