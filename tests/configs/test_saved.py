"""The `config.yaml` of a run: read again, and resumed."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hydra_zen import instantiate
from omegaconf import DictConfig, OmegaConf

from tests.configs._helpers import compose_recipe
from torchrl_shm import SHMModule, WindEnv
from torchrl_shm.configs import instantiate_saved, load_config
from torchrl_shm.configs.groups import MEMBERS
from torchrl_shm.configs.saved import _equal, comparable, resumed_config
from torchrl_shm.training import TrainingRun


def write_run(config: DictConfig, folder: Path) -> None:
    """What a run writes before it trains."""
    experiment = instantiate(config.experiment, run_dir=str(folder), resume=None)
    TrainingRun.open("recipe", experiment, WindEnv, SHMModule, None, config).folder.close()


def as_plain(part: Any) -> Any:
    return part.func, part.args, dict(part.keywords)


def test_parts_of_a_run_are_built_again(tmp_path: Path) -> None:
    config = compose_recipe(
        "memory=lru",
        "experiment.seed=7",
        "env.max_steps=60",
        "algo.rollout_length=${env.max_steps}",
    )
    write_run(config, tmp_path)
    assert "${" not in (tmp_path / "config.yaml").read_text()
    saved = instantiate_saved(tmp_path)
    assert saved.keys() == {"env", "memory", "network", "experiment"}
    for name in ("env", "memory", "network"):
        assert as_plain(saved[name]) == as_plain(instantiate(config[name]))
    assert (saved["experiment"].seed, saved["experiment"].names["env"]) == (7, "wind")
    assert load_config(tmp_path).algo.rollout_length == 60


@pytest.mark.parametrize("part", ["env", "memory", "network"])
@pytest.mark.parametrize("memory", ["shm", "mlp", "gru"])
def test_an_option_of_another_version_is_named(part: str, memory: str, tmp_path: Path) -> None:
    config = compose_recipe(f"memory={memory}")
    write_run(config, tmp_path)
    assert instantiate_saved(tmp_path)
    config = OmegaConf.load(tmp_path / "config.yaml")
    config[part].gone = 3
    OmegaConf.save(config, tmp_path / "config.yaml")
    with pytest.raises(ValueError, match=rf"config\.yaml: {part}\.gone is unknown; this run was "):
        instantiate_saved(tmp_path)


def test_every_member_survives_a_file() -> None:
    for path, member in MEMBERS.items():
        if path.startswith(("env/", "memory/", "network/")):
            node = OmegaConf.structured(member.make())
            read = OmegaConf.create(OmegaConf.to_yaml(node))
            assert as_plain(instantiate(read)) == as_plain(instantiate(node)), path


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"env: [", "cannot be read: "),
        (b'!!python/object/apply:os.system ["false"]', "cannot be read: "),
        (b"\xff\xfe\x00", "cannot be read: "),
        (b"- 1\n- 2\n", "is not the configuration of a run"),
        (b"env: {}\nexperiment:\n", "is not the configuration of a run"),
        (b"env: {}\nalgo: {}\n", "was written by an older version, .*train again"),
        (
            b"env: {}\nexperiment: {}\nmemory: {_zen_target: x.modules.baselines.make_rnn}\n",
            "was written by an older version, .*train again",
        ),
    ],
)
def test_files_that_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=rf"config\.yaml {message}"):
        load_config(tmp_path)


@pytest.mark.parametrize(
    ("section", "option", "other"),
    [
        ("env", "max_steps", 7), ("memory", "revive", False), ("memory", "state", "full"),
        ("network", "action_scale", "state"), ("network", "hidden_sizes", [5]),
        ("experiment", "compile", "update"), ("algo", "imitation_coeff", 0.5),
    ],
)  # fmt: skip
def test_an_option_that_is_newer_than_a_run_has_its_default(
    section: str, option: str, other: Any
) -> None:
    config = comparable(compose_recipe())
    before = deepcopy(config)
    default = before[section].pop(option)
    assert _equal(before, config)
    config[section][option] = other
    assert not _equal(before, config)
    # what the command no longer has decided something
    del config[section][option]
    assert not _equal(before | {section: before[section] | {option: default}}, config)


def test_an_option_may_be_called_like_a_memory() -> None:
    for cell in (3, None, {"x": 1}):
        kwargs = {"_target_": "torchrl_shm.envs.WindEnv", "cell": cell}
        assert _equal(kwargs, {**kwargs, "max_steps": 100})
        assert not _equal(kwargs, {**kwargs, "unheard_of": 1})


class TestResume:
    """What does not need a command line; the rest is in tests/recipes."""

    @pytest.fixture
    def fresh(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DictConfig:
        """The configuration of a new run, for which Hydra has made a folder."""
        monkeypatch.chdir(tmp_path)
        folder = tmp_path / "outputs" / "today" / "now"
        folder.mkdir(parents=True)
        return compose_recipe("experiment.seed=3", f"experiment.run_dir={folder}")

    @pytest.fixture
    def old(self, tmp_path: Path) -> Path:
        folder = tmp_path / "old"
        write_run(compose_recipe("memory=gru", "experiment.seed=7"), folder)
        return folder

    def test_nothing_to_resume(self, fresh: DictConfig) -> None:
        assert resumed_config(fresh) is fresh
        assert Path(fresh.experiment.run_dir).exists()

    def test_folder(self, fresh: DictConfig, old: Path, tmp_path: Path) -> None:
        fresh.experiment.resume = str(old)
        before = (old / "config.yaml").read_bytes()
        config = resumed_config(fresh)
        assert (config.experiment.run_dir, config.experiment.resume) == (str(old), str(old))
        assert config.experiment.seed == 7
        assert config.memory.cell.path == "torchrl_shm.modules.rnn.GRU"
        # the folder that Hydra had made for a new run is gone, and nothing else
        assert {path.name for path in tmp_path.iterdir()} == {"old"}
        # the run writes the same configuration again
        OmegaConf.update(config, "experiment.run_dir", "run")
        write_run(config, old)
        assert (old / "config.yaml").read_bytes() == before

    def test_a_folder_that_holds_something_stays(self, fresh: DictConfig, old: Path) -> None:
        folder = Path(fresh.experiment.run_dir)
        (folder.parent / "other").mkdir()
        fresh.experiment.resume = str(old)
        resumed_config(fresh)
        assert [path.name for path in folder.parent.iterdir()] == ["other"]

    def test_no_run(self, fresh: DictConfig, tmp_path: Path) -> None:
        fresh.experiment.resume = str(tmp_path / "nothing")
        with pytest.raises(FileNotFoundError, match="nothing is not the folder of a run"):
            resumed_config(fresh)
