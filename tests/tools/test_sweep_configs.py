"""What conf/ says of sweeps binds, reaches the examples, and frames every sweep."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from hydra._internal.callbacks import Callbacks
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.types import HydraContext
from hydra_plugins.hydra_joblib_launcher.config import JobLibLauncherConf
from hydra_plugins.hydra_submitit_launcher.config import LocalQueueConf, SlurmQueueConf
from omegaconf import DictConfig, OmegaConf

from spatext.tools.results import write_result
from spatext.tools.sweep_callback import SweepReport
from spatext.tools.sweep_command import trial_config, trial_folder
from spatext.tools.sweep_grid import GridSweeper
from spatext.tools.sweep_optuna import OptunaSweeper
from spatext.tools.sweep_plugins import register_plugins
from spatext.tools.sweep_process import ProcessLauncher
from spatext.tools.sweep_report import read_sweep
from spatext.tools.sweep_trials import TrialSweeper

EXPERIMENTS = {"prior": "prior_tiny", "latent": "demo_latent"}


def compose_sweep(*overrides: str) -> tuple[DictConfig, HydraContext]:
    with initialize_config_module("spatext.conf", version_base="1.3"):
        config = compose("train", list(overrides), return_hydra_config=True)
        loader = GlobalHydra.instance().config_loader()
    return config, HydraContext(config_loader=loader, callbacks=Callbacks())


def make_sweeper(*overrides: str) -> TrialSweeper:
    register_plugins()
    config, context = compose_sweep(*overrides)
    sweeper = Plugins.instance().instantiate_sweeper(
        hydra_context=context, task_function=print, config=config
    )
    assert isinstance(sweeper, TrialSweeper)
    return sweeper


def test_a_sweep_is_a_grid_of_processes_by_default() -> None:
    sweeper = make_sweeper("hydra.launcher.n_jobs=2")
    assert isinstance(sweeper, GridSweeper)
    launcher = sweeper.make_launcher()
    assert isinstance(launcher, ProcessLauncher)
    assert launcher.free == [None, None]
    assert (launcher.module, launcher.resume) == ("spatext.tools.train", False)
    target = sweeper.config.hydra.callbacks.sweep._target_
    assert target == f"{SweepReport.__module__}.{SweepReport.__name__}"


@pytest.mark.parametrize("example", EXPERIMENTS)
def test_the_examples_search_options_that_there_are(example: str) -> None:
    experiment = f"experiment={EXPERIMENTS[example]}"
    sweeper = make_sweeper("base=B", experiment, f"hparams_search={example}")
    assert isinstance(sweeper, OptunaSweeper)
    assert sweeper.config.hydra.mode.name == "MULTIRUN"
    assert sweeper.config.optimized_metric == "val/loss"
    assert sweeper.params is not None
    for name in sweeper.params:
        assert OmegaConf.select(sweeper.config, str(name)) is not None, name
    assert sweeper.study_name == sweeper.config.name


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("joblib", JobLibLauncherConf),
        ("submitit_local", LocalQueueConf),
        ("submitit_slurm", SlurmQueueConf),
    ],
)
def test_the_other_launchers_have_the_options_that_are_set(name: str, known: Any) -> None:
    register_plugins()
    options = ("trainer=ddp", "trainer.devices=8", "++trainer.num_nodes=2", "hydra.job.name=train")
    config, _ = compose_sweep(f"hydra/launcher={name}", *options, "hydra.sweep.dir=S")
    launcher = config.hydra.launcher
    fields = OmegaConf.structured(known)
    assert launcher._target_ == fields._target_
    assert set(launcher) <= set(fields)
    if name == "submitit_slurm":
        assert (launcher.tasks_per_node, launcher.nodes, launcher.gpus_per_node) == (8, 2, 8)
    if name == "submitit_local":
        assert (launcher.tasks_per_node, launcher.nodes) == (1, 1)
        assert launcher.submitit_folder == "S/.submitit/%j"


def test_trials_share_a_folder_whatever_they_are_named(tmp_path: Path) -> None:
    sweeper = make_sweeper(f"hydra.sweep.dir='{tmp_path}/${{name}}'", "hydra.job.num=3")
    assert sweeper.pin_folder() == tmp_path / "spatext"
    config = trial_config(sweeper.hydra_context.config_loader, sweeper.config, 3, ["name=a"])
    assert config.name == "a"
    assert trial_folder(config) == tmp_path / "spatext" / "3"


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    sweeper = make_sweeper("hydra/sweeper=optuna", "optimized_metric=val/loss")
    assert isinstance(sweeper, OptunaSweeper)
    sweeper.check_options()
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ValueError, match=r"hydra/sweeper=optuna: .*pip install 'spatext\[sweep\]'"):
        sweeper.check_options()
    sweeper = make_sweeper("hydra.launcher._target_=hydra_plugins.nowhere.Launcher")
    with pytest.raises(ValueError, match=r"hydra_plugins\.nowhere\.Launcher is not installed, exp"):
        sweeper.make_launcher()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["optimized_metric=null"], "optimized_metric=None: expected the name of a logged metric"),
        (["hydra.sweeper.direction=[minimize,maximize]"], "optimized_metric=val/loss: expected"),
        (["hydra.sweeper.direction=less"], r"found \['less'\], expected minimize or maximize"),
        (["hydra.sweeper.n_trials=0"], r"hydra\.sweeper\.n_trials: found 0, expected at least 1"),
    ],
)
def test_wrong_options_of_a_search(options: list[str], message: str) -> None:
    sweeper = make_sweeper("hydra/sweeper=optuna", "optimized_metric=val/loss", *options)
    assert isinstance(sweeper, OptunaSweeper)
    with pytest.raises(ValueError, match=message):
        sweeper.check_options()


def test_processes_have_no_batches() -> None:
    options = ("optimized_metric=val/loss", "hydra.sweeper.n_jobs=2")
    sweeper = make_sweeper("hydra/sweeper=optuna", *options)
    sweeper.launcher = sweeper.make_launcher()
    with pytest.raises(ValueError, match=r"sweeper\.n_jobs: found 2, .*hydra\.launcher\.n_jobs=2"):
        sweeper.search([])


@pytest.mark.parametrize(
    ("statuses", "code"),
    [
        (["ok", "ok"], None),
        (["ok", "failed"], 1),
        (["preempted", "failed"], 1),
        (["ok", "preempted"], 75),
        (["gave_up"], 1),
        ([], 1),
    ],
)
def test_the_exit_code_of_a_sweep(tmp_path: Path, statuses: list[str], code: int | None) -> None:
    config = OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}})
    hydra = {"overrides": {"task": ["seed=1,2"]}, "sweeper": {}}
    OmegaConf.save({"hydra": hydra}, tmp_path / "multirun.yaml")
    for i, status in enumerate(statuses):
        write_result(tmp_path / str(i), status, overrides=[f"seed={i}"])
    if code is None:
        SweepReport().on_multirun_end(config)
    else:
        with pytest.raises(SystemExit) as stop:
            SweepReport().on_multirun_end(config)
        assert stop.value.code == code
    assert len(read_sweep(tmp_path).trials) == len(statuses)
    assert (tmp_path / "summary.csv").is_file()


def test_a_sweep_that_cannot_be_read_has_not_ended_well(tmp_path: Path) -> None:
    write_result(tmp_path / "0", "ok")
    config = OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}})
    with pytest.raises(SystemExit) as stop:
        SweepReport().on_multirun_end(config)
    assert stop.value.code == 1


def test_a_trial_knows_its_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPATEXT_SWEEP", "another")
    config = OmegaConf.create({"hydra": {"sweep": {"dir": "outputs/x/sweep-1"}}})
    SweepReport().on_multirun_start(config)
    assert os.environ["SPATEXT_SWEEP"] == "sweep-1"
    assert compose_sweep()[0].sweep_name == "sweep-1"
    monkeypatch.delenv("SPATEXT_SWEEP")
    assert compose_sweep()[0].sweep_name is None


def test_a_plugin_of_the_same_name_does_not_interfere() -> None:
    """hydra-optuna-sweeper brings a hydra/sweeper=optuna with defaults of its own."""
    schema = {"_target_": "hydra_plugins.other.Sweeper", "defaults": [{"sampler": "tpe"}]}
    ConfigStore.instance().store(group="hydra/sweeper", name="optuna", node=schema)
    sweeper = make_sweeper("hydra/sweeper=optuna", "optimized_metric=val/loss")
    assert isinstance(sweeper, OptunaSweeper)
