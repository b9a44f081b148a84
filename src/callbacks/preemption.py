"""Leave when asked to: save at the next step, and say that the run wants to be started again."""

import logging
import os
import signal
from collections.abc import Sequence
from enum import IntEnum
from types import FrameType
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint
from torch.utils.data._utils import signal_handling

from ..datamodules.loaders import TrainingLoader
from .agreement import Agreement
from .checkpoints import NotSaved
from .saving import save_now
from .signals import Handlers, early, numbers, requeue, silence_lightning
from .stops import Preempted

log = logging.getLogger(__name__)


class Request(IntEnum):
    """What a rank asks for. The largest of all ranks is done."""

    NOTHING = 0
    WORKER = 1  # a worker of its loader died
    STOP = 2
    REQUEUE = 3


class Preemption(Checkpoint):
    """At a signal to any rank all ranks save at the same step and exit with code 75.

    A handler only notes the signal. Ranks compare notes after every `every_n_steps`-th optimizer
    step (a reduction on the CPU, with no wait for the device) and after every batch of a
    validation, of which all must have as many. It is cut short: its metrics are not logged. Signals
    of `stop_on` end the run; those of `requeue_on` also have SLURM start the job again, once, after
    the save: ask for one ahead of the time limit with `#SBATCH --signal=USR1@120`. (scancel sends
    SIGTERM: not to be requeued.)

    A worker of the loader that dies is handled in the same way: its error is raised once the step
    under way is over and saved; a `TrainingLoader` gets over the first few. Where only this process
    trains, other errors that come between two steps, from data or a validation, are saved before
    too. A step that was begun never is.

    It is a Checkpoint to Lightning, so its hooks run after those of callbacks with state.
    """

    def __init__(
        self,
        stop_on: Sequence[str] = ("SIGTERM",),
        requeue_on: Sequence[str] = ("SIGUSR1",),
        every_n_steps: int = 1,
    ) -> None:
        if every_n_steps < 1:
            raise ValueError(
                f"callbacks.preemption.every_n_steps: found {every_n_steps}, expected 1 or more"
            )
        self.requests = {
            number: request
            for option, names, request in (
                ("stop_on", stop_on, Request.STOP),
                ("requeue_on", requeue_on, Request.REQUEUE),
            )
            for number in numbers(names, f"callbacks.preemption.{option}")
        }
        self.every_n_steps = every_n_steps
        self.agreement, self.handlers = Agreement(), Handlers()
        self.reset()

    def reset(self) -> None:
        self.pid = os.getpid()
        self.request = Request.NOTHING
        self.error: RuntimeError | None = None
        self.loader: Any = None
        self.step = -1  # the last optimizer step that is over
        self.between = False  # no step is under way

    # --- signals ---------------------------------------------------------------------------------

    def note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() == self.pid:  # a forked worker inherits the handler
            self.request = max(self.request, self.requests[number])

    def note_worker(self, number: int, frame: FrameType | None) -> None:
        """torch's own handler raises wherever the main thread is: within an optimizer step, say."""
        previous = self.handlers.previous[signal.SIGCHLD]
        if os.getpid() != self.pid or not callable(previous):
            return
        try:
            previous(number, frame)
        except RuntimeError as error:
            if not (isinstance(self.loader, TrainingLoader) and self.loader.recovers):
                self.error, self.request = error, max(self.request, Request.WORKER)

    def install(self) -> None:
        for number in self.requests:
            self.handlers.install(number, self.note)

    # --- hooks -----------------------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit":
            self.reset()
            self.agreement.setup(trainer)
            silence_lightning(trainer)
            self.install()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.install()  # over Lightning's, which come in between
        self.loader = trainer.train_dataloader
        signal_handling._set_SIGCHLD_handler()  # or the first workers to start put it over ours
        self.handlers.install(signal.SIGCHLD, self.note_worker)
        self.step = trainer.global_step
        came = [self.requests[number] for number in early if number in self.requests]
        self.request = max([self.request, *came])
        if request := Request(self.agreement.largest(self.request)):
            self.leave(trainer, request, "before training")

    def on_train_batch_start(self, *_: Any) -> None:
        self.between = False

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            return  # gradients are being accumulated
        self.step, self.between = trainer.global_step, True
        if self.step % self.every_n_steps == 0:
            self.check(trainer)

    def on_validation_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if self.between and not trainer.sanity_checking:
            self.check(trainer)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        try:
            if (
                self.between
                and trainer.world_size == 1
                and isinstance(exception, Exception)
                and not isinstance(exception, NotSaved)
            ):
                outcome = "saved" if save_now(trainer) else "not saved"
                log.warning("an error after step %d, %s", trainer.global_step, outcome)
        except NotSaved as error:  # in the log; the first error is the one to be told
            log.warning("an error after step %d, not saved: %s", trainer.global_step, error)
        finally:
            trainer._signal_connector.teardown()  # later it would put our handlers back
            self.handlers.restore()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.handlers.restore()

    # --- leaving ---------------------------------------------------------------------------------

    def check(self, trainer: pl.Trainer) -> None:
        """All ranks leave, or none."""
        if request := Request(self.agreement.largest(self.request)):
            self.between = False
            self.leave(trainer, request, "saved" if save_now(trainer) else "not saved")

    def leave(self, trainer: pl.Trainer, request: Request, outcome: str) -> None:
        where = f"step {trainer.global_step}, {outcome}"
        if request == Request.WORKER:
            raise self.error or RuntimeError(f"a worker of another rank's loader died; {where}")
        if request == Request.REQUEUE:
            requeue()
            self.agreement.largest(request)  # a launcher ends the first rank when others have left
        raise Preempted(f"asked to stop at {where}; the same command with resume=true goes on")
