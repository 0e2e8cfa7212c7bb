"""The policies in the repository do what their cards say."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests._night import at_night
from torchrl_shm.sharing import load_policy, load_task
from torchrl_shm.sharing.policy_file import read_policy_file
from torchrl_shm.training import evaluate, make_test_env

FOLDERS = sorted(Path(__file__).parents[2].glob("docs/results/policies/*"))


def test_there_are_some() -> None:
    assert FOLDERS


@pytest.mark.parametrize(
    "folder",
    at_night(FOLDERS, unless=lambda folder: folder == FOLDERS[0]),
    ids=lambda folder: folder.name,
)
def test_it_plays_as_well_as_its_card_says(folder: Path) -> None:
    card = read_policy_file(folder / "config.json")
    assert card.evaluation is not None
    env = make_test_env(load_task(folder), num_episodes=256)
    found = evaluate(load_policy(folder).module, env)
    # other machines round otherwise, and an action may then be another
    assert found.mean_return == pytest.approx(card.evaluation.mean_return, rel=0.02)
    assert found.success_rate == pytest.approx(card.evaluation.success_rate, abs=0.02)
    assert (folder / "model.safetensors").stat().st_size <= 300_000
