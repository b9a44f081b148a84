"""Trials as processes: what they are given, how they end, and that nothing is left of them."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext

from spatext.tools.results import Result, read_result
from spatext.tools.sweep_children import clean_environment, last_error
from spatext.tools.sweep_command import TrialFailed
from spatext.tools.sweep_process import ProcessLauncher

pytestmark = pytest.mark.slow

Launch = Callable[..., Sequence[JobReturn]]


@pytest.fixture
def launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Launch:
    """Trials of tests/cheap_trial.py, one for each fate, in folders 4, 5, ... of `tmp_path`/s."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))

    def call(*fates: str, **options: Any) -> Sequence[JobReturn]:
        overrides = ["seed=3", f"hydra.sweep.dir={tmp_path / 's'}", "hydra/hydra_logging=disabled"]
        overrides += ["hydra.sweep.subdir='${hydra.job.num}'", "optimized_metric=${hydra:job.id}"]
        with initialize_config_module("spatext.conf", version_base="1.3"):
            config = compose("train", overrides, return_hydra_config=True)
            loader = GlobalHydra.instance().config_loader()
        launcher = ProcessLauncher("cheap_trial", **options)
        context = HydraContext(config_loader=loader, callbacks=Callbacks())
        launcher.setup(hydra_context=context, task_function=print, config=config)
        more = ["resume=true"] if options.get("resume") else []  # as a user may repeat it
        return launcher.launch([["seed=3", f"name={fate}", *more] for fate in fates], 4)

    return call


