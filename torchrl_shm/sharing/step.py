"""One step of a policy as a pure function of tensors, for `torch.export` and ONNX."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torchrl.envs import ExplorationType, set_exploration_type
from torchrl.modules import set_recurrent_mode

from torchrl_shm.modules import MemoryModule
from torchrl_shm.networks import Policy
from torchrl_shm.networks.policy import Entries
from torchrl_shm.sharing.plain_policy import PlainPolicy


class PolicyStep(nn.Module):
    """Maps observations and a state to an action and the next state, and draws nothing.

    Nothing is kept between two calls and no value is looked at, so a step becomes one graph, of any
    batch size. All tensors have the batch first. Inputs, in the order of `input_names`:

    - the observation entries that the policy reads,
    - the state, which `initial_state` starts: zeros, also in rows where an episode starts,
    - where the memory draws, as `shm` does, what was drawn: int64 `[B]` from 0 to one less than
      `choices` says. Its user draws them, and a constant will do where steps must repeat.

    Outputs, in the order of `output_names`: the mean or most likely action, the parameters of the
    distribution (`loc` and `scale`, or `logits`), for those who draw, and the next state.

    Args:
        policy: what `load_policy` returned, or any other.

    Attributes:
        input_names: names of the inputs.
        output_names: names of the outputs.
        choices: number of choices of each input that is drawn, by name.

    Raises:
        TypeError: the policy is not made by networks of `torchrl_shm`.

    Examples:
        >>> import torch
        >>> from torchrl_shm import SHMModule, WindEnv
        >>> from torchrl_shm.networks import EnvSpecs, make_actor_critic
        >>> from torchrl_shm.sharing import PlainPolicy, PolicyStep
        >>> specs = EnvSpecs.of(WindEnv(4), ["observation"])
        >>> operator = make_actor_critic(specs, SHMModule)
        >>> step = PolicyStep(PlainPolicy(operator.get_policy_operator(), specs))
        >>> step.input_names, step.choices
        (['observation', 'memory', 'theta_index'], {'theta_index': 128})
        >>> step.output_names
        ['action', 'loc', 'scale', 'next_memory']
        >>> (memory,) = step.initial_state(batch_size=3)
        >>> action, *_, memory = step(torch.zeros(3, 2), memory, torch.zeros(3, dtype=torch.int64))
        >>> program = step.export()
    """

    def __init__(self, policy: PlainPolicy) -> None:
        super().__init__()
        module = policy.module
        if not isinstance(module, Policy):
            raise TypeError(
                f"the policy is a {type(module).__name__}; a step is made of policies of "
                "make_actor_critic and make_soft_actor_critic"
            )
        self.policy = policy
        self._head: Any = module[-1]
        self._read: list[Any] = list(policy.specs.policy_keys)
        self._state: list[Any] = list(policy.initial_memory(1))
        drawing: dict[Any, Any] = {
            network.choice_key: network.cell.num_choices
            for network in module.networks
            if isinstance(network, MemoryModule) and network.choice_key is not None
        }
        self._drawn = list(drawing)
        self.choices: dict[str, int] = {_name(key): count for key, count in drawing.items()}
        self.input_names = [_name(key) for key in (*self._read, *self._state, *self._drawn)]
        self._head_keys: list[Any] = list(self._head.in_keys)
        # an action mask is read from the observations
        self._parameters_of_action = [x for x in self._head_keys if x not in self._read]
        self.output_names = [
            "action",
            *(_name(key) for key in self._parameters_of_action),
            *(f"next_{_name(key)}" for key in self._state),
        ]

    def initial_state(self, batch_size: int) -> tuple[Tensor, ...]:
        """Make the state with which episodes start.

        Args:
            batch_size: number of agents, B.

        Returns:
            Zeros `[B, ...]`, a tensor for each part of the state; none without a memory.

        Raises:
            ValueError: `batch_size` is not positive.
        """
        return tuple(self.policy.initial_memory(batch_size).values())

    def example_inputs(self, batch_size: int = 2) -> tuple[Tensor, ...]:
        """Make inputs of the right shapes and dtypes, all of them zeros.

        Args:
            batch_size: number of agents, B.

        Returns:
            A tensor for each of `input_names`.
        """
        specs, device = self.policy.specs.observation_spec_unbatched, self.policy.device
        drawn = torch.zeros(batch_size, dtype=torch.int64, device=device)
        return (
            *(
                torch.zeros(batch_size, *specs[key].shape, dtype=specs[key].dtype, device=device)
                for key in self._read
            ),
            *self.initial_state(batch_size),
            *(drawn.clone() for _ in self._drawn),
        )

    @torch.no_grad()
    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Take one step; see the class.

        Args:
            *inputs: a tensor for each of `input_names`.

        Returns:
            A tensor for each of `output_names`.

        Raises:
            ValueError: there are more or fewer inputs.
        """
        names: Any = (*self._read, *self._state, *self._drawn)
        # of the input, whose size is not known while a program is traced
        batch = inputs[0].shape[:1]
        entries = Entries(zip(names, inputs, strict=True), batch)
        # nowhere: who starts an episode starts its state
        entries["is_init"] = inputs[0].new_zeros((*batch, 1), dtype=torch.bool)
        module: Any = self.policy.module
        with set_exploration_type(ExplorationType.DETERMINISTIC), set_recurrent_mode(False):
            for network in module.networks:
                _run(network, entries)
            given = {key: entries[key] for key in self._head_keys}
            action = self._head(TensorDict(given, []))["action"]
        parameters = (entries[key] for key in self._parameters_of_action)
        return (action, *parameters, *(entries["next", key] for key in self._state))

    def export(self) -> Any:
        """Trace the step with `torch.export`, for any batch size.

        Returns:
            A `torch.export.ExportedProgram`; `torch.export.save` writes it, and `.module()` is the
            function.

        Raises:
            ValueError: the memory or an encoder of one's own cannot be traced.
        """
        inputs = self.example_inputs()
        batch = torch.export.Dim("batch")
        shapes = (tuple({0: batch} for _ in inputs),)
        try:
            return torch.export.export(self, inputs, dynamic_shapes=shapes)
        # whatever the networks raise, and what torch.export does not know
        except Exception as error:
            raise ValueError(f"torch.export refuses this policy: {first_line(error)}") from error


def _run(network: Any, entries: Entries) -> None:
    """Run a network on entries, with what was drawn in place of what it would draw."""
    if isinstance(network, MemoryModule):
        x, memory = entries[network.in_key], entries[network.memory_key]
        choice = entries.get(network.choice_key)
        y, memory, _ = network.cell.step(x, memory, choice)
        entries.update({network.out_key: y, network.next_memory_key: memory})
    elif hasattr(network, "run"):
        network.run(entries)
    else:
        data = network(TensorDict({key: entries[key] for key in network.in_keys}, []))
        entries.update((key, data[key]) for key in network.out_keys)


def _name(key: Any) -> str:
    return key if isinstance(key, str) else ".".join(key)


def first_line(error: Exception) -> str:
    """Say in a line what was raised, by the innermost cause."""
    while error.__cause__ is not None:
        error = error.__cause__  # pyright: ignore[reportAssignmentType]
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"
