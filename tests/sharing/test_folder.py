"""A policy as a folder: written whole, read back equal, and nothing in it is run."""

from __future__ import annotations

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
from hydra_zen import instantiate
from safetensors.torch import load_file, save_file
from torch import Tensor
from torchrl.data import Bounded, Categorical, MultiCategorical, Unbounded
from torchrl.envs import ExplorationType, TransformedEnv, set_exploration_type
from torchrl.modules.utils import get_env_transforms_from_module

from tests.configs._helpers import compose_recipe
from torchrl_shm.configs import MEMORIES, add_memory, save_config
from torchrl_shm.configs.groups import groups
from torchrl_shm.configs.saved import allowed_targets
from torchrl_shm.modules import BaseCell
from torchrl_shm.networks import make_actor_critic
from torchrl_shm.sharing import PlainPolicy, export_policy, load_policy
from torchrl_shm.sharing.policy_file import action_entry, action_spec
from torchrl_shm.training import RunFolder

FILES = {"README.md", "config.json", "model.safetensors"}


def make_run(folder: Path, *overrides: str, frames: int = 640) -> Path:
    """A run that did not learn anything, with overrides as on the command line."""
    env, memory = "wind", "shm"
    for override in overrides:
        group, _, name = override.partition("=")
        env, memory = (name if group == "env" else env), (name if group == "memory" else memory)
    config = compose_recipe(
        *overrides, f"names.env={env}", f"names.memory={memory}", "algo.embedding_size=16",
        "algo.hidden_sizes=[16]",
    )  # fmt: skip
    run = RunFolder.create(folder)
    save_config(config, folder)
    operator = make_actor_critic(
        instantiate(config.env)(num_envs=1, seed=0),
        instantiate(config.memory),
        **instantiate(config.algo).network(),
    )
    # a fresh policy does nearly nothing
    for parameter in operator.get_policy_head().parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    run.checkpoints.save({"operator": operator.state_dict(), "frames": frames}, step=frames)
    run.close()
    return folder


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


def edit(folder: Path, **replace: Any) -> None:
    """Change values of `config.json`; `__` leads into what is nested."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for key, value in replace.items():
        *parents, last = key.split("__")
        place = config
        for parent in parents:
            place = place[parent]
        place[last] = value
    path.write_text(json.dumps(config))


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
    config = yaml.safe_load((run / "config.yaml").read_text())
    make_env, memory, algo = (instantiate(config[part]) for part in ("env", "memory", "algo"))
    env = make_env(num_envs=3, seed=0)
    operator = make_actor_critic(env, memory, **algo.network())
    operator.load_state_dict(RunFolder(run).load_checkpoint()["operator"])
    module = operator.get_policy_operator()
    with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
        torch.manual_seed(1)
        transformed = TransformedEnv(env, get_env_transforms_from_module(module))
        data = transformed.rollout(steps, module, break_when_any_done=False)
    assert data["is_init"][:, 1:].any()
    assert torch.equal(replay(load_policy(folder), data), data["action"])


@pytest.mark.parametrize("memory", MEMORIES)
def test_every_memory(memory: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", f"memory={memory}", "env.max_steps=5")
    folder = export_policy(run)
    assert folder == run / "export"
    assert {path.name for path in folder.iterdir()} == FILES
    check_acts_like_the_run(run, folder)


@pytest.mark.parametrize(
    ("overrides", "kind"),
    [
        (("env=memory_length", "env.length=4"), "categorical"),
        (("env=popgym_battleship_easy", "env.joint_action=false"), "multi_categorical"),
        (("env=visual_match_100", "env.frames=[2,2,3]"), "categorical"),
        (("algo.policy_keys=[previous_action,observation]", "env.max_steps=5"), "continuous"),
        (("algo.policy_keys=[observation]", "env.max_steps=5"), "continuous"),
        (("algo.shared_memory=false", "env.max_steps=5"), "continuous"),
    ],
    ids=["index", "indices", "pixels", "keys", "key", "own memory"],
)
def test_tasks_of_every_kind(overrides: tuple[str, ...], kind: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", *overrides, "memory=gru")
    folder = export_policy(run)
    assert json.loads((folder / "config.json").read_text())["action"]["kind"] == kind
    # episodes of battleship last as many steps as there are cells
    check_acts_like_the_run(run, folder, steps=70 if kind == "multi_categorical" else 8)


def test_only_what_acts_is_in_the_file(shared: Path) -> None:
    found = load_file(shared / "model.safetensors")
    policy = load_policy(shared)
    assert found.keys() == policy.module.state_dict().keys()
    checkpoint = RunFolder(shared.parent / "run").load_checkpoint()["operator"]
    values = [name for name in checkpoint if name.startswith("module.2")]
    assert values
    assert len(found) == len(checkpoint) - len(values)


def test_loading_does_not_need_the_environment(tmp_path: Path) -> None:
    folder = export_policy(make_run(tmp_path / "run", "memory=gru", "env.max_steps=5"))
    code = f"""
