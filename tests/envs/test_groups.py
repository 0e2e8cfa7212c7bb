"""Rows of a group play the same layout, and not the same episode."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from tests.envs._helpers import MAKERS, inject, random_action, step
from torchrl_shm.envs import BatchedEnv, WindEnv

NUM_ENVS, GROUP = 24, 4
# rows 0 to 2 of the first group, none of the second, the last of the third, all of the others
STARTS = torch.arange(NUM_ENVS) >= 12
STARTS[[0, 1, 2, 11]] = True


def make(name: str, group_size: int = GROUP) -> BatchedEnv:
    env = MAKERS[name](NUM_ENVS, seed=0)
    env.group_size = group_size
    return env


def drawn(env: BatchedEnv, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Tensor]]:
    """Where the layouts go with which episodes start from now on."""
    start, layouts = env._start, []

    def record(layout: dict[str, Tensor]) -> dict[str, Tensor]:
        layouts.append({key: value.clone() for key, value in layout.items()})
        return start(layout)

    monkeypatch.setattr(env, "_start", record)
    return layouts


def same_in_groups(layout: dict[str, Tensor], rows: Tensor) -> bool:
    """Whether all of `rows` that are of one group have one layout, and groups differ."""
    group = rows // GROUP
    first = torch.searchsorted(group, group)
    assert any((x != x[:1]).any() for x in layout.values()), "all groups have one layout"
    return all(torch.equal(x, x[first]) for x in layout.values())


@pytest.mark.parametrize("name", MAKERS)
class TestEveryTask:
    def test_a_whole_reset(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        env = make(name)
        layouts = drawn(env, monkeypatch)
        for _ in range(3):
            env.reset()
        assert all(same_in_groups(layout, torch.arange(NUM_ENVS)) for layout in layouts)
        assert any((layouts[0][key] != layouts[1][key]).any() for key in layouts[0])

    @pytest.mark.parametrize("looks", [True, False], ids=["looks", "never_looks"])
    def test_rows_that_start_together(
        self, name: str, looks: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Others go on, with what they had."""
        env = make(name)
        env._looks = looks
        env.reset()
        before = {key: value.clone() for key, value in env._running().items()}
        layouts = drawn(env, monkeypatch)
        data = step(env, random_action(env)).exclude("reward")
        after = {key: value.clone() for key, value in env._running().items()}
        env.reset(data.set("_reset", STARTS[:, None]))
        (layout,) = layouts
        rows = STARTS.nonzero()[:, 0]
        if next(iter(layout.values())).shape[0] == NUM_ENVS:
            layout = {key: value[rows] for key, value in layout.items()}
        assert same_in_groups(layout, rows)
        for key, value in env._running().items():
            assert torch.equal(value[~STARTS], after[key][~STARTS]), key
        assert before.keys() == after.keys()

    def test_actions_are_free(self, name: str) -> None:
        """What the rows of a group see differs by what they do."""
        env = make(name)
        env.reset()
        torch.manual_seed(0)
        data = step(env, random_action(env))
        for _ in range(4):
            data = step(env, random_action(env))
        groups = [x.view(-1, GROUP, *x.shape[1:]) for x in data.values() if x.dtype != torch.bool]
        assert any((x != x[:, :1]).any() for x in groups)

    def test_of_one_changes_nothing(self, name: str) -> None:
        env, twin = make(name, 1), MAKERS[name](NUM_ENVS, seed=0)
        for _ in range(2):
            assert (env.reset() == twin.reset()).all()

    def test_given_layouts_stay_as_they_are(self, name: str) -> None:
        env, twin = make(name), MAKERS[name](NUM_ENVS, seed=1)
        twin.reset()
        layout = {key: twin._running().get(key) for key in twin._layout()}
        if any(value is None for value in layout.values()):
            # this one keeps its layout in another form
            layout = twin._draw(NUM_ENVS)
        given: Any = layout
        inject(env, **given)
        inject(twin, **given)
        found, expected = env._running(), twin._running()
        assert all(
            torch.equal(found[key], expected[key]) for key in twin._layout() if key in expected
        )


def test_copies_keep_it() -> None:
    import copy

    assert copy.deepcopy(make("TMaze")).group_size == GROUP


def test_each_group_draws_uniformly() -> None:
    env = WindEnv(4000, num_train_tasks=2, seed=0)
    env.group_size = 4
    env.reset()
    share = (env.wind == env.train_tasks[0]).all(-1).double().mean()
    # five standard deviations of a thousand draws
    assert abs(float(share) - 0.5) < 0.08


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (0, "group_size must be at least 1, got 0"),
        (1.5, r"group_size must be a whole number, got 1\.5"),
        (True, "group_size must be a whole number, got True"),
        (3, "group_size=3 must divide num_envs=8"),
    ],
)
def test_mistakes(size: Any, message: str) -> None:
    env = WindEnv(8)
    with pytest.raises(ValueError, match=f"^{message}$"):
        env.group_size = size
    assert env.group_size == 1


def test_no_groups_among_test_tasks() -> None:
    env = WindEnv(split="test")
    env.group_size = 1
    with pytest.raises(ValueError, match=r'^group_size=2 .* split="test" plays every test task'):
        env.group_size = 2


def test_rows_that_wait_are_no_part_of_it() -> None:
    """A reset of no row at all is none."""
    env = make("RepeatPrevious")
    data = env.reset()
    before = data.clone()
    nobody = torch.zeros(NUM_ENVS, 1, dtype=torch.bool)
    after = env.reset(TensorDict({**data, "_reset": nobody}, [NUM_ENVS]))
    assert (after == before).all()
