"""A run that hangs says where, and ends."""

import faulthandler
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any, TextIO

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.strategies.launchers.launcher import _Launcher

from .stops import EXIT_HUNG

log = logging.getLogger(__name__)


class Watchdog(Callback):
    """Ends this process with exit code 77 once no step has ended for `timeout` seconds.

    The stacks of all threads are written to `folder`/watchdog-rank-R.txt first. So a run whose
    other rank is gone or stopped, or whose loader is stuck, is started again by torchrun instead
    of holding its devices. `long_timeout` holds where no step is expected soon: before the first
    step (compilation), around a validation and the pictures in it, while saving and at the end of
    an epoch. Time in which this process itself is suspended does not count. Where a call hangs that
    keeps Python's lock, this thread cannot run: the stacks are written, but not the exit taken
    (that is left to the watchdogs of the other ranks).
    """

    def __init__(self, folder: str, timeout: float = 600.0, long_timeout: float = 3600.0) -> None:
        if not 0 < timeout <= long_timeout:
            raise ValueError(
                f"callbacks.watchdog: found timeout={timeout} and long_timeout={long_timeout}, "
                "expected 0 < timeout <= long_timeout"
            )
        self.folder = Path(folder)
        self.timeout, self.long_timeout = timeout, long_timeout
        self.poll = min(5.0, timeout / 10)
        self.idle = 0.0  # of the watching thread alone
        self.latest = ("", 0.0)
        self.stopped = threading.Event()
        self.thread: threading.Thread | None = None
        self.file: TextIO | None = None
        self.launcher: _Launcher | None = None

    def beat(self, last: str, allowed: float) -> None:
        """`last` has just happened; the next beat is due within `allowed` seconds."""
        self.latest = (last, allowed)  # in one assignment, which the thread sees whole or not yet

    def start(self, rank: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.file = (self.folder / f"watchdog-rank-{rank}.txt").open("a")
        self.stopped.clear()
        self.idle = 0.0
        self.arm()
        self.thread = threading.Thread(target=self.watch, name="watchdog", daemon=True)
        self.thread.start()

    def watch(self) -> None:
        assert self.file is not None
        seen = self.latest
        while not self.stopped.wait(self.poll):
            # Ticks are counted and not the clock, which goes on while the process is suspended.
            latest = self.latest
            self.idle, seen = self.idle + self.poll if latest is seen else 0.0, latest
            if self.idle >= seen[1]:
                self.abort()
            self.arm()

    def arm(self) -> None:
        """faulthandler's own thread needs no lock, but knows nothing of suspension: no exit."""
        assert self.file is not None
        late = self.latest[1] - self.idle + 10 * self.poll
        faulthandler.dump_traceback_later(late, file=self.file)

    def abort(self) -> None:
        assert self.file is not None
        faulthandler.dump_traceback(self.file, all_threads=True)
        self.file.flush()
        log.error(
            "nothing has happened for %.0f s after %s; the stacks of all threads are in %s; "
            "exiting with code %d",
            self.idle,
            self.latest[0],
            self.file.name,
            EXIT_HUNG,
        )
        sys.stderr.flush()
        if self.launcher is not None:  # a rank that is stopped does not end by itself
            self.launcher.kill(signal.SIGKILL)
        os._exit(EXIT_HUNG)

    def stop(self) -> None:
        if self.thread is None or self.file is None:
            return
        self.stopped.set()
        self.thread.join()
        faulthandler.cancel_dump_traceback_later()
        self.file.close()
        path = Path(self.file.name)
        if path.stat().st_size == 0:
            path.unlink()
        self.thread = self.file = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.launcher = trainer.strategy.launcher
        self.beat("the start of the fit", self.long_timeout)
        self.start(trainer.global_rank)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.beat(f"step {trainer.global_step}", self.timeout)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.beat("the end of an epoch", self.long_timeout)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.beat("the start of validation", self.long_timeout)

    def on_validation_batch_end(self, *_: Any) -> None:
        self.beat("a batch of validation", self.long_timeout)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.beat("the end of validation", self.long_timeout)

    def on_save_checkpoint(self, *_: Any) -> None:
        self.beat("the start of saving", self.long_timeout)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.stop()  # what follows, such as an export, takes the time it takes

    def on_exception(self, *_: Any) -> None:
        self.stop()