def seen(tmp_path: Path, number: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((tmp_path / "s" / str(number) / "seen.json").read_text())
    return found


def result(tmp_path: Path, number: int) -> Result:
    found = read_result(tmp_path / "s" / str(number))
    assert found is not None
    return found


def gone(pid: int) -> bool:
    """Ended; a zombie has."""
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


def test_one_failure_does_not_stop_the_others(
    launch: Launch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    returns = launch("kill", "exit3", "exit75", "well", n_jobs=2)
    statuses = [JobStatus.FAILED, JobStatus.FAILED, JobStatus.UNKNOWN, JobStatus.COMPLETED]
    assert [r.status for r in returns] == statuses
    assert [r.overrides for r in returns][3] == ["seed=3", "name=well"]
    assert returns[3].return_value == 0.5
    with pytest.raises(TrialFailed, match="killed by SIGKILL; RuntimeError: last words"):
        _ = returns[0].return_value
    found = [result(tmp_path, number) for number in (4, 5, 6, 7)]
    assert [r.status for r in found] == ["failed", "failed", "preempted", "ok"]
    assert [r.exit_code for r in found] == [-9, 3, 75, 0]
    assert [r.trial for r in found] == [4, 5, 6, 7]
    assert found[1].reason == "loading", "the last line, where none reads as an error"
    assert (found[3].objective, found[3].metrics) == (0.5, {"loss": 0.5})
    lines = capsys.readouterr().out.splitlines()
    (line,) = (line for line in lines if line.startswith("#7   ok"))
    assert line.split()[:5] == ["#7", "ok", "name=well", "objective", "0.5"]
    assert all("seed=3" not in line for line in lines), "what all trials share is not repeated"
    assert "loading" in (tmp_path / "s" / "7" / "output.log").read_text()


def test_a_trial_is_no_rank_and_has_its_devices(
    launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT", "SLURM_NTASKS", "SLURM_JOB_ID", "NAME"):
        monkeypatch.setenv(name, "7")
    launch("well", "well", "well", devices=["0,1", 2])
    for number in (4, 5, 6):
        env = seen(tmp_path, number)["env"]
        kept = {name for name, value in env.items() if value == "7"}
        assert kept == {"SLURM_JOB_ID", "NAME"}
        assert env["CUDA_VISIBLE_DEVICES"] in ("0,1", "2")
    used = {seen(tmp_path, number)["env"]["CUDA_VISIBLE_DEVICES"] for number in (4, 5)}
    assert used == {"0,1", "2"}
    arguments = seen(tmp_path, 6)["argv"]
    assert arguments[:4] == ["--config-path", "pkg://spatext.conf", "--config-name", "train"]
    assert {"seed=3", "name=well", "hydra.mode=RUN", "hydra.job.num=6"} < set(arguments)
    assert f"hydra.run.dir='{tmp_path / 's' / '6'}'" in arguments


def test_more_trials_than_devices_are_refused() -> None:
    with pytest.raises(ValueError, match=r"n_jobs: found 3, expected at most 2, the number of"):
        ProcessLauncher(n_jobs=3, devices=["0", "1"])
    assert clean_environment({"CUDA_VISIBLE_DEVICES": "3"}, None) == {"CUDA_VISIBLE_DEVICES": "3"}


def test_what_a_trial_leaves_behind_is_ended(launch: Launch, tmp_path: Path) -> None:
    (returned,) = launch("orphan")
    assert returned.status == JobStatus.FAILED
    assert gone(seen(tmp_path, 4)["orphan"])


def test_a_sweep_is_continued(
    launch: Launch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fates = ("well", "exit3", "exit75", "kill")
    launch(*fates)
    pids = [seen(tmp_path, number)["pid"] for number in (4, 5, 6, 7)]
    with pytest.raises(ValueError, match=r"s/4: holds a trial already; .*launcher\.resume=true"):
        launch(*fates)
    (tmp_path / "s" / "7" / "result.json").unlink()  # as if the sweep had been killed there
    (tmp_path / "s" / "7" / ".hydra").mkdir()
    (tmp_path / "s" / "7" / ".hydra" / "overrides.yaml").write_text("[seed=3, name=kill]")
    capsys.readouterr()
    returns = launch(*fates, resume=True)
    assert [returns[0].status, returns[0].return_value] == [JobStatus.COMPLETED, 0.5]
    again = [seen(tmp_path, number) for number in (4, 5, 6, 7)]
    assert [facts["pid"] == pid for facts, pid in zip(again, pids, strict=True)] == [1, 0, 0, 0]
    # The one that failed starts anew, the interrupted ones continue.
    assert [facts["argv"].count("resume=true") for facts in again] == [0, 1, 2, 2]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("#4")] == ["kept"]
    assert [line.split()[1] for line in lines if line.startswith("#6")] == ["resumed", "preempted"]
    with pytest.raises(ValueError, match="holds the trial seed=3 name=well, expected"):
        launch("other", resume=True)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_sweep_that_is_stopped_lets_its_trials_save(
    launch: Launch, tmp_path: Path, signum: signal.Signals
) -> None:
    def stop() -> None:
        ready = [tmp_path / "s" / str(number) / "ready" for number in (4, 5)]
        deadline = time.monotonic() + 60
        while not all(path.exists() for path in ready) and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(os.getpid(), signum)

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises((SystemExit, KeyboardInterrupt)) as stopped:
        launch("save", "save", "save", n_jobs=2, grace=60.0)
    thread.join()
    if signum != signal.SIGINT:
        assert isinstance(stopped.value, SystemExit)
        assert stopped.value.code == 75
    assert signal.getsignal(signal.SIGTERM) == before
    assert all((tmp_path / "s" / number / "saved").exists() for number in ("4", "5"))
    assert not (tmp_path / "s" / "6").exists()
    assert all(gone(seen(tmp_path, number)["pid"]) for number in (4, 5))


def test_a_trial_that_does_not_stop_is_killed(launch: Launch, tmp_path: Path) -> None:
    def stop() -> None:
        while not (tmp_path / "s" / "4" / "ready").exists():
            time.sleep(0.05)
        os.kill(seen(tmp_path, 4)["pid"], signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop, daemon=True)
    thread.start()
    with pytest.raises(SystemExit):
        launch("save", grace=1.0)
    assert gone(seen(tmp_path, 4)["pid"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("$ python -m x\n", ""),
        ("a\nb\r10%\r20%\n", "20%"),
        ("error: lr: found 1\nwarning: at exit\n", "error: lr: found 1"),
        ("ValueError: a\ntorch.cuda.OutOfMemoryError: b\nbye\n", "torch.cuda.OutOfMemoryError: b"),
    ],
)
def test_the_last_error_of_an_output(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "log").write_text(text)
    assert last_error(tmp_path / "log") == expected
