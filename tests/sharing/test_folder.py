"""A policy as a folder: written whole, read back equal, and nothing in it is run."""

from __future__ import annotations

import functools
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from torch import Tensor
from torchrl.data import Binary, Bounded, Categorical, MultiCategorical, OneHot, Unbounded
from torchrl.envs import ExplorationType, TransformedEnv, set_exploration_type
from torchrl.modules.utils import get_env_transforms_from_module

from tests._night import at_night
from tests.configs._helpers import compose_recipe
from torchrl_shm import WindEnv
from torchrl_shm.configs import ENVS, MEMORIES, add_memory, instantiate_saved
from torchrl_shm.configs.groups import MEMBERS
from torchrl_shm.modules import BaseCell
from torchrl_shm.networks import make_actor_critic
from torchrl_shm.sharing import PlainPolicy, export_policy, load_policy, load_task
from torchrl_shm.sharing import folder as folder_module
from torchrl_shm.sharing.policy_file import action_entry, action_spec
from torchrl_shm.training import RunFolder

FILES = {"README.md", "config.json", "model.safetensors"}


@functools.cache
def base() -> Any:
    """The composed configuration, as text, because composing takes a while."""
    return OmegaConf.to_yaml(
        compose_recipe("network.embedding_size=16", "network.hidden_sizes=[16]"), resolve=True
    )


def make_other_network(*args: Any, **options: Any) -> Any:
    """A network of a user, that is built by other code."""
    return make_actor_critic(*args, **options)


def make_run(
    folder: Path, *values: str, env: str = "wind", memory: str = "shm", frames: int = 640
) -> Path:
    """A run that did not learn anything."""
    config: Any = OmegaConf.create(base())
    config.env = OmegaConf.structured(ENVS[env])
    config.memory = OmegaConf.structured(MEMBERS[f"memory/{memory}"].make())
    config.experiment.names = {"env": env, "memory": memory}
    config.merge_with_dotlist(list(values))
    run = RunFolder.create(folder)
    OmegaConf.save(config, folder / "config.yaml")
    operator = build_operator(folder)[0]
    # a fresh policy does nearly nothing
    for parameter in operator.get_policy_head().parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    run.checkpoints.save({"operator": operator.state_dict(), "frames": frames}, step=frames)
    run.close()
    return folder


def build_operator(run: Path) -> tuple[Any, Any]:
    parts = instantiate_saved(run)
    env = parts["env"](num_envs=3, seed=0)
    return parts["network"](env, parts["memory"]), env


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, and its policy beside it."""
    folder = tmp_path_factory.mktemp("original")
    export_policy(make_run(folder / "run"), folder / "shared")
    return folder


@pytest.fixture
def shared(original: Path, tmp_path: Path) -> Path:
    shutil.copytree(original, tmp_path, dirs_exist_ok=True)
    return tmp_path / "shared"


@pytest.fixture
def trapped_system(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where a configuration gets to run a command."""
    monkeypatch.setattr(os, "system", lambda *_: pytest.fail("foreign code ran"))


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def edit(folder: Path, **replace: Any) -> None:
    """Change values of `config.json`; `__` leads into what is nested."""
    config = read(folder)
    for key, value in replace.items():
        *parents, last = key.split("__")
        functools.reduce(lambda place, parent: place[parent], parents, config)[last] = value
    (folder / "config.json").write_text(json.dumps(config))


def replay(policy: PlainPolicy, data: Any) -> Tensor:
    torch.manual_seed(1)
    memory = policy.initial_memory(len(data))
    actions: list[Tensor] = []
    for step in data.unbind(-1):
        observation = {str(key): step[key] for key in policy.specs.policy_keys}
        action, memory = policy(observation, memory, step["is_init"].squeeze(-1))
        actions.append(action)
    return torch.stack(actions, 1)


def check_acts_like_the_run(run: Path, folder: Path, steps: int = 8) -> None:
    """What was loaded acts as the checkpoint does in an environment of TorchRL."""
    operator, env = build_operator(run)
    operator.load_state_dict(RunFolder(run).checkpoints.load()["operator"])
    module = operator.get_policy_operator()
    with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
        torch.manual_seed(1)
        transformed = TransformedEnv(env, get_env_transforms_from_module(module))
        data = transformed.rollout(steps, module, break_when_any_done=False)
    assert data["is_init"][:, 1:].any()
    assert torch.equal(replay(load_policy(folder), data), data["action"])


# those that are left out differ from one of these in a number or a word
FAST = ("shm", "lstm", "gpt2", "dnc", "mlp")


