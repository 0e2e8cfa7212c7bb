"""A primer that gives every agent of a branch an entry of its own."""

from __future__ import annotations

from typing import Any

from tensordict import NestedKey, TensorDictBase
from torchrl.data import Composite, TensorSpec
from torchrl.envs import TensorDictPrimer

from torchrl_shm.modules._branches import branch_shape, find_reset_key, nest_specs


class BranchPrimer(TensorDictPrimer):
    """Starts entries at zero, with the batch shape of a branch of the environment's data.

    `TensorDictPrimer` gives every entry the batch shape of the environment, one per environment.

    Args:
        leaves: specs of one agent, by key.
        branch: the branch whose agents have them.
    """

    def __init__(self, leaves: dict[NestedKey, TensorSpec], branch: tuple[str, ...]) -> None:
        super().__init__(nest_specs(leaves, None), expand_specs=True)
        self._leaves = leaves
        self._branch = branch
        self._fitted = False

    def set_container(self, container: Any) -> None:
        """Attach the transform to an environment, which may have other agents than the last."""
        super().set_container(container)
        self._fitted = False

    def transform_observation_spec(self, observation_spec: Composite) -> Composite:
        """Declare the entries of all agents."""
        self._fit_to_env()
        return super().transform_observation_spec(observation_spec)

    def _reset(
        self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase
    ) -> TensorDictBase:
        # an environment may be reset before anything has asked for its specs
        self._fit_to_env()
        return super()._reset(tensordict, tensordict_reset)

    def _fit_to_env(self) -> None:
        env: Any = self.parent
        if self._fitted or env is None:
            return
        batch = branch_shape(env, self._branch)
        leaves = {key: leaf.expand(batch + leaf.shape) for key, leaf in self._leaves.items()}
        device = self.primers.device
        self.primers = nest_specs(leaves, env)
        if device is not None:
            self.primers = self.primers.to(device)
        self.reset_key = find_reset_key(env, self._branch)
        self._fitted = True
