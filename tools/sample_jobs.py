"""What is to be painted at which scales, and by which process."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from tqdm import tqdm

from spatext.callbacks.images import paint_scenes
from spatext.callbacks.jobs import Job
from spatext.datamodules.documents import brief, is_int
from spatext.datamodules.drawing import save_png
from spatext.datamodules.scenes import Scene
from spatext.modules.cascade import count_steps
from spatext.modules.sampling_options import Sampling
from spatext.modules.spatext import SpaText
from spatext.tools.recipes import RECIPE, dump_recipe

AXES = ("text", "segments")  # of a grid of scales: to the right, and down


def read_scale_grid(value: Any) -> list[Mapping[str, float] | None]:
    """All pairs, segments slowest; [None] where the grid is off. `value` is the option's.

    ValueError where it is half given or a list holds no numbers, negative ones or one twice.
    """
    if not isinstance(value, dict) or set(value) != set(AXES):
        raise ValueError(f"scale_grid: found {brief(value)}, expected {' and '.join(AXES)}")
    if all(value[name] is None for name in AXES):
        return [None]
    axes = {name: _read_axis(name, value[name]) for name in AXES}
    return [{"text": s, "segments": t} for t in axes["segments"] for s in axes["text"]]


def _read_axis(name: str, value: Any) -> list[float]:
    numbers = value if isinstance(value, list) else []
    fits = all((is_int(x) or isinstance(x, float)) and 0 <= x < math.inf for x in numbers)
    if not numbers or not fits or len({f"{x:g}" for x in numbers}) < len(numbers):
        raise ValueError(
            f"scale_grid.{name}: found {brief(value)}, expected a list of numbers of at least 0, "
            "each once, such as [0, 1, 3, 5]"
        )
    return [float(x) for x in numbers]


class Painter(pl.LightningModule):
    """Paints and writes the batches of this process, for `Trainer.predict`.

    Process r of n takes batches r, r + n, ... So a picture is painted in the same company, hence
    bit for bit alike, on any number of processes.
    """

    def __init__(
        self,
        model: SpaText,
        sampling: Sampling,
        batches: Sequence[Sequence[Job]],
        folder: Path,
        origin: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.model, self.sampling = model, sampling
        self.batches, self.folder, self.origin = batches, folder, origin
        self.bar: Any = None

    def rounds(self, num_processes: int) -> range:
        """One item per batch of the busiest process: all must come to the same meetings."""
        return range(math.ceil(len(self.batches) / num_processes))

    def on_predict_start(self) -> None:
        self.bar = tqdm(
            total=sum(map(len, self.batches)),
            desc="sample",
            disable=not self.trainer.is_global_zero,
            bar_format="{l_bar}{bar}| {n:.1f}/{total} images [{elapsed}<{remaining}]",
        )

    def on_predict_end(self) -> None:
        self.bar.close()
        self.trainer.strategy.barrier("all pictures are written")

    def predict_step(self, batch: int, batch_idx: int) -> int:
        number = batch * self.trainer.world_size + self.trainer.global_rank
        jobs = self.batches[number] if number < len(self.batches) else []
        if jobs:
            self.paint(jobs)
        return len(jobs)

    def paint(self, jobs: Sequence[Job]) -> None:
        start = self.bar.n
        share = self.share() * len(jobs)
        num_steps = count_steps(self.model, self.sampling)

        def on_step(step: int, x_t: Tensor, x_0_hat: Tensor) -> None:
            self.bar.update(start + share * (step + 1) / num_steps - self.bar.n)

        images = paint_scenes(
            self.model,
            [job.scene for job in jobs],
            torch.tensor([job.seed for job in jobs]),
            self.sampling,
            scales=[job.scales for job in jobs if job.scales] or None,
            on_step=on_step,
        )
        for job, image in zip(jobs, images, strict=True):
            recipe = dump_recipe(job.scene, job.seed, job.scales, self.origin)
            save_png(self.folder / job.file, image, {RECIPE: recipe})
        self.bar.update(start + share - self.bar.n)

    def share(self) -> float:
        """Pictures of all processes over those of this one: its bar stands for all."""
        own = self.batches[self.trainer.global_rank :: self.trainer.world_size]
        return sum(map(len, self.batches)) / sum(map(len, own))


def grouped(jobs: Sequence[Job]) -> Iterator[tuple[Scene, list[list[Job]]]]:
    """(scene, its jobs by seed) in order."""
    scenes: dict[str, dict[int, list[Job]]] = {}
    for job in jobs:
        scenes.setdefault(job.scene.name, {}).setdefault(job.seed, []).append(job)
    for seeds in scenes.values():
        rows = list(seeds.values())
        yield rows[0][0].scene, rows
