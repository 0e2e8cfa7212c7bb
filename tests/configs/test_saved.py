"""The `config.yaml` of a run: written, read as far as it can be trusted, and taken up again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra_zen import instantiate
from omegaconf import DictConfig, OmegaConf

from tests.configs._helpers import compose_recipe
from tests.configs.test_groups import MEMBERS
from torchrl_shm.configs import PPO, instantiate_saved, load_config, save_config
from torchrl_shm.configs.saved import take_up

PARTS = ("env", "memory", "algo")


def as_plain(part: Any) -> Any:
    """Function and options of a factory; lists and tuples are the same in a file."""
    if isinstance(part, PPO):
        return {key: getattr(part, key) for key in vars(part)}
    return part.func, dict(part.keywords)


class TestSavedConfig:
    @pytest.mark.parametrize(("group", "name"), MEMBERS)
    def test_round_trip(self, tmp_path: Path, group: str, name: str) -> None:
        config = compose_recipe(f"{group}={name}", "seed=7", "algo.epochs=3")
        save_config(config, tmp_path)
        saved = instantiate_saved(tmp_path)
        assert set(saved) == {*PARTS, "seed", "names"}
        assert saved["seed"] == 7
        assert saved["names"] == {"env": "wind", "memory": "shm"}
        for part in PARTS:
            assert as_plain(saved[part]) == as_plain(instantiate(config[part]))
        assert saved["algo"].epochs == 3

    def test_every_value_is_resolved(self, tmp_path: Path) -> None:
        config = compose_recipe("algo.rollout_length=${env.max_steps}", "env.max_steps=60")
        save_config(config, tmp_path)
        text = (tmp_path / "config.yaml").read_text()
        assert "${" not in text
        assert instantiate_saved(tmp_path)["algo"].rollout_length == 60

    def test_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"config\.yaml does not exist; this must"):
            instantiate_saved(tmp_path)


@pytest.mark.usefixtures("trapped_system")
class TestForeignTargets:
    """A run folder from somebody else builds nothing but what is ours."""

    @pytest.fixture
    def crafted(self, tmp_path: Path) -> Any:
        def save(key: str, value: Any) -> None:
            config = OmegaConf.to_container(compose_recipe(), resolve=True)
            assert isinstance(config, dict)
            OmegaConf.update(loaded := OmegaConf.create(config), key, value, force_add=True)
            OmegaConf.save(loaded, tmp_path / "config.yaml")

        return save

    @pytest.mark.parametrize(
        "target",
        [
            "os.system",
            "builtins.eval",
            "subprocess.run",
            "torch.load",
            "hydra_zen.funcs.zen_processing",
            "torchrl.record.loggers.get_logger",
            # paths that only begin like ours
            "torchrl_shm",
            "torchrl_shm_evil.envs.run",
            "torchrl_shm.envs.no_such_module.run",
            "torchrl_shm.envs.wind.no_such_name",
            # what our modules import
            "torchrl_shm.envs.wind.torch.load",
            "torchrl_shm.envs.wind.math.exp",
            "torchrl_shm.training.run_folder.os.system",
            "torchrl_shm.training.loggers.find_spec",
            "torchrl_shm.configs.saved.import_module",
            # what of ours imports or wraps whatever it is told
            "torchrl_shm.envs.gym._import",
            "torchrl_shm.envs.gym._wrap_gym",
            "torchrl_shm.envs.gym._batch",
            "torchrl_shm.training.collection._EnvFactory",
            # what of ours writes files
            "torchrl_shm.training.run_folder.write_atomically",
            "torchrl_shm.figures.plots.plot_learning_curve",
            "torchrl_shm.configs.saved.save_config",
        ],
    )
    def test_target(self, tmp_path: Path, crafted: Any, target: str) -> None:
        crafted("env._target_", target)
        with pytest.raises(ValueError, match=f"'{target}'; only targets of torchrl_shm"):
            instantiate_saved(tmp_path)

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("memory._target_", "os.system"),
            # a class as a value
            ("memory.memory_size", {"_target_": "hydra_zen.funcs.get_obj", "path": "os.system"}),
            ("logger._target_", "os.system"),
            ("env._zen_target", "os.system"),
            ("env.max_wind", {"_target_": "os.system", "_args_": ["false"]}),
            ("algo.hidden_sizes", [{"_target_": "os.system", "_partial_": True}]),
            ("algo.hidden_sizes", [[{"a": {"_target_": "os.system", "_args_": ["false"]}}]]),
            ("names", {"env": {"_target_": "os.system"}}),
            ("env._target_", {"_target_": "os.system", "command": "false"}),
        ],
    )
    def test_place(self, tmp_path: Path, crafted: Any, key: str, value: Any) -> None:
        crafted(key, value)
        with pytest.raises(ValueError, match=r"os\.system.*only targets of torchrl_shm"):
            instantiate_saved(tmp_path)

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("env._target_", "${oc.decode:os.system}"),
            ("env.max_wind", "${oc.create:{_target_:os.system}}"),
            ("seed", "${oc.env:HOME}"),
            ("names.env", "${names.memory}"),
        ],
    )
    def test_interpolation(self, tmp_path: Path, crafted: Any, key: str, value: str) -> None:
        crafted(key, value)
        with pytest.raises(ValueError, match=r"config\.yaml has interpolations"):
            instantiate_saved(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("env: [", "cannot be read: "),
        ("a: &a [*a]", "cannot be read: "),
        ('!!python/object/apply:os.system ["false"]', "cannot be read: "),
        ("- 1\n- 2\n", "is not the configuration of a run"),
    ],
)
def test_no_configuration(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=rf"config\.yaml {message}"):
        load_config(tmp_path)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"config\.yaml cannot be read: "):
        load_config(tmp_path)


class TestTakeUp:
    """What does not need a command line; the rest is in tests/recipes/test_resume.py."""

    @pytest.fixture
    def fresh(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DictConfig:
        """The configuration of a new run, for which Hydra has made a folder."""
        monkeypatch.chdir(tmp_path)
        folder = tmp_path / "outputs" / "today" / "now"
        folder.mkdir(parents=True)
        config = compose_recipe("seed=3")
        config.run_dir = str(folder)
        return config

    @pytest.fixture
    def old(self, tmp_path: Path) -> Path:
        folder = tmp_path / "old"
        folder.mkdir()
        save_config(compose_recipe("memory=gru", "seed=7"), folder)
        return folder

    def test_nothing_to_take_up(self, fresh: DictConfig) -> None:
        assert take_up(fresh) is fresh
        assert Path(fresh.run_dir).exists()

    def test_folder(self, fresh: DictConfig, old: Path, tmp_path: Path) -> None:
        fresh.resume = str(old)
        before = (old / "config.yaml").read_bytes()
        taken = take_up(fresh)
        assert (taken.run_dir, taken.resume) == (str(old), str(old))
        assert taken.seed == 7
        where = {"run_dir": None, "resume": None}
        saved: Any = OmegaConf.to_container(load_config(old))
        found: Any = OmegaConf.to_container(taken)
        assert found | where == saved | where
        # what Hydra had made for a new run is gone, and nothing else
        assert {path.name for path in tmp_path.iterdir()} == {"old"}
        # and the run writes the same configuration again
        save_config(OmegaConf.merge(taken, {"run_dir": "run"}), old)
        assert (old / "config.yaml").read_bytes() == before

    def test_a_folder_that_holds_something_stays(self, fresh: DictConfig, old: Path) -> None:
        other = Path(fresh.run_dir).parent / "other"
        other.mkdir()
        fresh.resume = str(old)
        take_up(fresh)
        assert other.exists()
        assert not Path(fresh.run_dir).exists()

    def test_no_run(self, fresh: DictConfig, tmp_path: Path) -> None:
        fresh.resume = str(tmp_path / "nothing")
        with pytest.raises(FileNotFoundError, match=r"config\.yaml does not exist; this must be"):
            take_up(fresh)

    def test_untrusted(self, fresh: DictConfig, old: Path) -> None:
        config = load_config(old)
        config.env._target_ = "os.system"
        OmegaConf.save(config, old / "config.yaml")
        fresh.resume = str(old)
        with pytest.raises(ValueError, match=r"'os\.system'; only targets of torchrl_shm"):
            take_up(fresh)


@pytest.mark.parametrize("name", ["checkpoints", "metrics.csv", "config.yaml.part", "x.png"])
def test_links_lead_nowhere(tmp_path: Path, name: str) -> None:
    """Whoever goes on with the run, or draws into its folder, would write through them."""
    run = tmp_path / "run"
    run.mkdir()
    save_config(compose_recipe(), run)
    (run / name).symlink_to(tmp_path)
    with pytest.raises(ValueError, match=f"{name} is a link"):
        load_config(run)


def test_names_stay_names(tmp_path: Path) -> None:
    """They become part of model cards."""
    config = compose_recipe()
    config.names.env = "wind\n```\n<script>"
    save_config(config, tmp_path)
    with pytest.raises(ValueError, match="not one of a preset"):
        load_config(tmp_path)
