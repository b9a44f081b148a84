"""The last step is a checkpoint too."""

from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback


class LastCheckpoint(Callback):
    """Writes `folder`/last.ckpt when a fit has ended.

    ModelCheckpoint with `every_n_train_steps` saves multiples of it only, so the steps after the
    last multiple would be lost.
    """

    def __init__(self, folder: str) -> None:
        self.path = Path(folder) / "last.ckpt"

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.save_checkpoint(self.path)
