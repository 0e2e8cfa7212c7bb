"""A policy as files: written from a run, loaded without one, with a card for people."""

from torchrl_shm.sharing.folder import export_policy, load_policy, load_task
from torchrl_shm.sharing.plain_policy import PlainPolicy

__all__ = ["PlainPolicy", "export_policy", "load_policy", "load_task"]