@pytest.mark.parametrize(
    "memory",
    at_night(
        [x for x in MEMORIES if not x.startswith(("shm_", "fast_weights_"))],
        unless=lambda memory: memory in FAST,
    ),
)
def test_every_memory(memory: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "env.max_steps=5", memory=memory)
    folder = export_policy(run)
    assert folder == run / "export"
    assert {path.name for path in folder.iterdir()} == FILES
    check_acts_like_the_run(run, folder)


@pytest.mark.parametrize(
    ("env", "values", "kind"),
    [
        ("memory_length", ["env.length=4"], "categorical"),
        ("popgym_battleship_easy", ["env.joint_action=false"], "multi_categorical"),
        ("visual_match_100", ["env.frames=[2,2,3]"], "categorical"),
        ("wind", ["network.policy_keys=[previous_action,observation]"], "continuous"),
        ("wind", ["network.policy_keys=[observation]"], "continuous"),
        ("wind", ["network.shared_memory=false"], "continuous"),
    ],
    ids=["index", "indices", "pixels", "keys", "key", "own memory"],
)
def test_tasks_of_every_kind(env: str, values: list[str], kind: str, tmp_path: Path) -> None:
    short = ["env.max_steps=5"] if env == "wind" else []
    run = make_run(tmp_path / "run", *values, *short, env=env, memory="gru")
    folder = export_policy(run)
    assert read(folder)["action"]["kind"] == kind
    # episodes of battleship last as many steps as there are cells
    check_acts_like_the_run(run, folder, steps=70 if kind == "multi_categorical" else 8)


def test_the_value_head_is_left_out(shared: Path) -> None:
    found = load_file(shared / "model.safetensors")
    assert found.keys() == load_policy(shared).module.state_dict().keys()
    checkpoint = RunFolder(shared.parent / "run").checkpoints.load()["operator"]
    values = [name for name in checkpoint if name.startswith("module.2")]
    assert values
    assert len(found) == len(checkpoint) - len(values)