import sys

# whoever imports one of these finds nothing
sys.modules.update(dict.fromkeys(["gymnasium", "gym", "popgym"]))
import torch
from torchrl_shm.sharing import load_policy

policy = load_policy({str(folder)!r})
look = {{"observation": torch.zeros(2, 2), "previous_action": torch.zeros(2, 2)}}
action, memory = policy(look, policy.initial_memory(2))
assert action.shape == (2, 2)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


class TestCard:
    def test_front_matter_and_numbers(self, tmp_path: Path) -> None:
        run = make_run(tmp_path / "run", "memory=lru", "seed=3", "algo.epochs=2")
        summary = {"frames": 640, "eval_return": 12.5, "eval_success": 0.25}
        RunFolder(run).write_summary(summary)
        card = (export_policy(run) / "README.md").read_text()
        _, front, body = card.split("---\n", 2)
        assert yaml.safe_load(front) == {
            "library_name": "torchrl_shm",
            "pipeline_tag": "reinforcement-learning",
            "tags": ["reinforcement-learning", "torchrl", "partial-observability", "memory",
                     "lru", "wind"],
        }  # fmt: skip
        # a licence is the choice of whoever shares it
        assert "\n# license: " in front
        assert "640 steps, seed 3" in body
        assert "| mean return | 12.5 |\n| success rate | 25.0% |" in body
        command = (
            "python recipes/ppo_shm.py env=wind memory=lru algo.epochs=2 algo.embedding_size=16 "
            "'algo.hidden_sizes=[16]' seed=3"
        )
        assert command in body
        assert str(tmp_path) not in card

    @pytest.mark.parametrize("summary", [None, {"frames": 320, "eval_return": 1.0}])
    def test_results_of_another_checkpoint_are_left_out(self, summary: Any, tmp_path: Path) -> None:
        run = make_run(tmp_path / "run")
        if summary:
            RunFolder(run).write_summary(summary)
        folder = export_policy(run)
        assert "no evaluation of this checkpoint" in (folder / "README.md").read_text()
        assert json.loads((folder / "config.json").read_text())["evaluation"] is None

    def test_tasks_without_success(self, tmp_path: Path) -> None:
        run = make_run(tmp_path / "run", "env=popgym_repeat_first_easy")
        RunFolder(run).write_summary({"frames": 640, "eval_return": -0.5, "eval_success": None})
        body = (export_policy(run) / "README.md").read_text()
        assert "| mean return | -0.5 |" in body
        assert "success" not in body

    @pytest.mark.parametrize(
        "overrides", [(), ("algo.policy_keys=[observation]",), ("env=visual_match_100",)]
    )
    def test_its_code_runs_where_it_lies(
        self,
        overrides: tuple[str, ...],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        folder = export_policy(make_run(tmp_path / "run", *overrides))
        (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)
        monkeypatch.chdir(folder)
        exec(code, {})
        assert capsys.readouterr().out.startswith("tensor(")


class TestOverwriting:
    def test_an_export_is_replaced(self, shared: Path, tmp_path: Path) -> None:
        before = (shared / "model.safetensors").read_bytes()
        other = make_run(tmp_path / "other", frames=1280)
        assert export_policy(other, shared) == shared
        assert (shared / "model.safetensors").read_bytes() != before
        assert "1,280 steps" in (shared / "README.md").read_text()
        assert {path.name for path in shared.iterdir()} == FILES

    @pytest.mark.parametrize("name", ["notes.txt", "model.safetensors", "README.md"])
    def test_other_files_are_kept(self, name: str, tmp_path: Path) -> None:
        folder = tmp_path / "folder"
        folder.mkdir()
        (folder / name).write_text("mine")
        with pytest.raises(FileExistsError, match=r"holds something else.*another to=\.\.\."):
            export_policy(make_run(tmp_path / "run"), folder)
        assert [path.read_text() for path in folder.iterdir()] == ["mine"]

    def test_a_card_that_was_edited_is_kept(self, shared: Path) -> None:
        card = shared / "README.md"
        card.write_text(card.read_text().replace("# license: say", "license: mit #"))
        with pytest.raises(FileExistsError, match="a model card that was edited"):
            export_policy(shared.parent / "run", shared)
        assert "license: mit" in card.read_text()

    def test_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("mine")
        with pytest.raises(FileExistsError, match="holds something else"):
            export_policy(make_run(tmp_path / "run"), tmp_path / "file")

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

    @pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
    def test_missing_file(self, shared: Path, name: str) -> None:
        (shared / name).unlink()
        with pytest.raises(FileNotFoundError, match=rf"{name} does not exist"):
            load_policy(shared)

    def test_missing_folder(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"config\.json does not exist; pass a folder"):
            load_policy(tmp_path / "no_policy")

    @pytest.mark.parametrize("size", [0, 4, 100, 3000, -1])
    def test_truncated_weights(self, shared: Path, size: int) -> None:
        path = shared / "model.safetensors"
        path.write_bytes(path.read_bytes()[:size])
        with pytest.raises(ValueError, match=r"model\.safetensors is damaged, copy it again"):
            load_policy(shared)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda x: None, "is missing, expected torch.float32 [24, 16]"),
            (lambda x: x[:5].clone(), "is torch.float32 [5, 16], expected torch.float32 [24, 16]"),
            (lambda x: x.double(), "is torch.float64 [24, 16], expected torch.float32 [24, 16]"),
        ],
        ids=["missing", "shape", "dtype"],
    )
    def test_weights_that_do_not_fit(self, shared: Path, change: Any, message: str) -> None:
        path = shared / "model.safetensors"
        tensors = load_file(path)
        name = next(name for name in tensors if name.endswith("key.weight"))
        changed = change(tensors.pop(name))
        save_file(tensors if changed is None else {**tensors, name: changed}, path)
        with pytest.raises(ValueError, match=re.escape(f"{name} {message}")):
            load_policy(shared)

    def test_weights_that_nobody_asked_for(self, shared: Path) -> None:
        path = shared / "model.safetensors"
        save_file({**load_file(path), "more": torch.zeros(2)}, path)
        with pytest.raises(ValueError, match=r"more is torch.float32 \[2\], expected missing"):
            load_policy(shared)

    @pytest.mark.parametrize("value", [2, 0, "1", None])
    def test_other_versions(self, shared: Path, value: Any) -> None:
        edit(shared, format_version=value, observations="of another kind")
        with pytest.raises(ValueError, match=r"format_version=.*reads 1; install"):
            load_policy(shared)

    @pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", '{"format_version": 1}'])
    def test_no_configuration(self, shared: Path, text: str) -> None:
        (shared / "config.json").write_text(text)
        with pytest.raises(ValueError, match="is not the configuration of a shared policy"):
            load_policy(shared)

    @pytest.mark.parametrize(
        ("replace", "message"),
        [
            ({"action__kind": "telepathic"}, "'telepathic'"),
            ({"action__size": -1}, r"action\.continuous\.size"),
            ({"action__low": [0.0]}, "does not build a policy"),
            ({"observations": []}, "observations"),
            ({"network__embedding_size": "many"}, "does not build a policy"),
            ({"network__policy_keys": ["place"]}, "does not build a policy"),
            ({"network__colour": "red"}, "options of the network that are unknown: .*colour"),
            ({"memory__memory_size": "many"}, "does not build a policy"),
            ({"memory__colour": "red"}, "does not build a policy: .*colour"),
            ({"memory": {}}, "does not describe a memory"),
            ({"memory__memory_size": "${env:HOME}"}, "has interpolations"),
        ],
    )
    def test_values_that_make_no_policy(
        self, shared: Path, replace: dict[str, Any], message: str
    ) -> None:
        edit(shared, **replace)
        with pytest.raises(ValueError, match=message):
            load_policy(shared)

    def test_interpolations_in_disguise(self, shared: Path) -> None:
        edit(shared, memory__memory_size="${oc.env:HOME}")
        path = shared / "config.json"
        path.write_text(path.read_text().replace("$", r"\u0024"))
        assert "${" not in path.read_text()
        with pytest.raises(ValueError, match="has interpolations"):
            load_policy(shared)


