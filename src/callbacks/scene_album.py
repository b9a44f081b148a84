"""One validation's samples as a grid and a table on disk, and as trackers show them."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from pytorch_lightning.loggers import Logger, TensorBoardLogger

from ..datamodules.documents import atomic_path
from ..datamodules.drawing import Pixels, enlarge, grid, overlay, save_png
from ..datamodules.scenes import Scene
from ..modules.sampling_options import Sampling
from .scene_shots import Shot
from .tracking import Tracker

MAX_SIDE = 512  # of what is uploaded


@dataclass(frozen=True)
class Album:
    """Samples in the order of `plan_shots`."""

    step: int
    sampling: Sampling
    shots: Sequence[Shot]
    images: Sequence[Pixels]

    def rows(self) -> list[list[int]]:
        """The numbers of the shots of each scene."""
        numbers = range(len(self.shots))
        return [[*row] for _, row in groupby(numbers, key=lambda i: id(self.shots[i].scene))]

    @property
    def compares(self) -> bool:
        """Whether each scene is painted at the same pairs of scales."""
        return self.shots[0].scales is not None

    def title(self, number: int) -> str:
        scales = self.shots[number].asked(self.sampling)
        return ", ".join(f"{name} {scale:g}" for name, scale in scales.items())

    def picture(self) -> Pixels:
        """A row per scene: its layout, then its samples, below their scales where these differ."""
        rows = self.rows()
        cells = []
        for row in rows:
            plan = layout(self.shots[row[0]].scene)
            cells.append([plan, *(enlarge(self.images[i], plan.shape[1]) for i in row)])
        return grid(cells, labels=["", *map(self.title, rows[0])] if self.compares else None)


def layout(scene: Scene) -> Pixels:
    return overlay(None, scene.ids(), scene.texts, prompt=scene.prompt)


def write_album(album: Album, folder: Path, *, singles: bool) -> Pixels:
    """step-NNNNNN.png, scenes-NNNNNN.csv with a row per sample and, with `singles`, the samples in
    step-NNNNNN/. Returns the picture."""
    name = f"step-{album.step:06d}"
    picture = album.picture()
    save_png(folder / f"{name}.png", picture)
    records = []
    for y, row in enumerate(album.rows()):
        for x, i in enumerate(row):
            shot = album.shots[i]
            path = Path(name, f"{y:03d}-{x:03d}.png") if singles else Path(f"{name}.png")
            if singles:
                save_png(folder / path, album.images[i])
            where = {"image": path.as_posix(), "row": y, "column": x}
            scales = shot.asked(album.sampling)
            records.append({"scene": shot.scene.name, "seed": shot.seed, **scales, **where})
    with (
        atomic_path(folder / f"scenes-{album.step:06d}.csv") as temporary,
        temporary.open("w", newline="") as file,
    ):
        writer = csv.DictWriter(file, list(records[0]))
        writer.writeheader()
        writer.writerows(records)
    return picture


def log_album(logger: Logger, album: Album, picture: Pixels) -> None:
    """To W&B the samples under their regions and a table of them, to TensorBoard the grid."""
    if isinstance(logger, Tracker):
        logger.send(partial(wandb_media, album=album), album.step)
    elif isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image("val/scenes", picture, album.step, dataformats="HWC")


def wandb_media(wandb: Any, album: Album) -> dict[str, Any]:
    """val/scenes: each sample with its regions as a mask overlay; val/table: a row per scene and
    seed with its layout, and a column per pair of scales."""
    samples = [sample(wandb, album, i) for i in range(len(album.shots))]
    titles = list(dict.fromkeys(album.title(i) for i in album.rows()[0]))
    titles = titles if album.compares else ["sample"]
    table = wandb.Table(columns=["scene", "prompt", "seed", "layout", *titles])
    for row in album.rows():
        scene = album.shots[row[0]].scene
        plan = wandb.Image(shrink(layout(scene)))
        for seed in dict.fromkeys(album.shots[i].seed for i in row):
            images = [samples[i] for i in row if album.shots[i].seed == seed]
            table.add_data(scene.name, scene.prompt, seed, plan, *images)
    return {"val/scenes": samples, "val/table": table}


def sample(wandb: Any, album: Album, number: int) -> Any:
    """One sample as a wandb.Image; of the mask's ids 0 is what is not painted."""
    shot, image = album.shots[number], shrink(album.images[number])
    ids = Image.fromarray(shot.scene.ids())
    ids = ids.resize((image.shape[1], image.shape[0]), Image.Resampling.NEAREST)
    labels = {0: "unpainted"} | dict(enumerate(shot.scene.texts, start=1))
    return wandb.Image(
        image,
        caption=f"{shot.scene.name}, seed {shot.seed}: {album.title(number)}",
        masks={"regions": {"mask_data": np.asarray(ids), "class_labels": labels}},
    )


def shrink(image: Pixels) -> UInt8[np.ndarray, "H W 3"]:
    """To at most MAX_SIDE a side."""
    picture = Image.fromarray(image)
    picture.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    return np.asarray(picture)
