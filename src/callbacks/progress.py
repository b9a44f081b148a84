"""The bar of a training."""

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import TQDMProgressBar


class ProgressBar(TQDMProgressBar):
    """Lightning's, with what a `TrainedModule` shows of its steps: the device is asked for it, and
    waited for, only when the bar is drawn, every `refresh_rate` batches."""

    reads_shown = True

    def __init__(self, refresh_rate: int = 20, **options: Any) -> None:
        super().__init__(refresh_rate, **options)

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        shown = getattr(pl_module, "shown", {})
        return super().get_metrics(trainer, pl_module) | {k: float(v) for k, v in shown.items()}
