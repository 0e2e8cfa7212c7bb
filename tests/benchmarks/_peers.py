"""Training speed of other packages on a task of ours; none of them is needed otherwise.

`pip install sb3-contrib` brings Stable-Baselines3 and its recurrent PPO.
"""

from __future__ import annotations

import time
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from torchrl.envs import EnvBase

from torchrl_shm.envs.popgym import RepeatPreviousEnv

# updates that are measured, after one that warms up
_UPDATES = 3


def sb3_frames_per_second(
    num_envs: int = 64,
    rollout_length: int = 128,
    epochs: int = 4,
    minibatches: int = 8,
    width: int = 64,
    shared: bool = False,
) -> float:
    """Frames per CPU second of `RecurrentPPO` of sb3-contrib on Repeat Previous, easy.

    Its policy is `MlpLstmPolicy`: an LSTM before two layers of 64 each for actions and values, one
    thread. All environments are stepped at once, and arrays share memory with the tensors.

    Args:
        num_envs: environments that step together.
        rollout_length: steps per environment and update.
        epochs: passes over each batch.
        minibatches: gradient steps per pass.
        width: hidden size of the LSTM.
        shared: let actions and values have one LSTM, as ours do; by default of sb3-contrib each
            has its own.

    Raises:
        SystemExit: sb3-contrib is not installed.
    """
    try:
        from sb3_contrib import RecurrentPPO
        from stable_baselines3.common.callbacks import BaseCallback
    except ImportError as error:
        raise SystemExit(f"{error}: install it with `pip install sb3-contrib`") from None

    class Clock(BaseCallback):
        """CPU seconds at the start of every update."""

        def __init__(self) -> None:
            super().__init__()
            self.times: list[float] = []

        def _on_rollout_start(self) -> None:
            self.times.append(time.process_time())

        def _on_training_end(self) -> None:
            self.times.append(time.process_time())

        def _on_step(self) -> bool:
            return True

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        frames, clock = num_envs * rollout_length, Clock()
        RecurrentPPO(
            "MlpLstmPolicy",
            _vec_env(RepeatPreviousEnv(num_envs, seed=0)),
            n_steps=rollout_length,
            batch_size=frames // minibatches,
            n_epochs=epochs,
            policy_kwargs={
                "lstm_hidden_size": width,
                "shared_lstm": shared,
                "enable_critic_lstm": not shared,
            },
            device="cpu",
            seed=0,
        ).learn((1 + _UPDATES) * frames, callback=clock)
    finally:
        torch.set_num_threads(threads)
    return frames / median(b - a for a, b in pairwise(clock.times[1:]))


def _vec_env(env: EnvBase) -> Any:
    """A batched environment with one discrete action by the interface of Stable-Baselines3."""
    from gymnasium import spaces
    from stable_baselines3.common.vec_env import VecEnv

    (width,) = env.observation_spec["observation"].shape[1:]
    count = int(env.full_action_spec["action"].n)
    (batch,) = env.batch_size

    class Batched(VecEnv):
        """Episodes end by `terminated` alone, so no last observation has to be handed over."""

        def __init__(self) -> None:
            # whether and how an environment is drawn is asked for
            self.render_mode = None
            super().__init__(batch, spaces.Box(0, 1, (width,)), spaces.Discrete(count))
            self.infos: list[dict[str, Any]] = [{} for _ in range(batch)]

        def reset(self) -> Any:
            self.data = env.reset()
            return self.data["observation"].numpy()

        def step_async(self, actions: Any) -> None:
            self.data.set("action", torch.from_numpy(actions))

        def step_wait(self) -> Any:
            done, self.data = env.step_and_maybe_reset(self.data)
            after = done["next"]
            rewards, dones = (after[key].squeeze(-1).numpy() for key in ("reward", "done"))
            return self.data["observation"].numpy(), rewards, dones, self.infos

        def close(self) -> None:
            env.close()

        def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
            return [getattr(self, attr_name)] * batch

        # nothing below is asked for here

        def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
            raise NotImplementedError

        def env_method(self, method_name: str, *args: Any, indices: Any = None, **_: Any) -> Any:
            raise NotImplementedError

        def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
            return [False] * batch

    return Batched()
