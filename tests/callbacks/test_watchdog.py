import ctypes
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from spatext.callbacks.watchdog import Watchdog
from tiny_runs import TinyData, TinyModule, make_trainer

TIMEOUT = 0.5


def hang_here() -> None:
    time.sleep(60)


def hang_with_the_lock() -> None:
    ctypes.PyDLL(None).sleep(3)  # unlike CDLL, it keeps Python's lock
    os._exit(5)


def suspended() -> None:
    """Stopped for four timeouts from outside, then well."""
    pid = os.getpid()
    child = os.fork()
    if child == 0:
        os.kill(pid, signal.SIGSTOP)
        time.sleep(4 * TIMEOUT)
        os.kill(pid, signal.SIGCONT)
        os._exit(0)
    os.waitpid(child, 0)


def run_forked(folder: Path, body: Callable[[], None]) -> int:
    """The exit code of a process that has taken a step, and then calls `body`."""
    pid = os.fork()
    if pid == 0:
        logging.basicConfig(stream=sys.__stderr__, force=True)
        watchdog = Watchdog(str(folder), timeout=TIMEOUT, long_timeout=TIMEOUT)
        watchdog.beat("step 3", TIMEOUT)
        watchdog.start(rank=1)
        body()
        watchdog.stop()
        os._exit(0)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    pytest.fail("still running after 20 s")


def test_a_hang_is_located_and_ended(tmp_path: Path) -> None:
    assert run_forked(tmp_path / "logs", hang_here) == 77
    stacks = (tmp_path / "logs" / "watchdog-rank-1.txt").read_text()
    assert "in hang_here" in stacks
    assert "in abort" in stacks  # the watchdog's own: these are all threads


def test_a_hang_that_keeps_the_lock_is_located(tmp_path: Path) -> None:
    assert run_forked(tmp_path, hang_with_the_lock) == 5
    stacks = (tmp_path / "watchdog-rank-1.txt").read_text()
    assert "in hang_with_the_lock" in stacks


def test_time_of_being_suspended_does_not_count(tmp_path: Path) -> None:
    assert run_forked(tmp_path, suspended) == 0


def test_a_process_that_ends_leaves_no_file(tmp_path: Path) -> None:
    assert run_forked(tmp_path, lambda: None) == 0
    assert [*tmp_path.iterdir()] == []


def test_a_fit_beats_and_ends_it(tmp_path: Path) -> None:
    beats: list[tuple[str, float]] = []

    class Watched(Watchdog):
        def beat(self, last: str, allowed: float) -> None:
            beats.append((last, allowed))
            super().beat(last, allowed)

    watchdog = Watched(str(tmp_path), timeout=100.0, long_timeout=200.0)
    trainer = make_trainer(tmp_path, max_steps=5, callbacks=[watchdog])
    trainer.fit(TinyModule(), TinyData(num_val=2))
    assert beats == [
        ("the start of the fit", 200),
        *((f"step {i}", 100) for i in (1, 2, 3, 4)),
        ("the start of validation", 200),
        ("a batch of validation", 200),
        ("the end of validation", 200),
        ("the end of an epoch", 200),
        ("step 5", 100),
        ("the end of an epoch", 200),
    ]
    assert watchdog.thread is None


@pytest.mark.parametrize(("timeout", "long_timeout"), [(0.0, 1.0), (2.0, 1.0)])
def test_wrong_timeouts_are_named(timeout: float, long_timeout: float) -> None:
    with pytest.raises(ValueError, match=f"^callbacks.watchdog: found timeout={timeout} and long"):
        Watchdog("logs", timeout, long_timeout)
