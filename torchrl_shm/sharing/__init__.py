"""A policy as files: written from a run, loaded without one, with a card for people."""

from torchrl_shm.sharing.folder import export_policy, load_policy, load_task
from torchrl_shm.sharing.onnx_file import write_onnx
from torchrl_shm.sharing.plain_policy import PlainPolicy
from torchrl_shm.sharing.step import PolicyStep

__all__ = ["PlainPolicy", "PolicyStep", "export_policy", "load_policy", "load_task", "write_onnx"]
