"""Fits of the tiny module that write checkpoints."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from spatext.callbacks.checkpoint_io import AtomicCheckpointIO
from spatext.callbacks.checkpoints import Checkpoint
from spatext.callbacks.ema import Ema
from tiny_runs import TinyData, TinyModule, make_trainer


class Measured(TinyModule):
    """Its validation reports what it is told to, validation by validation."""

    def __init__(self, *values: float) -> None:
        super().__init__()
        self.values = list(values)

    def on_validation_epoch_end(self) -> None:
        self.log("val/score", self.values.pop(0) if self.values else 1.0)


class StopAt(Callback):
    """Asks training to stop after a step: in the middle of a batch's hooks, at its validation, or
    `late`, when the checkpoints' hook is over."""

    def __init__(self, step: int, *, at_validation: bool = False, late: bool = False) -> None:
        self.step, self.at_validation, self.late = step, at_validation, late

    def __str__(self) -> str:
        return "stop" + " at validation" * self.at_validation + " late" * self.late

    def stop(self, trainer: pl.Trainer) -> None:
        trainer.should_stop = trainer.should_stop or trainer.global_step == self.step

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if not self.at_validation and not self.late:
            self.stop(trainer)

    def setup(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        if self.late:  # a module's hook comes after those of all callbacks
            module.on_train_batch_end = lambda *_: self.stop(trainer)

    def on_validation_epoch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if self.at_validation:
            self.stop(trainer)


class Losses(Callback):
    """The loss of every batch."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, *_: Any
    ) -> None:
        loss: Tensor = outputs["loss"]
        self.values.append(loss.item())


def fit(
    module: pl.LightningModule,
    folder: Path,
    *callbacks: Callback,
    resume: Path | None = None,
    data: Any = None,
    every: int = 1000,
    checkpoint: dict[str, Any] | None = None,
    **options: Any,
) -> pl.Trainer:
    trainer = make_trainer(
        folder,
        enable_checkpointing=True,
        plugins=[AtomicCheckpointIO()],
        callbacks=[
            Checkpoint(str(folder), every_n_train_steps=every, **(checkpoint or {})),
            Ema(0.5),
            *callbacks,
        ],
        **options,
    )
    trainer.fit(module, data or TinyData(), ckpt_path=resume, weights_only=True)
    return trainer


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}
