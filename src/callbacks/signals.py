"""What to do at a signal, while a fit runs and before."""

import logging
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_only

from .stops import Preempted, Stop

log = logging.getLogger(__name__)

Handler = Callable[[int, FrameType | None], Any]


class Handlers:
    """Signal handlers of this process that are put back. Other than in the main thread: none."""

    def __init__(self) -> None:
        self.previous: dict[int, Any] = {}

    def install(self, number: int, handler: Handler) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        previous = signal.signal(number, handler)
        self.previous.setdefault(number, previous)

    def restore(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number, handler in self.previous.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
            self.previous.clear()


def numbers(names: Sequence[str], option: str) -> set[int]:
    """ValueError for a name that is no signal."""
    try:
        return {int(signal.Signals[name]) for name in names}
    except KeyError as error:
        raise ValueError(f"{option}: found {error}, expected names such as SIGTERM") from None


def silence_lightning(trainer: pl.Trainer) -> None:
    """Lightning's own SIGTERM handler calls a collective within the handler, which hangs where the
    signal reaches one rank only (lightning issues 20806 and 21406)."""
    vars(trainer._signal_connector)["_sigterm_notifier_fn"] = ignore


def ignore(number: int, frame: FrameType | None) -> None:
    """A handler that does nothing."""


early: set[int] = set()  # those that `stopped_at_once` noted, for the fit to act upon


@contextmanager
def stopped_at_once(names: Sequence[str] = ("SIGTERM", "SIGUSR1")) -> Iterator[None]:
    """Around all work of a process: before its fit a signal ends it with exit code 75, at once.

    A rank must not leave alone, because the others would wait for it: there the signal is noted,
    and all leave where the fit begins. The fit has its own handlers (Preemption). What a `Stop` has
    to say, of these or of the fit, is logged on its way.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        if os.getpid() != pid:
            return
        if is_one_of_several():
            early.add(number)
        else:
            raise Preempted(f"{signal.Signals(number).name} outside of training; nothing is lost")

    pid, handlers = os.getpid(), Handlers()
    for number in numbers(names, "signals"):
        handlers.install(number, stop)
    try:
        yield
    except Stop as error:
        if getattr(rank_zero_only, "rank", 0) == 0:
            log.warning("%s (exit code %d)", error, error.exit_code)
        raise
    finally:
        handlers.restore()
        early.clear()


def is_one_of_several() -> bool:
    """As torchrun, srun and Lightning say it to their processes."""
    return any(int(os.environ.get(name) or 1) > 1 for name in ("WORLD_SIZE", "SLURM_NTASKS"))


@rank_zero_only
def requeue() -> None:
    """Ask SLURM to run this job again, where it is a SLURM job. Nothing that fails here raises."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("SLURM job %s is not queued again: %s", job, error)
    else:
        log.warning("SLURM job %s is queued again", job)
