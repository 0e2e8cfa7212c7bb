"""Compiled modules give the numbers of the modules, or say why they do not exist."""

from __future__ import annotations

import copy
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torch.testing import assert_close
from torchrl.modules import set_recurrent_mode
from torchrl.objectives.value import GAE

from tests.recipes._helpers import read_metrics, train
from tests.training._helpers import make_operator
from torchrl_shm import WindEnv
from torchrl_shm.modules import GRU, make_memory
from torchrl_shm.networks import get_behavior
from torchrl_shm.training import Compile, Compiler, LeanClipPPOLoss, RolloutCollector

AGENTS, STEPS = 6, 10


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trace, but compile nothing, which takes a fraction of the time and gives the same bits."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))


def make_policy() -> Any:
    return get_behavior(make_operator(env=WindEnv(AGENTS)))


def collect(policy: Any, backend: Any = "single") -> TensorDictBase:
    torch.manual_seed(0)
    collector = RolloutCollector(
        partial(WindEnv, max_steps=7),
        policy,
        num_envs=AGENTS,
        rollout_length=STEPS,
        total_frames=2 * AGENTS * STEPS,
        backend=backend,
    )
    # sequences that start in mid-episode
    _, batch = (batch.clone() for batch in collector)
    collector.close()
    return batch


class Updates:
    """A loss and its gradients, on minibatches of a batch."""

    def __init__(self, mode: Compile) -> None:
        torch.manual_seed(0)
        operator = make_operator(env=WindEnv(AGENTS))
        batch = collect(operator.get_policy_operator())
        advantage = GAE(
            gamma=0.9, lmbda=0.9, value_network=operator.get_value_operator(), shifted=True
        )
        advantage.shifted_budget = 1 + STEPS
        with torch.no_grad(), set_recurrent_mode(True):
            self.batch = advantage(batch)
        self.loss: Any = LeanClipPPOLoss(operator.get_policy_operator(), operator.get_value_head())
        self.update: Any = Compiler(mode).update(self.loss)

    def __call__(self, *index: int) -> list[torch.Tensor]:
        term = self.update(self.batch[list(index)])
        terms = [term[f"loss_{name}"] for name in ("objective", "critic", "entropy")]
        self.loss.zero_grad()
        sum(terms).backward()
        return [*terms, *(x.grad for x in self.loss.parameters() if x.grad is not None)]


class TestCompiler:
    def test_compiles_what_its_mode_says(self) -> None:
        policy, loss = make_policy(), make_policy()
        for mode, same in {
            "none": (True, True), "update": (True, False), "all": (False, False)
        }.items():  # fmt: skip
            compiler: Any = Compiler(mode)  # type: ignore[arg-type]
            made = (compiler.policy(policy) is policy, compiler.update(loss) is loss)
            assert made == same, mode

    def test_unknown_modes(self) -> None:
        with pytest.raises(ValueError, match=r"experiment.compile='fast'.*'none', 'update', 'all'"):
            Compiler("fast")  # type: ignore[arg-type]

    def test_without_a_compiler(self, capsys: pytest.CaptureFixture[str]) -> None:
        import torch._inductor.config as inductor

        with inductor.patch({"cpp.cxx": (None, "no-such-compiler")}):
            compiler, policy = Compiler("all"), make_policy()
        assert compiler.policy(policy) is policy
        assert compiler.update(policy) is policy
        (line,) = capsys.readouterr().err.splitlines()
        assert "no C++ compiler is found" in line
        # a GPU needs none
        assert Compiler("all", "cuda").policy(policy) is not policy


