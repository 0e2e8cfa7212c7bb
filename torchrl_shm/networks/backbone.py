"""What stands before the heads: an embedding of the observations, and a memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from tensordict import NestedKey
from tensordict.nn import TensorDictModuleBase
from tensordict.nn import TensorDictSequential as Sequential
from torchrl.envs import EnvBase

from torchrl_shm.checks import WRITTEN_KEYS, check_count
from torchrl_shm.networks.clock import Clock
from torchrl_shm.networks.encoder import EncoderFactory, make_encoder
from torchrl_shm.networks.image import is_image
from torchrl_shm.networks.normalization import Normalized
from torchrl_shm.networks.policy import Layer
from torchrl_shm.networks.specs import EnvSpecs

MemoryFactory = Callable[..., TensorDictModuleBase]
"""Makes a memory module from `input_size`, `output_size`, `in_key`, `out_key` and `device`, and,
where the critic has a memory of its own, `memory_key`."""

CRITIC = "critic_"
"""What the entries of a critic's own embedding and memory start with."""


class BackboneMaker:
    """Makes embedding -> memory for an environment, for the actor and for the critic.

    Args:
        env: environment whose specs give the sizes, or these specs alone.
        policy_keys: observation entries that are read; see `EnvSpecs.of`.
        time_size: features of the step of the episode that are read as well; 0 for none.
        encoder: what makes the embedding; see `make_actor_critic`.
        normalize: whether entries of floats are standardized; see `make_actor_critic`.
        embedding_size: features per step that the memory reads and writes.
        device: device of the parameters.

    Attributes:
        specs: what is read, and the action.

    Raises:
        KeyError: a policy key is not an observation of the environment.
        ValueError: `time_size` is odd or negative, or an observation has a name that the networks
            write.
    """

    def __init__(
        self,
        env: EnvBase | EnvSpecs,
        policy_keys: Sequence[NestedKey] | None,
        time_size: int,
        encoder: EncoderFactory | str,
        normalize: bool,
        embedding_size: int,
        device: torch.device | str | None,
    ) -> None:
        if time_size < 0 or time_size % 2:
            raise ValueError(
                f"network.time_size={time_size} must be an even number, sines and cosines, or 0"
            )
        self.specs = EnvSpecs.of(env, policy_keys)
        keys = self.specs.policy_keys
        observed = [*keys, *([] if isinstance(env, EnvSpecs) else env.observation_spec.keys())]
        written = {*WRITTEN_KEYS, *(("time", "episode_step") if time_size else ())}
        clash = sorted({str(key) for key in observed if key in written})
        if clash:
            raise ValueError(
                f"the environment emits {clash}, which the networks write themselves: rename these "
                "observations, e.g. with torchrl.envs.RenameTransform"
            )
        self._size, self._device = embedding_size, device
        entries: list[Any] = [self.specs.observation_spec_unbatched[key] for key in keys]
        self._encoder: EncoderFactory | str = encoder
        self._shapes = [entry.shape for entry in entries]
        self._dtypes = [entry.dtype for entry in entries]
        # bytes have a scale of their own, and so have images
        self._chosen = [
            i
            for i, entry in enumerate(entries)
            if normalize and entry.dtype.is_floating_point and not is_image(entry.shape)
        ]
        # one clock is enough, also where the critic has an embedding of its own
        self._clock: list[Any] = [Clock(time_size, device=device)] if time_size else []
        self._read: list[NestedKey] = [*keys, *(x.out_key for x in self._clock)]
        self._shapes += [torch.Size((time_size,)) for _ in self._clock]
        self._dtypes += [torch.float32 for _ in self._clock]

    def __call__(self, memory: MemoryFactory, prefix: str = "") -> Sequential:
        """Make an embedding and a memory.

        Args:
            memory: factory of the memory module, with as many outputs as inputs.
            prefix: what the names of the entries start with.

        Raises:
            TypeError: `encoder` makes no module.
            ValueError: the encoder does not suit the entries, or the memory refuses so few
                features.
        """
        encoder = make_encoder(self._encoder, self._shapes, self._dtypes, self._size, self._device)
        if self._chosen:
            encoder = Normalized(encoder, self._shapes, self._chosen, self._device)
        embed: Any = Layer(encoder, list(self._read), [f"{prefix}embedding"])
        options = {"memory_key": f"{prefix}memory"} if prefix else {}
        try:
            module: Any = memory(
                input_size=self._size,
                output_size=self._size,
                in_key=f"{prefix}embedding",
                out_key=f"{prefix}features",
                device=self._device,
                **options,
            )
        except ValueError as error:
            # what a memory calls input_size is an option of the network here
            if f"input_size={self._size}" not in str(error):
                raise
            raise ValueError(
                f"network.embedding_size={self._size} is too small for this memory: {error}"
            ) from error
        return Sequential(*self._clock, embed, module)


def check_sizes(embedding_size: int, hidden_sizes: Sequence[int]) -> None:
    """Refuse sizes that are not positive."""
    check_count("network.embedding_size", embedding_size)
    check_count("network.hidden_sizes", min(hidden_sizes, default=1))
