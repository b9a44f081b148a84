"""Ranks that the command starts itself: one job each, the same for all, and none is left."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from pytorch_lightning.plugins.precision.fsdp import FSDPPrecision

from launch_runs import Run, probes, same_job
from spatext.tools.strategies import Fsdp

TRAIN = (sys.executable, "-m", "spatext.tools.train")
SCRIPT = (sys.executable, str(Path(sys.executable).with_name("spatext-train")))
AWKWARD = "run 'a', {b}=c"


def test_noise_schedules_stay_in_float32_under_fsdp() -> None:
    strategy = Fsdp()
    strategy.precision_plugin = FSDPPrecision("bf16-mixed")
    precision = strategy.mixed_precision_config
    assert (precision.param_dtype, precision.buffer_dtype) == (torch.bfloat16, None)


@pytest.mark.slow
def test_a_single_run(launch_folder: Path) -> None:
    """By the console script, with flags after overrides, another working directory and values that
    Hydra's grammar has to be told about."""
    cwd = launch_folder / "single"
    run = Run(
        cwd,
        *SCRIPT,
        "experiment=weights",
        "+note='x=1, \\'y\\' ${seed}'",
        "+tags=[a b,'c']",
        'hydra.run.dir="' + AWKWARD + '"',
        *("hydra.job.chdir=true", "num_threads=3"),
        *("--config-dir", str(launch_folder / "conf"), "--config-name", "train"),
    )
    code, output = run.finish()
    assert code == 0, output
    assert run.processes() == []
    assert [path.name for path in cwd.iterdir()] == [AWKWARD]
    run_dir = cwd / AWKWARD
    ranks = same_job(run_dir)
    assert ranks[1]["config"]["note"] == "x=1, 'y' 0"
    assert ranks[1]["config"]["tags"] == ["a b", "c"]
    assert ranks[1]["parent"] == ranks[0]["pid"]
    assert [rank["cwd"] for rank in ranks] == [str(run_dir)] * 2
    assert [rank["num_threads"] for rank in ranks] == [3, 3]
    log = (run_dir / "train-rank-1.log").read_text()
    assert log.count("[INFO] - run folder") == 1
    assert "GLOBAL_RANK: 1, MEMBER: 2/2" in log, "what is printed goes there too"
    assert "GLOBAL_RANK: 1" not in output


@pytest.mark.slow
def test_two_jobs_in_one_process_of_which_one_fails(launch_folder: Path) -> None:
    """Hydra's own sweeper and launcher."""
    cwd = launch_folder / "sweep"
    sweep = Run(
        cwd,
        *(*TRAIN, "-m", "--config-dir", str(launch_folder / "conf")),
        *("hydra/launcher=basic", "hydra/sweeper=basic", "experiment=weights"),
        "callbacks.probe.fail_rank=null,1",
        *("+note='x=1, y'", "+number=${hydra:job.num}"),
        "hydra.sweep.subdir=${hydra.job.num}-${hydra.job.override_dirname}",
    )
    code, output = sweep.finish()
    assert code == 1, output
    assert sweep.processes() == []
    (sweep_dir,) = (cwd / "outputs" / "spatext").iterdir()
    jobs = sorted(path for path in sweep_dir.iterdir() if path.is_dir())
    assert len(jobs) == 2
    found = [same_job(job) for job in jobs]
    assert [job[1]["config"]["callbacks"]["probe"]["fail_rank"] for job in found] == [None, 1]
    assert [job[1]["config"]["number"] for job in found] == [0, 1]
    assert found[0][0]["pid"] == found[1][0]["pid"] == found[1][1]["parent"]
    assert found[0][1]["pid"] != found[1][1]["pid"], "each job starts its own"

    log = jobs[1] / "train-rank-1.log"
    message = f"rank 1 ended with exit code 1: RuntimeError: out of luck; see {log}"
    assert message in output
    assert "Traceback" in log.read_text()
    results = [json.loads((job / "result.json").read_text()) for job in jobs]
    assert [result["status"] for result in results] == ["ok", "failed"]
    assert results[1]["exit_code"] == 1
    assert message in results[1]["reason"]


@pytest.mark.slow
def test_ranks_end_with_a_parent_that_is_killed(launch_folder: Path) -> None:
    run_dir = launch_folder / "killed"
    run = Run(
        launch_folder,
        *(*TRAIN, "--config-dir", str(launch_folder / "conf"), "experiment=weights"),
        *(f"run_dir={run_dir}", "callbacks.probe.hang_rank=1", "+callbacks.probe.at=0"),
    )
    try:
        deadline = time.monotonic() + 240
        while len(probes(run_dir)) < 2 and run.process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert len(run.processes()) == 2
        os.kill(run.process.pid, signal.SIGKILL)
        run.process.communicate(timeout=30)
        assert run.left(30) == []
    finally:
        run.kill()
