"""Write what a finished run is for into a folder that other runs load."""

import shutil
from itertools import islice
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities import move_data_to_device


class Export(Callback):
    """Calls `save_pretrained(folder, batches)` of the module once training has finished.

    Works on the averaged weights where the run has an average. `num_batches` training batches are
    handed over for statistics. Each part of the folder is written beside it and renamed.
    """

    def __init__(self, folder: str, num_batches: int = 16) -> None:
        self.folder, self.num_batches = Path(folder), num_batches

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero or trainer.interrupted:
            return
        loader = trainer.datamodule.train_dataloader()  # type: ignore[attr-defined]
        batches = [
            move_data_to_device(batch, pl_module.device)
            for batch in islice(loader, self.num_batches)
        ]
        temporary = self.folder.with_name(self.folder.name + ".tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        pl_module.eval()
        pl_module.save_pretrained(temporary, batches)  # type: ignore[operator]
        self.folder.mkdir(parents=True, exist_ok=True)
        for part in temporary.iterdir():
            shutil.rmtree(self.folder / part.name, ignore_errors=True)
            part.rename(self.folder / part.name)
        temporary.rmdir()
