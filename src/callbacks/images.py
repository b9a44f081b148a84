"""Pictures of fixed scenes with fixed seeds, as training goes."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from jaxtyping import Int64, UInt8
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import WandbLogger
from torch import Tensor

from ..datamodules.drawing import enlarge, grid, overlay, save_png
from ..datamodules.scenes import Scene, load_scenes
from ..modules.generate import Sampling, generate, to_pixels
from ..modules.spatext import SpaText


class SceneGrid(Callback):
    """One row per scene: its layout, then a sample for each seed; the same at every validation.

    Written to `folder`/step-NNNNNN.png at each validation (from the averaged weights where the run
    has them) and at the end of the fit, and logged to W&B where that is on. `scenes` are files or
    a folder of them; they are brought to `size`.
    """

    def __init__(
        self,
        scenes: str | Sequence[str],
        folder: str,
        *,
        size: int,
        num_seeds: int = 3,
        sampling: Sampling | None = None,
    ) -> None:
        self.scenes = [scene.resize((size, size)) for scene in load_scenes(scenes)]
        self.folder = Path(folder)
        self.num_seeds = num_seeds
        self.sampling = sampling or Sampling()

    def on_validation_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        # Between the epoch's start and end hooks, in which averaged weights are swapped.
        if batch_idx == 0 and not trainer.sanity_checking:
            self.draw(trainer, pl_module)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.draw(trainer, pl_module)

    def draw(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        path = self.folder / f"step-{trainer.global_step:06d}.png"
        if not trainer.is_global_zero or path.exists():
            return
        assert isinstance(pl_module, SpaText)
        was_training = pl_module.training
        pl_module.eval()
        rows = [self.row(pl_module, scene) for scene in self.scenes]
        pl_module.train(was_training)
        picture = grid(rows)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_png(path, picture)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_image("val/scenes", [picture], step=trainer.global_step)

    def row(self, model: SpaText, scene: Scene) -> list[UInt8[np.ndarray, "h w 3"]]:
        seeds = torch.arange(scene.seed, scene.seed + self.num_seeds)
        images = paint_scene(model, scene, seeds, self.sampling)
        layout = overlay(None, scene.ids(), scene.texts, prompt=scene.prompt)
        return [layout, *(enlarge(image, layout.shape[1]) for image in images)]


def paint_scene(
    model: SpaText,
    scene: Scene,
    seeds: Int64[Tensor, " n"],
    sampling: Sampling,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> UInt8[np.ndarray, "n h w 3"]:
    """One image of a scene for each seed, in one batch."""
    num = len(seeds)
    ids = torch.from_numpy(scene.ids()).expand(num, -1, -1)
    prompts, texts = [scene.prompt] * num, [scene.texts] * num
    return to_pixels(generate(model, prompts, ids, texts, seeds, sampling, on_step)).numpy()
