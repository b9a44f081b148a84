"""Pictures of fixed scenes with fixed seeds, as training goes."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from ..datamodules.scenes import load_scenes
from ..datamodules.settings import check_scales
from ..modules.sampling_options import Sampling
from ..modules.spatext import SpaText
from .scene_album import Album, log_album, write_album
from .scene_shots import paint_shared, plan_shots

log = logging.getLogger(__name__)


class SceneGrid(Callback):
    """One row per scene: its layout, then a sample for each pair of scales and each seed; the same
    at every validation.

    Written to `folder`/step-NNNNNN.png and scenes-NNNNNN.csv at each validation (from the averaged
    weights where the run has them) and at the end of the fit; `singles` also writes each sample by
    itself. W&B gets the samples with their regions and a table, TensorBoard the grid. `scenes` are
    files or a folder of them, brought to `size`; without any nothing is done.

    `scales` are pairs {"text": global, "segments": local} for sampling of form "full"; None leaves
    them to the scenes and to `sampling`. At most `max_batch` samples are in memory at once, and the
    processes of a run share them out; it changes bytes in the last bit only. Files that the disk
    refuses are a warning.
    """

    def __init__(
        self,
        scenes: str | Sequence[str],
        folder: str,
        *,
        size: int,
        num_seeds: int = 3,
        sampling: Sampling | None = None,
        scales: Sequence[Mapping[str, float]] | None = None,
        max_batch: int = 4,
        singles: bool = False,
    ) -> None:
        self.folder, self.singles = Path(folder), singles
        self.sampling = sampling or Sampling()
        for name, value in (("num_seeds", num_seeds), ("max_batch", max_batch)):
            if value < 1:
                raise ValueError(f"callbacks.scene_grid.{name}: found {value}, expected at least 1")
        pairs = _check_pairs(scales, self.sampling)
        loaded = [scene.resize((size, size)) for scene in load_scenes(scenes)] if scenes else []
        self.batches = plan_shots(loaded, num_seeds, pairs, max_batch)
        self.drawn_step: int | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """ValueError for a module that paints no scenes."""
        if not isinstance(pl_module, SpaText):
            raise ValueError(
                f"callbacks.scene_grid: found module {type(pl_module).__name__}, which paints no "
                "scenes, expected SpaText; callbacks=default is without pictures"
            )

    def on_validation_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        # Between the epoch's start and end hooks, in which averaged weights are swapped.
        if batch_idx == 0 and dataloader_idx == 0 and not trainer.sanity_checking:
            self.draw(trainer, pl_module)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step != self.drawn_step:
            self.draw(trainer, pl_module)

    def draw(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """To be called on all ranks, which wait for each other."""
        if not self.batches:
            return
        self.drawn_step = trainer.global_step
        assert isinstance(pl_module, SpaText)
        plugin = trainer.precision_plugin
        with plugin.forward_context() if plugin.precision == "bf16-mixed" else nullcontext():
            images = paint_shared(pl_module, self.batches, self.sampling)
        if images is None:
            return
        shots = [shot for batch in self.batches for shot in batch]
        album = Album(trainer.global_step, self.sampling, shots, images)
        try:
            picture = write_album(album, self.folder, singles=self.singles)
        except OSError as error:  # what a full disk means to a run, checkpoints decide
            log.warning("no pictures of step %d: %s", trainer.global_step, error)
            return
        for logger in trainer.loggers:
            log_album(logger, album, picture)


def _check_pairs(
    scales: Sequence[Mapping[str, float]] | None, sampling: Sampling
) -> list[dict[str, float]] | None:
    if not scales:
        return None
    if sampling.form != "full":
        raise ValueError(
            "callbacks.scene_grid.scales: found with sampling.form=fast, expected "
            "callbacks.scene_grid.sampling.form=full"
        )
    try:
        pairs = [check_scales(dict(pair)) for pair in scales]
    except ValueError as error:
        raise ValueError(f"callbacks.scene_grid.{error}") from None
    if len({tuple(pair.items()) for pair in pairs}) < len(pairs):
        raise ValueError("callbacks.scene_grid.scales: found a pair twice, expected each once")
    return pairs