@pytest.mark.usefixtures("trapped_system")
class TestForeignTargets:
    """A policy from somebody else builds nothing but memories."""

    @pytest.mark.parametrize(
        "target",
        [
            "os.system",
            "builtins.eval",
            "torch.load",
            "torchrl_shm.modules.shm.torch.load",
            "torchrl_shm.modules.no_such_module.run",
            # ours, but no memories
            "torchrl_shm.envs.wind.WindEnv",
            "torchrl_shm.training.loggers.make_logger",
            "torchrl_shm.configs.algo.PPO",
        ],
    )
    @pytest.mark.parametrize("place", ["here", "cell", "below"])
    def test_refused(self, shared: Path, target: str, place: str) -> None:
        if place == "here":
            edit(shared, memory___target_=target)
        elif place == "cell":
            edit(shared, memory__cell={"_target_": "hydra_zen.funcs.get_obj", "path": target})
        else:
            edit(shared, memory__memory_size=[{"a": {"_target_": target, "run_dir": "x"}}])
        with pytest.raises(ValueError, match=f"'{target}'; only memories of torchrl_shm"):
            load_policy(shared)

    def test_run_folders_that_were_crafted(self, tmp_path: Path) -> None:
        run = make_run(tmp_path / "run")
        path = run / "config.yaml"
        path.write_text(path.read_text().replace("torchrl_shm.envs.wind.WindEnv", "os.system"))
        with pytest.raises(ValueError, match=r"'os\.system'; only targets of torchrl_shm"):
            export_policy(run)
        assert not (run / "export").exists()


