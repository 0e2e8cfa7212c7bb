"""The fixtures of conftest.py do what tests rely on."""

import pytest
import torch


def call_from(module: str, code: str) -> torch.Tensor:
    return eval(code, {"__name__": module, "torch": torch})


@pytest.mark.parametrize(
    "code",
    [
        "torch.empty(3)",
        "torch.empty(3, requires_grad=True)",
        "torch.empty_like(torch.zeros(3))",
        "torch.zeros(3).new_empty(3)",
    ],
)
def test_unwritten_memory_of_the_package_is_nan(code: str) -> None:
    assert call_from("torchrl_shm.ops.anything", code).isnan().all()


def test_unwritten_integers_of_the_package_are_no_valid_index() -> None:
    index = call_from("torchrl_shm", "torch.empty(3, dtype=torch.int64)")
    assert (index == torch.iinfo(torch.int64).max).all()


@pytest.mark.parametrize("module", ["torch.nn", "torchrl.envs", "torchrl_shm_user"])
def test_unwritten_memory_of_others_is_left_alone(module: str) -> None:
    out = torch.zeros(3)
    scope = {"__name__": module, "torch": torch, "out": out}
    eval("torch.empty(3, out=out)", scope)
    assert (out == 0).all()


@pytest.mark.parametrize("run", [1, 2])
def test_every_test_starts_from_the_same_seed(run: int) -> None:
    assert torch.initial_seed() == 0
    drawn = torch.rand(3)
    assert torch.equal(drawn, torch.rand(3, generator=torch.Generator().manual_seed(0)))
