"""Whatever layout is given, it is played or refused by name.

FUZZ_EXAMPLES=5000 pytest tests/envs/test_fuzz.py
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.envs._helpers import MAKERS, inject, random_action, step

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "80"))
INTS = st.sampled_from([-(2**62), -1, 0, 1, 2, 3, 5, 9, 10, 51, 52, 100, 2**62])
FLOATS = st.sampled_from([float("nan"), float("inf"), -1e30, -1.0, -0.01, 0.0, 0.05, 1.0, 1e30])


def changed(draw: st.DrawFn, value: Tensor) -> Tensor:
    """A drawn entry with a number, a dtype or a shape that may not fit."""
    how = draw(st.sampled_from(["number", "dtype", "shape", "shuffle"]))
    if how == "dtype":
        return value.to(draw(st.sampled_from([torch.float32, torch.int32, torch.bool])))
    if how == "shape":
        return draw(st.sampled_from([value.unsqueeze(-1), value[:1], value[..., None, None]]))
    if how == "shuffle":
        return value.flip(-1) if value.ndim > 1 else value.flip(0)
    value = value.clone()
    position = draw(st.integers(0, value.numel() - 1))
    number: Any
    if value.dtype == torch.bool:
        number = draw(st.booleans())
    else:
        number = draw(FLOATS if value.is_floating_point() else INTS)
    if type(number) is int and abs(number) > torch.iinfo(value.dtype).max:
        value = value.long()
    value.view(-1)[position] = number
    return value


@st.composite
def games(draw: st.DrawFn) -> tuple[str, int, dict[str, Tensor]]:
    name, seed = draw(st.sampled_from(sorted(MAKERS))), draw(st.integers(0, 2**32))
    env = MAKERS[name](3, seed=seed)
    layout = env._draw(3)
    layout = {key: layout[key] for key in env._layout()}
    for key in draw(st.lists(st.sampled_from(sorted(layout)), min_size=1, max_size=3)):
        layout[key] = changed(draw, layout[key])
    return name, seed, layout


def refusal(env: Any, layout: dict[str, Tensor]) -> str | None:
    """Why a layout is not played; `None` if it is."""
    try:
        inject(env, **layout)
    except ValueError as error:
        return str(error)
    return None


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="FUZZ_EXAMPLES" not in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
    database=None,
)
@given(game=games())
def test_every_layout_is_played_or_refused(game: tuple[str, int, dict[str, Tensor]]) -> None:
    name, seed, layout = game
    env = MAKERS[name](3, seed=seed)
    if any(len(value) != 3 for value in layout.values()):
        # tensordict refuses the wrong number of environments itself
        with pytest.raises(RuntimeError, match="batch dimension mismatch"):
            inject(env, **layout)
        return
    if (error := refusal(env, layout)) is not None:
        assert any(key in error for key in layout), error
        return
    seen = inject(env, **layout)
    for _ in range(5):
        assert env.observation_spec.is_in(seen.select(*env.observation_spec.keys()))
        for value in seen.values(True, True):
            assert not value.is_floating_point() or bool(value.isfinite().all())
        seen = step(env, random_action(env))