@pytest.mark.slow
def test_loading_does_not_need_the_environment(original: Path) -> None:
    code = f"""
import sys

# whoever imports one of these finds nothing
sys.modules.update(dict.fromkeys(["gymnasium", "gym", "popgym"]))
import torch
from torchrl_shm.sharing import load_policy

policy = load_policy({str(original / "shared")!r})
look = {{"observation": torch.zeros(2, 2), "previous_action": torch.zeros(2, 2)}}
action, memory = policy(look, policy.initial_memory(2))
assert action.shape == (2, 2)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


class TestCard:
    def test_front_matter_and_numbers(self, tmp_path: Path) -> None:
        command = "python recipes/ppo_shm.py memory=lru"
        run = make_run(tmp_path / "run", "experiment.seed=3", f"command={command!r}", memory="lru")
        RunFolder(run).write_summary({"frames": 640, "eval_return": 12.5, "eval_success": 0.25})
        card = (export_policy(run) / "README.md").read_text()
        _, front, body = card.split("---\n", 2)
        assert yaml.safe_load(front) == {
            "library_name": "torchrl_shm",
            "pipeline_tag": "reinforcement-learning",
            "tags": ["reinforcement-learning", "torchrl", "partial-observability", "memory",
                     "lru", "wind"],
        }  # fmt: skip
        # a license is the choice of whoever shares it
        assert "\n# license: " in front
        assert "640 steps, seed 3" in body
        assert "| mean return | 12.5 |\n| success rate | 25.0% |" in body
        assert f"```bash\n{command}\n```" in body
        assert str(tmp_path) not in card

    @pytest.mark.parametrize(
        ("summary", "line"),
        [
            (None, "no evaluation of this checkpoint"),
            ({"frames": 320, "eval_return": 1.0}, "no evaluation of this checkpoint"),
            ({"frames": 640, "eval_return": -0.5, "eval_success": None}, "| mean return | -0.5 |"),
        ],
        ids=["none", "of another checkpoint", "without success"],
    )
    def test_results(self, summary: Any, line: str, tmp_path: Path) -> None:
        run = make_run(tmp_path / "run")
        if summary:
            RunFolder(run).write_summary(summary)
        card = (export_policy(run) / "README.md").read_text()
        assert line in card
        assert "success" not in card

    def test_what_a_task_of_gymnasium_takes(self, tmp_path: Path) -> None:
        pytest.importorskip("popgym", reason="gymnasium comes with the extra popgym")
        options = ["env.id=Pendulum-v1", "env.previous_action=true"]
        card = (
            export_policy(make_run(tmp_path / "run", *options, env="gym")) / "README.md"
        ).read_text()
        assert "has the bounds of the task" not in card
        assert card.count("-1 and 1 are the bounds of the task") == card.count("`make_gym_env`") + 1
        assert "`previous_action` is the action clipped to -1 and 1, and 0 where an" in card
        formula = re.search(r"takes `(low .*?)`, rounded", card)[1]  # type: ignore[index]
        from torchrl_shm.envs._gym_spaces import action_of

        space: Any = importlib.import_module("gymnasium.spaces").Box(10, 20, (3,))
        action = torch.tensor([[-3.0, 0.5, 1.0]])
        low, high = torch.tensor(space.low), torch.tensor(space.high)
        taken = eval(formula, {"action": action, "low": low, "high": high})
        assert taken.tolist() == action_of(space, "x").to_env(action.numpy()).tolist()

    @pytest.mark.parametrize("clamp", ["null", "100"])
    def test_a_memory_without_a_bound(self, clamp: str, tmp_path: Path) -> None:
        folder = export_policy(make_run(tmp_path / "run", f"memory.clamp={clamp}", memory="shm"))
        assert ("has no bound" in (folder / "README.md").read_text()) == (clamp == "null")

    @pytest.mark.parametrize(
        ("values", "line"),
        [
            (["env.id=CartPole-v1"], "Its indices count from 0: add the `start` of the space"),
            (["env.id=FrozenLake-v1", "env.previous_action=true"], "is one-hot, one block after"),
        ],
    )
    def test_indices_of_gymnasium(self, values: list[str], line: str, tmp_path: Path) -> None:
        pytest.importorskip("popgym", reason="gymnasium comes with the extra popgym")
        folder = export_policy(make_run(tmp_path / "run", *values, env="gym"))
        assert line in (folder / "README.md").read_text()

    @pytest.mark.parametrize(
        ("env", "values"),
        [("wind", []), ("wind", ["network.policy_keys=[observation]"]), ("visual_match_100", [])],
    )
    def test_its_code_runs_where_it_lies(
        self,
        env: str,
        values: list[str],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        folder = export_policy(make_run(tmp_path / "run", *values, env=env))
        (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)
        monkeypatch.chdir(folder)
        exec(code, {})
        assert capsys.readouterr().out.startswith("tensor(")


class TestOverwriting:
    def test_an_export_is_replaced(self, shared: Path, tmp_path: Path) -> None:
        before = (shared / "model.safetensors").read_bytes()
        # not the parameters of the first one, which is made once for all tests
        torch.manual_seed(1280)
        other = make_run(tmp_path / "other", frames=1280)
        assert export_policy(other, shared) == shared
        assert (shared / "model.safetensors").read_bytes() != before
        assert "1,280 steps" in (shared / "README.md").read_text()
        assert {path.name for path in shared.iterdir()} == FILES

    @pytest.mark.parametrize("name", ["folder/notes.txt", "folder/model.safetensors", "folder"])
    def test_other_files_are_kept(self, name: str, original: Path, tmp_path: Path) -> None:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
        with pytest.raises(FileExistsError, match=r"holds something else.*another to=\.\.\."):
            export_policy(original / "run", tmp_path / "folder")
        assert path.read_text() == "mine"

    def test_a_card_that_was_edited_is_kept(self, shared: Path) -> None:
        card = shared / "README.md"
        card.write_text(card.read_text().replace("# license: name", "license: mit #"))
        with pytest.raises(FileExistsError, match="a model card that was edited"):
            export_policy(shared.parent / "run", shared)
        assert "license: mit" in card.read_text()

    def test_what_was_cut_off_is_not_loaded(
        self, shared: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: Any) -> None:
            raise OSError("No space left on device")

        monkeypatch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="No space left"):
            export_policy(shared.parent / "run", shared)
        with pytest.raises(FileNotFoundError, match=r"config\.json does not exist"):
            load_policy(shared)


class TestMistakes:
    def test_no_run(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"config\.yaml does not exist"):
            export_policy(tmp_path / "run", tmp_path / "shared")
        assert list(tmp_path.iterdir()) == []

    def test_no_checkpoint(self, tmp_path: Path) -> None:
        run = make_run(tmp_path / "run")
        shutil.rmtree(run / "checkpoints")
        with pytest.raises(FileNotFoundError, match="checkpoint"):
            export_policy(run, tmp_path / "shared")
        assert not (tmp_path / "shared").exists()

    def test_unknown_checkpoint(self, original: Path) -> None:
        with pytest.raises(ValueError, match="checkpoint='worst' is unknown"):
            export_policy(original / "run", checkpoint="worst")  # type: ignore[arg-type]

    def test_another_network(self, tmp_path: Path) -> None:
        run = make_run(tmp_path / "run")
        path = run / "config.yaml"
        own = f"{make_other_network.__module__}.{make_other_network.__name__}"
        text = path.read_text()
        path.write_text(re.sub(r"torchrl_shm\.\S+\.make_actor_critic", own, text))
        assert own in path.read_text()
        with pytest.raises(ValueError, match="only networks of make_actor_critic"):
            export_policy(run)

    @pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
    def test_missing_file(self, shared: Path, name: str) -> None:
        (shared / name).unlink()
        with pytest.raises(FileNotFoundError, match=rf"{name} does not exist"):
            load_policy(shared)

    @pytest.mark.parametrize("size", [0, 100, -1])
    def test_truncated_weights(self, shared: Path, size: int) -> None:
        path = shared / "model.safetensors"
        path.write_bytes(path.read_bytes()[:size])
        with pytest.raises(ValueError, match=r"model\.safetensors is damaged, copy it again"):
            load_policy(shared)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda x: {}, "key.weight is missing, expected torch.float32 [24, 16]"),
            (
                lambda x: {"": x[:5].clone()},
                "key.weight is torch.float32 [5, 16], expected torch.float32 [24, 16]",
            ),
            (
                lambda x: {"": x.double()},
                "key.weight is torch.float64 [24, 16], expected torch.float32 [24, 16]",
            ),
            (lambda x: {"": x, "2": x.clone()}, "is torch.float32 [24, 16], expected missing"),
        ],
        ids=["missing", "shape", "dtype", "one more"],
    )
    def test_weights_that_do_not_fit(self, shared: Path, change: Any, message: str) -> None:
        path = shared / "model.safetensors"
        tensors = load_file(path)
        name = next(name for name in tensors if name.endswith("key.weight"))
        changed = change(tensors.pop(name))
        save_file(tensors | {name + end: x for end, x in changed.items()}, path)
        with pytest.raises(ValueError, match=re.escape(message)):
            load_policy(shared)

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"format_version": 1}'])
    def test_no_configuration(self, shared: Path, text: str) -> None:
        (shared / "config.json").write_text(text)
        with pytest.raises(ValueError, match="is not the configuration of a shared policy"):
            load_policy(shared)

    @pytest.mark.parametrize(
        ("replace", "message"),
        [
            ({"format_version": 2, "observations": "?"}, "format_version=2.*reads 1; install"),
            ({"format_version": None}, "format_version=None.*reads 1; install"),
            ({"action__kind": "telepathic"}, "'telepathic'"),
            ({"action__size": -1}, r"action\.continuous\.size"),
            ({"action__low": [0.0]}, "does not build a policy"),
            ({"observations": []}, "observations"),
            ({"network__embedding_size": "many"}, "does not build a policy"),
            ({"network__policy_keys": ["place"]}, "does not build a policy"),
            ({"network__color": "red"}, "does not build a policy: .*color"),
            ({"memory__memory_size": "many"}, "does not build a policy"),
            ({"memory__color": "red"}, "does not build a policy: .*color"),
            ({"memory": {}}, "does not describe its memory"),
            ({"memory__memory_size": "${oc.env:HOME}"}, "has interpolations"),
        ],
    )
    def test_values_that_make_no_policy(
        self, shared: Path, replace: dict[str, Any], message: str
    ) -> None:
        edit(shared, **replace)
        path = shared / "config.json"
        # the same text to a parser, and not to a search for the two characters
        path.write_text(path.read_text().replace("${", r"\u0024{"))
        with pytest.raises(ValueError, match=message):
            load_policy(shared)


@pytest.mark.usefixtures("trapped_system")
@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "torchrl_shm.modules.shm.torch.load",
        # ours, but no memory
        "torchrl_shm.envs.wind.WindEnv",
    ],
)
@pytest.mark.parametrize(
    "place",
    [
        lambda target: {"memory___target_": target},
        lambda target: {"memory___zen_target": target},
        lambda target: {"memory__cell": {"_target_": "hydra_zen.funcs.get_obj", "path": target}},
        lambda target: {"memory__memory_size": [{"a": {"_target_": target, "command": "x"}}]},
        lambda target: {"memory___target_": {"_target_": target, "command": "x"}},
    ],
    ids=["here", "wrapped", "as a value", "below", "as a target"],
)
def test_a_stranger_builds_memories_only(shared: Path, place: Any, target: str) -> None:
    edit(shared, **place(target))
    with pytest.raises(ValueError, match=f"{target}.*; only memories of torchrl_shm"):
        load_policy(shared)


def test_the_task_is_rebuilt(shared: Path) -> None:
    env = load_task(shared)(num_envs=2, seed=0)
    assert isinstance(env, WindEnv)
    assert env.batch_size == (2,)
    parts = instantiate_saved(shared.parent / "run")
    assert env.max_steps == parts["env"](num_envs=1, seed=0).max_steps


@pytest.mark.usefixtures("trapped_system")
@pytest.mark.parametrize(
    ("replace", "message"),
    [
        ({"training__env___target_": "os.system"}, "'os.system'; only the tasks of torchrl_shm"),
        ({"training__env___target_": "torchrl_shm.modules.shm.SHM"}, "only the tasks"),
        ({"training__env__goal": 3}, "does not describe its env: .*'goal'"),
        # gymnasium imports what stands before a colon
        (
            {
                "training__env": {
                    "_target_": "torchrl_shm.envs.gym.make_gym_env",
                    "_partial_": True,
                    "id": "os:system",
                }
            },
            "make_gym_env'; only the tasks",
        ),
        ({"training__env__max_steps": {"_target_": "os.system", "command": "x"}}, "os.system"),
        ({"training__env__max_steps": "${oc.env:HOME}"}, "has interpolations"),
        ({"training__env": None}, "does not describe its env: it is None"),
        ({"training__env": "wind"}, "does not describe its env: it is 'wind'"),
        ({"training": {}}, "does not describe its env: it is None"),
        ({"training__env___partial_": False}, "does not describe its env"),
    ],
)
def test_a_stranger_builds_tasks_of_ours_only(
    shared: Path, replace: dict[str, Any], message: str
) -> None:
    edit(shared, **replace)
    with pytest.raises(ValueError, match=message):
        load_task(shared)


class Fading(BaseCell):
    """A memory of one's own."""

    def __init__(self, input_size: int, output_size: int) -> None:
        super().__init__(input_size, output_size, (output_size,))
        self.write = torch.nn.Linear(input_size, output_size)

    def run_step(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        memory = 0.9 * memory + self.write(x)
        return memory, memory


def test_a_memory_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # forgotten after the test
    monkeypatch.setitem(MEMBERS, "memory/fading_shared", None)  # type: ignore[arg-type]
    del MEMBERS["memory/fading_shared"]
    add_memory("fading_shared", Fading)
    run = make_run(tmp_path / "run", "env.max_steps=5", memory="fading_shared")
    folder = export_policy(run)
    check_acts_like_the_run(run, folder)
    # another process has to be told first
    del MEMBERS["memory/fading_shared"]
    with pytest.raises(ValueError, match=r"would build '.*\.Fading'; only memories"):
        load_policy(folder)


@pytest.mark.parametrize(
    "spec",
    [
        Bounded(-1.0, 2.0, shape=torch.Size((3,))),
        Bounded(
            low=torch.tensor([-1.0, -torch.inf]), high=torch.tensor([1.0, 2.0]),
            shape=torch.Size((2,)), dtype=torch.float32,
        ),
        Bounded(-1.0, 2.0, shape=torch.Size((1,)), dtype=torch.float64),
        Unbounded(shape=torch.Size((3,))),
        Categorical(5),
        MultiCategorical([4, 4]),
        MultiCategorical([2, 5]),
        MultiCategorical([[2, 3], [4, 5]]),
        Binary(shape=(2, 2), dtype=torch.int8),
        OneHot(3),
        Bounded(low=-1, high=2, shape=(2, 3)),
        Unbounded((2, 1)),
    ],
    ids=str,
)  # fmt: skip
def test_actions_survive_json(spec: Any) -> None:
    entry = action_entry(spec)
    text = entry.model_dump_json()
    # what others can read, too
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert action_spec(type(entry).model_validate_json(text)) == spec


def test_a_program_that_is_refused_leaves_what_was_there(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxscript", reason="comes with the extra onnx")

    def refuse(step: Any) -> bytes:
        raise ValueError("ONNX refuses this policy: it is too good")

    monkeypatch.setattr(folder_module, "make_onnx", refuse)
    before = {path.name: path.read_bytes() for path in shared.iterdir()}
    with pytest.raises(ValueError, match="too good"):
        export_policy(tmp_path / "run", shared, onnx=True)
    assert {path.name: path.read_bytes() for path in shared.iterdir()} == before
    with pytest.raises(ValueError, match="too good"):
        export_policy(tmp_path / "run", tmp_path / "new", onnx=True)
    assert not (tmp_path / "new").exists()
