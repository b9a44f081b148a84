"""Make a checkpoint say where it came from."""

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback


class RecordConfig(Callback):
    """Stores the resolved configuration, as plain containers, in every checkpoint.

    So a checkpoint alone is enough to sample from, and it loads with `weights_only=True`.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["config"] = self.config