@pytest.mark.usefixtures("traced")
class TestTraced:
    def test_policies_draw_as_before(self) -> None:
        policy = make_policy()
        compiled = Compiler("all").policy(policy)
        expected, state = collect(policy), torch.get_rng_state()
        batch = collect(compiled)
        assert torch.equal(torch.get_rng_state(), state)
        assert_close(batch.to_dict(), expected.to_dict(), rtol=0, atol=0)

    def test_losses_draw_nothing(self) -> None:
        compiled, plain = Updates("update"), Updates("none")
        state = torch.get_rng_state()
        assert_close(compiled(0, 2, 4), plain(0, 2, 4), rtol=0, atol=0)
        assert torch.equal(torch.get_rng_state(), state)
        assert "_compiled" in vars(compiled.update)

    def test_copies_compile_their_own(self) -> None:
        data = TensorDict({"x": torch.ones(3)}, [])
        module = TensorDictModule(torch.nn.Linear(3, 2), ["x"], ["y"])
        compiled: Any = Compiler("update").update(module)
        expected = compiled(data.clone())
        for other in (copy.deepcopy(compiled), pickle.loads(pickle.dumps(compiled))):
            assert vars(other)["_compiled"] is None
            assert_close(other(data.clone()), expected)
        assert [name for name, _ in compiled.named_parameters()] == [
            f"module.{name}" for name, _ in module.named_parameters()
        ]

    def test_what_cannot_be_compiled_runs_as_it_is(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def branch(x: torch.Tensor) -> torch.Tensor:
            return x + 1 if float(x.sum()) > 0 else x - 1

        module = TensorDictModule(branch, ["x"], ["y"])
        compiled: Any = Compiler("update").update(module)
        for value in (1.0, -1.0):
            data = TensorDict({"x": torch.tensor([value])}, [1])
            assert float(compiled(data)["y"]) == 2 * value
        *_, line = capsys.readouterr().err.splitlines()
        assert line.startswith("experiment.compile: the update is not compiled: ")

    def test_errors_of_a_module_are_its_own(self) -> None:
        compiled: Any = Compiler("all").policy(make_policy())
        with pytest.raises(KeyError):
            compiled(TensorDict({}, [AGENTS]))


@pytest.mark.slow
# what inductor imports for products of matrices warns of torch itself
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
class TestCompiled:
    def test_losses_agree_up_to_rounding(self, capsys: pytest.CaptureFixture[str]) -> None:
        compiled, plain = Updates("update"), Updates("none")
        # two sizes of minibatches
        for index in ((0, 2, 4), (1, 3), (0, 2, 4)):
            assert_close(compiled(*index), plain(*index), rtol=1e-4, atol=1e-6)
        assert "is not compiled" not in capsys.readouterr().err

    @pytest.mark.parametrize("backend", ["single", "multi_sync"])
    def test_policies_agree_up_to_rounding(
        self, backend: str, capfd: pytest.CaptureFixture[str]
    ) -> None:
        policy = make_policy()
        batch, expected = (collect(x, backend) for x in (Compiler("all").policy(policy), policy))
        # the same rows of the table and the same noise in actions, or they would be far apart
        assert_close(
            batch.exclude("collector").to_dict(), expected.exclude("collector").to_dict(),
            rtol=1e-4, atol=1e-5,
        )  # fmt: skip
        said = capfd.readouterr().err
        assert said.count("compiling the policy") == (1 if backend == "single" else 2)
        assert "is not compiled" not in said

    def test_runs_agree_and_repeat(self, tmp_path: Path) -> None:
        rows: dict[str, list[dict[str, str]]] = {}
        for name, mode in (("plain", "none"), ("one", "all"), ("again", "all")):
            # two sequences remain for the last minibatch
            train(tmp_path / name, compile=mode, sequences_per_minibatch=3)
            rows[name] = read_metrics(tmp_path / name)
            for row in rows[name]:
                del row["seconds"], row["frames_per_second"]
        assert rows["one"] == rows["again"] != rows["plain"]
        for one, plain in zip(rows["one"], rows["plain"], strict=True):
            for key, value in plain.items():
                assert_close(float(one[key]), float(value), rtol=1e-2, atol=1e-4, equal_nan=True)

    def test_parts_that_cannot_be_compiled_run_as_they_are(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        train(tmp_path, memory=partial(make_memory, GRU), compile="update", total_frames=160)
        assert "the update is not compiled: GuardOnDataDependent" in capsys.readouterr().err


@pytest.mark.gpu
class TestOnGPU:
    def test_policies_replay_a_graph(self) -> None:
        operator = make_operator().to("cuda")
        policy = get_behavior(operator)
        batches: list[TensorDictBase] = []
        for module in (Compiler("all", "cuda").policy(policy), policy):
            torch.manual_seed(0)
            collector = RolloutCollector(
                WindEnv, module, num_envs=AGENTS, rollout_length=STEPS,
                total_frames=3 * AGENTS * STEPS, device="cuda",
            )  # fmt: skip
            batches.append(torch.cat([batch.clone() for batch in collector]).exclude("collector"))
            collector.close()
        assert_close(batches[0].to_dict(), batches[1].to_dict(), rtol=1e-3, atol=1e-4)

    def test_runs_repeat(self, tmp_path: Path) -> None:
        rows: list[list[dict[str, str]]] = []
        for name in ("one", "again"):
            train(tmp_path / name, compile="all", device="cuda")
            rows.append(read_metrics(tmp_path / name))
            for row in rows[-1]:
                del row["seconds"], row["frames_per_second"]
        assert rows[0] == rows[1]
