"""When checkpoints are written, and that all processes agree on them."""

import logging
import math
import uuid
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from torch import distributed

from .checkpoint_folder import CheckpointFolder
from .checkpoint_retention import Retention
from .loop_counters import settle

log = logging.getLogger(__name__)


class NotSaved(ValueError):
    """The disk refused too many checkpoints in a row, or the one at the end of a run."""


class Checkpoint(pl.callbacks.Checkpoint):
    """Saves every `every_n_train_steps` optimizer steps, at the last step of a run whatever its
    number, and when training is asked to stop; never while gradients are being accumulated.

    `filename` may hold {step} and {epoch}. last.ckpt is a link to the newest. Kept are the newest
    `keep_last`, the `save_top_k` best by the validation metric `monitor`, which are saved when it
    is measured, and those whose step is a multiple of `keep_every`. A disk that refuses is logged
    and tried again at the next interval; `max_failures` in a row end the run with NotSaved.
    Weights that are not finite are never written. With `async_save` the state is copied to the CPU
    and written by a thread; a failure then shows at the next save.

    All processes call it, the first one writes. Loggers are not told: they would upload a file.
    """

    def __init__(
        self,
        dirpath: str,
        filename: str = "step-{step}",
        *,
        every_n_train_steps: int = 1000,
        save_last: bool = True,
        keep_last: int = 2,
        keep_every: int | None = None,
        monitor: str | None = None,
        mode: str = "min",
        save_top_k: int = 1,
        async_save: bool = False,
        max_failures: int = 3,
    ) -> None:
        if mode not in ("min", "max"):
            raise ValueError(f"callbacks.checkpoint.mode: found {mode}, expected min or max")
        if every_n_train_steps < 1 or keep_last < 1 or max_failures < 1 or save_top_k < 0:
            raise ValueError(
                f"callbacks.checkpoint: found every_n_train_steps={every_n_train_steps}, "
                f"keep_last={keep_last}, max_failures={max_failures}, save_top_k={save_top_k}, "
                "expected 1 or more, and 0 or more for the last"
            )
        check_filename(filename)
        self.dirpath, self.filename = Path(dirpath).absolute(), filename
        self.every_n_train_steps, self.save_last = every_n_train_steps, save_last
        best = save_top_k if monitor else 0
        self.retention = Retention(keep_last, best, monitor, mode, keep_every)
        self.async_save, self.max_failures = async_save, max_failures
        self.run = ""
        self.saved_step, self.stop_asked = 0, False
        self.last_model_path = self.best_model_path = ""
        self.best_model_score: float | None = None
        self.folder: CheckpointFolder | None = None  # of the process that writes

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit":
            self.run, self.folder, self.stop_asked = uuid.uuid4().hex, None, False

    def state_dict(self) -> dict[str, Any]:
        return {"run": self.run}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.run = state_dict["run"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.saved_step, resumed = trainer.global_step, Path(trainer.ckpt_path or "").absolute()
        self.last_model_path = str(resumed) if resumed.parent == self.dirpath else ""
        if trainer.is_global_zero and not self.is_trial(trainer):
            self.folder = CheckpointFolder(
                self.dirpath,
                self.run,
                self.retention,
                link=self.save_last,
                background=self.async_save,
            )
            self.folder.sweep()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any
    ) -> None:
        step = trainer.global_step
        is_last = 0 < trainer.max_steps <= step
        if self.is_stopping(trainer) or is_last or step % self.every_n_train_steps == 0:
            self.save_once(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        monitor = self.retention.monitor
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        value = trainer.callback_metrics.get(monitor) if monitor else None
        if monitor and value is None and trainer.is_global_zero:
            text = "callbacks.checkpoint.monitor: found no metric %s in this validation, only %s"
            log.warning(text, monitor, ", ".join(sorted(trainer.callback_metrics)))
        is_best = value is not None and self.is_among_best(trainer, float(value))
        if self.is_stopping(trainer) or is_best:
            self.save_once(trainer)
        if monitor and value is not None and self.saved_step == trainer.global_step:
            self.record(trainer, monitor, float(value))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The last step, where it was not known to be the last one, or could not be written."""
        if self.is_lost(trainer):
            self.saved_step = -1
        self.save_once(trainer)
        if self.is_lost(trainer):
            raise NotSaved(trainer.strategy.broadcast(self.folder.problem if self.folder else ""))

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        if self.folder is not None:
            self.folder.wait()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self.folder is not None:
            self.folder.close()

    def is_stopping(self, trainer: pl.Trainer) -> bool:
        """Asked to stop while gradients are being accumulated, training goes on to the end of the
        step, which can be saved."""
        if trainer.fit_loop._should_accumulate():
            self.stop_asked |= trainer.should_stop
            trainer.should_stop = False
        elif self.stop_asked:
            self.stop_asked, trainer.should_stop = False, True
        return trainer.should_stop

    def save_once(self, trainer: pl.Trainer) -> None:
        """Unless this step is saved, or no step is complete."""
        accumulating = trainer.fit_loop._should_accumulate()
        if self.saved_step != trainer.global_step and not accumulating:
            self.save(trainer)

    def save(self, trainer: pl.Trainer) -> bool:
        """Write a checkpoint of this step now; every process calls it. Whether it was written or,
        with `async_save`, handed over. Raises NotSaved after too many failures."""
        if self.is_trial(trainer):
            return False
        checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
        if math.isfinite(trainer.num_training_batches):
            epoch_is_over = trainer.fit_loop.epoch_loop._num_ready_batches_reached()
            settle(checkpoint["loops"]["fit_loop"], epoch_is_over=epoch_is_over)
        saved, end = False, ""
        if self.folder is not None:
            try:
                saved = self.folder.save(checkpoint, self.name(trainer))
            except Exception as error:  # the other processes wait for an answer
                trainer.strategy.broadcast((False, f"checkpoint not saved: {error!r}"))
                raise
            if (failures := self.folder.failures) >= self.max_failures:
                end = f"{self.folder.problem}; {failures} times in a row"
        saved, end = trainer.strategy.broadcast((saved, end))
        if end:
            raise NotSaved(end)
        if saved:
            self.saved_step = trainer.global_step
            self.last_model_path = str(self.dirpath / self.name(trainer))
        return saved

    def is_trial(self, trainer: pl.Trainer) -> bool:
        return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]

    def name(self, trainer: pl.Trainer) -> str:
        return f"{self.filename.format(step=trainer.global_step, epoch=trainer.current_epoch)}.ckpt"

    def is_among_best(self, trainer: pl.Trainer, value: float) -> bool:
        found = self.folder is not None and self.retention.is_among_best(
            value, self.folder.entries()
        )
        return trainer.strategy.broadcast(found)

    def record(self, trainer: pl.Trainer, monitor: str, value: float) -> None:
        if self.folder is None or not self.last_model_path:
            return
        self.folder.score(Path(self.last_model_path).name, monitor, value)
        if best := self.folder.best():
            self.best_model_path = str(best.path)
            self.best_model_score = best.scores[monitor]

    def is_lost(self, trainer: pl.Trainer) -> bool:
        """Was the last save refused? Waits for it."""
        if self.folder is not None:
            self.folder.wait()
        return trainer.strategy.broadcast(bool(self.folder and self.folder.problem))


def check_filename(filename: str) -> None:
    """ValueError unless it gives each step a name, which is no hidden one nor a path."""
    try:
        names = {filename.format(step=step, epoch=0) for step in (1, 2)}
    except (LookupError, ValueError):
        names = set()
    if len(names) < 2 or {"/", "@"} & set(filename) or filename.startswith("."):
        raise ValueError(
            f"callbacks.checkpoint.filename: found {filename}, expected a name with {{step}}, "
            "and {epoch} if need be"
        )


class SameCheckpoint(Callback):
    """Refuses to start where processes found different checkpoints to continue from."""

    def __init__(self, path: Path | str | None) -> None:
        self.path = None if path is None else str(Path(path).absolute())

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if trainer.world_size == 1:
            return
        found: list[str | None] = [None] * trainer.world_size
        distributed.all_gather_object(found, self.path)
        for rank, path in enumerate(found):
            if path != found[0]:
                raise ValueError(
                    f"resume: process {rank} found {path}, process 0 {found[0]}, expected the "
                    "same run folder, with the same contents, on every machine"
                )