class Fading(BaseCell):
    """A memory of one's own."""

    def __init__(self, input_size: int, output_size: int) -> None:
        super().__init__(input_size, output_size, (output_size,))
        self.write = torch.nn.Linear(input_size, output_size)

    def run_step(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        memory = 0.9 * memory + self.write(x)
        return memory, memory


def test_a_memory_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    name = f"{Fading.__module__}.{Fading.__qualname__}"
    # where pytest imports tests from, their modules cannot be found by name
    monkeypatch.setitem(sys.modules, Fading.__module__, sys.modules[__name__])
    add_memory("fading_shared", Fading)
    # other tests of this process list the group
    request.addfinalizer(lambda: groups.delete_entry("memory", "fading_shared"))
    run = make_run(tmp_path / "run", "memory=fading_shared", "env.max_steps=5")
    folder = export_policy(run)
    check_acts_like_the_run(run, folder)
    assert f'"path": "{name}"' in (folder / "config.json").read_text()
    # another process has to be told first
    others = allowed_targets() - {name}
    monkeypatch.setattr("torchrl_shm.configs.saved.allowed_targets", lambda: others)
    with pytest.raises(ValueError, match=f"would build '{name}'; only memories"):
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
    ],
    ids=["bounded", "half", "double", "unbounded", "index", "indices"],
)  # fmt: skip
def test_actions_survive_json(spec: Any) -> None:
    entry = action_entry(spec)
    text = entry.model_dump_json()
    # what others can read, too
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert action_spec(type(entry).model_validate_json(text)) == spec
