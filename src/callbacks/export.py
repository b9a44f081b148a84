"""Write what a finished run is for into a folder that other runs load."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from itertools import islice
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities import move_data_to_device
from safetensors.torch import load_file, save_file

from .checkpoint_orphans import hidden, sweep_orphans
from .checkpoint_writer import publish


class Export(Callback):
    """Calls `save_pretrained(folder, batches)` of the module once training has finished.

    Works on the averaged weights where the run has an average. `num_batches` training batches are
    handed over for statistics. Each part of the folder is written beside it and renamed. `half`
    stores the weights as float16, which halves the files; loading brings them back to float32.
    """

    def __init__(self, folder: str, num_batches: int = 16, half: bool = False) -> None:
        self.folder, self.num_batches, self.half = Path(folder), num_batches, half

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero or trainer.interrupted:
            return
        data: pl.LightningDataModule = trainer.datamodule  # type: ignore[attr-defined]
        batches = [
            data.on_after_batch_transfer(move_data_to_device(batch, pl_module.device), 0)
            for batch in islice(data.train_dataloader(), self.num_batches)
        ]
        pl_module.eval()
        with temporary_folder(self.folder) as temporary:
            pl_module.save_pretrained(temporary, batches)  # type: ignore[operator]
            if self.half:
                halve(temporary)
            self.folder.mkdir(parents=True, exist_ok=True)
            for part in temporary.iterdir():
                shutil.rmtree(self.folder / part.name, ignore_errors=True)
                part.rename(self.folder / part.name)


@contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """An empty folder beside `path`, gone after the block; what a kill left there goes first, or
    comes back where it was being replaced."""
    sweep_orphans(path.parent, escape(path.name))
    temporary = hidden(path, "tmp")
    temporary.mkdir(parents=True)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to write to, which takes the place of `path` at the end of the block. Where that
    raises, what was there before stays as it was. A link is followed."""
    path = path.resolve()
    with temporary_folder(path) as temporary:
        yield temporary
        publish(temporary, path)


def halve(folder: Path) -> None:
    """Rewrite the float32 tensors of all safetensors files below a folder as float16."""
    for path in folder.rglob("*.safetensors"):
        weights = {
            name: value.half() if value.dtype == torch.float32 else value
            for name, value in load_file(path).items()
        }
        save_file(weights, path, metadata={"format": "pt"})
