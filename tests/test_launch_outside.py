"""Ranks that torchrun or submitit start: one folder, and a restart goes on in it."""

import re
import sys
from pathlib import Path

import pytest

from launch_runs import Run, same_job
from runs import compose_config
from spatext.tools.train import train


@pytest.mark.slow
def test_torchrun_and_its_restart(launch_folder: Path) -> None:
    """Rank 1 fails at step 3 of the first attempt; the checkpoint of step 2 is there."""
    cwd = launch_folder / "torchrun"
    run = Run(
        cwd,
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"),
        *("--max-restarts=1", "-m", "spatext.tools.train"),
        *("--config-dir", str(launch_folder / "conf"), "experiment=weights"),
        *("callbacks.probe.fail_rank=1", "+callbacks.probe.at=3"),
    )
    code, output = run.finish()
    assert code == 0, output
    assert run.processes() == []
    (run_dir,) = (cwd / "outputs" / "spatext").iterdir()
    again = same_job(run_dir)
    assert [rank["step"] for rank in again] == [2, 2], "resumed"
    assert (run_dir / "probe-0.json").is_file(), "the first attempt ran in this folder"
    assert (run_dir / "train.log").read_text().count("run folder") == 2
    assert (run_dir / "train-rank-1.log").read_text().count("run folder") == 2
    assert (run_dir / "checkpoints" / "step-4.ckpt").exists()


@pytest.mark.slow
def test_ranks_with_other_options_are_refused(launch_folder: Path) -> None:
    """Here of the time; a sweeper that draws would do the same to hyper-parameters."""
    run_dir = launch_folder / "options"
    run = Run(
        launch_folder,
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"),
        *("-m", "spatext.tools.train", "--config-dir", str(launch_folder / "conf")),
        *("experiment=weights", f"run_dir={run_dir}", "+note='${now:%f}'"),
    )
    code, output = run.finish()
    assert code == 1
    assert re.search(r"error: note='\d+' on rank 1, '\d+' on rank 0: expected the same", output)
    assert "error: another rank has composed another configuration" in output
    assert not list(run_dir.glob("probe-*"))


def test_other_devices_than_processes_are_refused(
    launch_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of them would train alone."""
    run_dir = launch_folder / "devices"
    config = compose_config(
        "train",
        [
            f"hydra.searchpath=[file://{launch_folder / 'conf'}]",
            *("experiment=weights", "trainer=cpu", f"run_dir={run_dir}"),
        ],
    )
    for name, value in {
        "TORCHELASTIC_RUN_ID": "none",
        "TORCHELASTIC_RESTART_COUNT": "0",
        **{"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"},
    }.items():
        monkeypatch.setenv(name, value)
    message = "torchrun started 2 processes, but trainer.devices=1 x trainer.num_nodes=1 are 1: "
    with pytest.raises(ValueError, match=message):
        train(config)
    assert not list(run_dir.glob("*"))


@pytest.mark.slow
def test_submitits_local_executor(launch_folder: Path) -> None:
    cwd = launch_folder / "submitit"
    sweep = Run(
        cwd,
        *(sys.executable, "-m", "spatext.tools.train", "-m"),
        *("--config-dir", str(launch_folder / "conf"), "experiment=weights", "module.lr=0.1,0.2"),
        *("hydra/launcher=submitit_local", "hydra.launcher.tasks_per_node=2"),
    )
    code, output = sweep.finish()
    assert code == 0, output
    assert sweep.left(30) == [], "tasks may outlive their results by a moment"
    (sweep_dir,) = (cwd / "outputs" / "spatext").iterdir()
    for number, lr in enumerate((0.1, 0.2)):
        ranks = same_job(sweep_dir / str(number))
        assert ranks[1]["config"]["module"]["lr"] == lr
        assert "run folder" in (sweep_dir / str(number) / "train-rank-1.log").read_text()
