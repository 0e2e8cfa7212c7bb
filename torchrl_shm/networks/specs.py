"""What a network has to know of an environment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tensordict import NestedKey
from torchrl.data import Composite, TensorSpec
from torchrl.envs import EnvBase

from torchrl_shm.checks import ACTION_MASK


@dataclass(frozen=True)
class EnvSpecs:
    """What a policy has to know of its environment; enough to build one without it.

    Attributes:
        observation_spec_unbatched: specs of the entries that the policy reads.
        action_spec_unbatched: spec of the action.
        policy_keys: keys of the entries, in the order in which the policy reads them.
    """

    observation_spec_unbatched: Composite
    action_spec_unbatched: TensorSpec
    policy_keys: Sequence[NestedKey]

    @property
    def mask_size(self) -> int | None:
        """Number of flags of the action mask; `None` where `policy_keys` have none."""
        if ACTION_MASK not in self.policy_keys:
            return None
        return self.observation_spec_unbatched[ACTION_MASK].shape.numel()

    @classmethod
    def of(
        cls, env: EnvBase | EnvSpecs, policy_keys: Sequence[NestedKey] | None = None
    ) -> EnvSpecs:
        """Take from an environment what a policy has to know.

        Args:
            env: the environment.
            policy_keys: observation entries that the policy reads. `None` is the environment's
                own choice, its attribute `policy_keys`, or `["observation"]` where it has none. An
                action mask is read in any case.

        Returns:
            The specs of those entries and of the action.

        Raises:
            KeyError: a policy key is not an observation of the environment.

        Examples:
            >>> from torchrl_shm import WindEnv
            >>> from torchrl_shm.networks import EnvSpecs
            >>> EnvSpecs.of(WindEnv(4)).policy_keys
            ['observation', 'previous_action']
        """
        observations = env.observation_spec_unbatched
        chosen: Sequence[NestedKey] = (
            getattr(env, "policy_keys", ("observation",)) if policy_keys is None else policy_keys
        )
        keys = list(chosen)
        available = set(observations.keys(True, True))
        # what it forbids is to be known, whatever else is read
        if ACTION_MASK in available and ACTION_MASK not in keys:
            keys.append(ACTION_MASK)
        missing = [key for key in keys if key not in available]
        if missing:
            raise KeyError(
                f"{missing} of policy_keys are not observations of the environment, "
                f"which has {sorted(map(str, available))}"
            )
        read: Any = {key: observations[key] for key in keys}
        return cls(Composite(read), env.action_spec_unbatched, keys)
