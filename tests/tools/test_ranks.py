import pytest
from omegaconf import OmegaConf
from pytorch_lightning import Trainer
from pytorch_lightning.plugins.environments import LightningEnvironment, SLURMEnvironment

from runs import compose_config
from spatext.tools.ranks import (
    Ranks,
    SubmititEnvironment,
    check_world,
    cluster_plugins,
    outside_ranks,
    restarted,
    run_stamp,
)
from spatext.tools.strategies import Ddp

SRUN = {
    "SLURM_JOB_ID": "812",
    "SLURM_JOB_NAME": "train",
    "SLURM_STEP_ID": "0",
    "SLURM_NTASKS": "4",
    "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_NNODES": "2",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_NODELIST": "gpu[07-08]",
}
SUBMITIT = {
    "SUBMITIT_LOCAL_JOB_ID": "40123",
    "SUBMITIT_LOCAL_NTASKS": "2",
    "SUBMITIT_LOCAL_GLOBALID": "1",
    "SUBMITIT_LOCAL_LOCALID": "1",
}


@pytest.fixture
def srun(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name, value in SRUN.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_alone() -> None:
    assert outside_ranks() is None
    assert cluster_plugins() == []
    assert not restarted()
    assert OmegaConf.create({"a": "log${rank_suffix:}", "b": "${rank_zero_only:.hydra}"}) == {
        "a": "log",
        "b": ".hydra",
    }


def test_stamps_of_runs_differ_and_that_of_a_configuration_stays() -> None:
    assert run_stamp() != run_stamp()
    config = OmegaConf.create({"run": "${run_stamp:}", "sweep": "sweep-${run_stamp:}"})
    assert config.sweep == f"sweep-{config.run}"


def test_a_task_of_srun(srun: pytest.MonkeyPatch) -> None:
    assert outside_ranks() == Ranks("srun", 3, 4)
    assert run_stamp() == "slurm-812-0"
    assert OmegaConf.create({"a": "log${rank_suffix:}", "b": "${rank_zero_only:.hydra}"}) == {
        "a": "log-rank-3",
        "b": None,
    }
    (environment,) = cluster_plugins()
    assert isinstance(environment, SLURMEnvironment)
    assert not environment.auto_requeue


def test_the_trainer_takes_its_layout_from_slurm(srun: pytest.MonkeyPatch) -> None:
    config = compose_config("train", ["trainer=slurm", "run_dir=RUN"]).trainer
    assert (config.devices, config.num_nodes) == (2, 2)
    trainer = Trainer(
        strategy=Ddp(),
        accelerator="cpu",
        devices=config.devices,
        num_nodes=config.num_nodes,
        plugins=cluster_plugins(),
        logger=False,
    )
    assert (trainer.global_rank, trainer.local_rank, trainer.world_size) == (3, 1, 4)
    assert trainer.strategy.cluster_environment.main_address == "gpu07"
    check_world(trainer)


def test_other_devices_than_tasks_are_refused(srun: pytest.MonkeyPatch) -> None:
    trainer = Trainer(accelerator="cpu", devices=1, plugins=cluster_plugins(), logger=False)
    expected = r"srun started 4 processes, but trainer.devices=1 x trainer.num_nodes=1 are 1: "
    with pytest.raises(ValueError, match=expected):
        check_world(trainer)


def test_tasks_without_a_number_per_node_are_refused(srun: pytest.MonkeyPatch) -> None:
    srun.delenv("SLURM_NTASKS_PER_NODE")
    with pytest.raises(ValueError, match="srun started 4 tasks without --ntasks-per-node"):
        cluster_plugins()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SLURM_STEP_ID", None),  # a batch script
        ("SLURM_STEP_ID", str(0xFFFFFFFB)),  # the same
        ("SLURM_PTY_PORT", "4711"),  # srun --pty bash
    ],
)
def test_one_process_within_an_allocation_starts_its_own_ranks(
    srun: pytest.MonkeyPatch, name: str, value: str | None
) -> None:
    srun.delenv(name) if value is None else srun.setenv(name, value)
    assert outside_ranks() is None
    assert [type(plugin) for plugin in cluster_plugins()] == [LightningEnvironment]
    assert not run_stamp().startswith("slurm")


def test_one_task_starts_its_own_ranks_in_the_folder_of_its_job(srun: pytest.MonkeyPatch) -> None:
    srun.setenv("SLURM_NTASKS", "1")
    srun.setenv("SLURM_PROCID", "0")
    assert outside_ranks() is None
    assert [type(plugin) for plugin in cluster_plugins()] == [LightningEnvironment]
    assert run_stamp() == "slurm-812-0"


@pytest.mark.parametrize(("count", "expected"), [("0", False), ("2", True)])
def test_a_job_that_is_queued_again(srun: pytest.MonkeyPatch, count: str, expected: bool) -> None:
    srun.setenv("SLURM_RESTART_COUNT", count)
    assert restarted() is expected


def test_a_task_of_submitit(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SUBMITIT.items():
        monkeypatch.setenv(name, value)
    assert outside_ranks() == Ranks("submitit", 1, 2)
    (environment,) = cluster_plugins()
    assert isinstance(environment, SubmititEnvironment)
    assert environment.creates_processes_externally
    assert environment.main_port == 20000 + 40123 % 12000
    found = environment.global_rank(), environment.local_rank(), environment.world_size()
    assert found == (1, 1, 2)
