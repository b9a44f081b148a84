"""Signals to, and deaths of, the processes of real runs."""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest

from comparing import differences
from fault_runs import TORCHRUN, Job, command, seen, training_state

pytestmark = pytest.mark.slow
DDP = ("trainer=ddp_sim",)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted twin."""
    run_dir = tmp_path_factory.mktemp("whole")
    with Job(run_dir, command(run_dir, *DDP, "callbacks.slow.seconds=0.0")) as job:
        assert job.wait() == 0, job.log.read_text()
    return run_dir


def test_stopped_and_killed_it_ends_as_if_never(tmp_path: Path, whole: Path) -> None:
    """The same command each time; each end is clean and its checkpoint that of the moment."""
    line = command(tmp_path, *DDP, "+datamodule.num_workers=1")
    with Job(tmp_path, line) as job:  # one rank alone, at a step that nobody chose; then the other
        step = random.randrange(1, 4)
        os.kill(job.reach("step", step, rank=1), signal.SIGTERM)
        job.reach("save", step)
        os.kill(job.process.pid, signal.SIGTERM)
        assert_preempted(job, "step")
    slow = [*line, "callbacks.slow.seconds=0.4"]
    with Job(tmp_path, slow, **fake_slurm(tmp_path)) as job:  # all, and their workers
        job.reach("validation")
        os.killpg(job.process.pid, signal.SIGTERM)
        os.killpg(job.process.pid, signal.SIGUSR1)
        assert_preempted(job, "validation")
    assert training_state(tmp_path)["global_step"] == 8
    assert (tmp_path / "calls").read_text() == "requeue 17 step-8.ckpt\n"
    assert_started_again_until_done(tmp_path)
    assert_as_if_never(tmp_path, whole)


def assert_started_again_until_done(run_dir: Path) -> None:
    """By torchrun, where each rank is killed once; each time from the newest checkpoint."""
    launcher = (*TORCHRUN, "--max-restarts=2")
    with Job(run_dir, command(run_dir, *DDP, launcher=launcher)) as job:
        num_before = len(job.progress(0)) - len(job.news())
        os.kill(job.reach("step", 11, rank=1), signal.SIGKILL)
        job.forget()
        os.kill(job.reach("step", 16, rank=0), signal.SIGKILL)
        assert job.wait(200) == 0, job.log.read_text()
        assert job.is_over()
    places = [(place, step) for _, place, step in job.progress(0)[num_before:]]
    starts = [places[i + 1] for i, (place, _) in enumerate(places) if place == "setup"]
    assert starts[0::2] == [("step", 8), ("step", 15)]
    assert starts[1] in (("step", 10), ("step", 15))


def assert_as_if_never(run_dir: Path, whole: Path) -> None:
    """Weights, average, moments and data, bit by bit; the samples of each step and rank."""
    found = training_state(run_dir)
    assert found["global_step"] == 20
    assert differences(found, training_state(whole)) == []
    for rank in (0, 1):
        assert seen(run_dir, rank) == seen(whole, rank)


def fake_slurm(run_dir: Path) -> dict[str, str]:
    """The environment of a job; scontrol writes what it is asked, and the last checkpoint then."""
    scontrol = run_dir / "bin" / "scontrol"
    scontrol.parent.mkdir()
    last = run_dir / "checkpoints" / "last.ckpt"
    scontrol.write_text(f'#!/bin/sh\necho "$@" $(readlink {last}) >> {run_dir}/calls\n')
    scontrol.chmod(0o755)
    return {"SLURM_JOB_ID": "17", "PATH": f"{scontrol.parent}:{os.environ['PATH']}"}


def assert_preempted(job: Job, place: str) -> None:
    """With code 75, within two steps, a checkpoint, nothing left over."""
    at = job.progress(0)[-1][2]
    assert job.wait(60) == 75, job.log.read_text()
    assert job.is_over()
    step = training_state(job.run_dir)["global_step"]
    assert step - at <= (2 if place == "step" else 0)
    result = json.loads((job.run_dir / "result.json").read_text())
    reason = f"asked to stop at step {step}, saved; the same command with resume=true goes on"
    assert (result["status"], result["exit_code"]) == ("preempted", 75)
    assert result["reason"] == reason


def test_at_start_up_nothing_is_lost(tmp_path: Path) -> None:
    line = command(tmp_path, *DDP, "+datamodule.setup_seconds=60.0")
    with Job(tmp_path, line) as job:
        deadline = time.monotonic() + 120
        while not (tmp_path / "setting-up").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(job.process.pid, signal.SIGTERM)
        start = time.monotonic()
        assert job.wait() == 75, job.log.read_text()
        assert time.monotonic() - start < 30
        assert job.is_over()
    assert not (tmp_path / "checkpoints").exists()


def test_a_rank_that_stands_still_ends_the_run(tmp_path: Path) -> None:
    timeouts = ("callbacks.watchdog.timeout=5.0", "callbacks.watchdog.long_timeout=60.0")
    with Job(tmp_path, command(tmp_path, *DDP, *timeouts)) as job:
        os.kill(job.reach("step", 2, rank=1), signal.SIGSTOP)
        start = time.monotonic()
        assert job.wait() == 77, job.log.read_text()
        assert time.monotonic() - start < 60
        assert job.is_over()  # the one that stood still too
    stacks = (tmp_path / "logs" / "watchdog-rank-0.txt").read_text()
    assert "fault_runs.py" in stacks or "training_epoch_loop" in stacks
    assert "nothing has happened for" in job.log.read_text()


def test_a_worker_that_is_killed_is_replaced(tmp_path: Path, whole: Path) -> None:
    """Its rank waits for the batch of the third step, and the other for its gradients."""
    data = ("+datamodule.num_workers=1", "+datamodule.die_at=10")
    with Job(tmp_path, command(tmp_path, *DDP, *data, "callbacks.slow.seconds=0.0")) as job:
        assert job.wait() == 0, job.log.read_text()
        assert job.is_over()
    assert "the loader starts its workers again" in (tmp_path / "train-rank-1.log").read_text()
    assert_as_if_never(tmp_path, whole)


def test_a_loader_that_hangs_ends_the_run(tmp_path: Path) -> None:
    line = command(
        tmp_path,
        *("trainer=cpu", "trainer.precision=32-true", "callbacks.slow.seconds=0.0"),
        *("+datamodule.num_workers=1", "+datamodule.hang_at=12"),
        *("callbacks.watchdog.timeout=3.0", "callbacks.watchdog.long_timeout=60.0"),
    )
    with Job(tmp_path, line) as job:
        assert job.wait() == 77, job.log.read_text()
        assert job.is_over()  # the worker too
    assert training_steps(tmp_path) == [0, 1, 2]
    stacks = (tmp_path / "logs" / "watchdog-rank-0.txt").read_text()
    assert "dataloader.py" in stacks


def training_steps(run_dir: Path) -> list[int]:
    lines = (run_dir / "progress-0").read_text().splitlines()
    return [int(line.split()[2]) for line in lines if line.split()[1] == "step"]


def test_endless_non_finite_numbers_end_the_run(tmp_path: Path) -> None:
    line = command(
        tmp_path,
        *("trainer=cpu", "trainer.precision=32-true", "module._target_=fault_runs.NoNumbers"),
        *("callbacks.checkpoint.every_n_train_steps=2", "callbacks.slow.seconds=0.0"),
    )
    with Job(tmp_path, line) as job:
        assert job.wait() == 76, job.log.read_text()
    log = job.log.read_text()
    assert "Traceback" not in log
    assert len([row for row in log.splitlines() if "gave up" in row]) == 1
    assert json.loads((tmp_path / "result.json").read_text())["status"] == "gave_up"
