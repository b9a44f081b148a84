"""Small shards without segments, and what annotates them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from spatext.datamodules.annotation_engines import Engine
from spatext.datamodules.annotation_files import Manifest
from spatext.datamodules.annotation_work import Annotator, Reading, Source
from spatext.datamodules.locations import Shard
from spatext.datamodules.panoptic_models import PanopticModel
from tars import png, write_shard
from tiny_panoptic import INPUT_SIZE, OPTIONS, write_model

SHAPES = [(64, 64), (48, 64), (64, 40), (33, 57), (60, 62), (64, 64), (20, 50), (41, 64)]
RECIPE = {"segmenter": "a test's"}


def picture(seed: int, shape: tuple[int, int]) -> bytes:
    rng = np.random.default_rng(seed)
    blocks = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    return png(blocks.resize((shape[1], shape[0]), Image.Resampling.BICUBIC))


def raw_samples(shapes: list[tuple[int, int]], first: int = 0) -> dict[str, dict[str, bytes]]:
    """Keys 000, 001, ...; the json knows something else."""
    return {
        f"{i:03d}": {"png": picture(i, shape), "txt": b"text", "json": b'{"width": 3, "own": 7}'}
        for i, shape in enumerate(shapes, first)
    }


def write_raw(folder: Path, num_shards: int = 1) -> Path:
    """0.tar, 1.tar, ... of eight pictures of several shapes."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(num_shards):
        write_shard(folder / f"{shard}.tar", raw_samples(SHAPES, 8 * shard))
    return folder


def load_tiny(folder: Path, kind: str = "mask2former") -> PanopticModel:
    if not folder.exists():
        write_model(kind, folder)
    return PanopticModel(str(folder), input_size=INPUT_SIZE, **OPTIONS)


class Halves:
    """Two segments side by side; in dark images, none. Counts its calls."""

    input_size = 8

    def __init__(self) -> None:
        self.num_images: list[int] = []

    def segment(
        self, pixels: torch.Tensor, sizes: list[tuple[int, int]]
    ) -> tuple[torch.Tensor, list[dict[int, dict[str, Any]]]]:
        self.num_images.append(len(pixels))
        ids = torch.zeros(len(pixels), 8, 8, dtype=torch.int32)
        infos: list[dict[int, dict[str, Any]]] = []
        for i, (h, w) in enumerate(sizes):
            infos.append({})
            if pixels[i].max() > 40:
                ids[i, :h, : w // 2], ids[i, :h, w // 2 : w] = 1, 300
                infos[i] = {1: {"text": "left", "isthing": True}, 300: {"label": "right"}}
        return ids, infos


def annotate(
    shards: Sequence[Shard],
    folder: Path,
    engine: Engine,
    recipe: dict[str, Any] = RECIPE,
    **options: Any,
) -> list[Manifest]:
    reading = options.pop("reading", Reading(min_side=64))
    with Annotator(engine, **{"batch_size": 3, "threads": 2, "reading": reading} | options) as a:
        found = []
        for shard in shards:
            source = Source(shard, a)
            found.append(a.annotate(source, folder, recipe))
            source.close()
        return found
