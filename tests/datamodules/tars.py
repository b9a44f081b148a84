"""Small shards for the tests of the datamodules."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import webdataset as wds
from PIL import Image

# the colour of segment i in the scenes below; the red channel alone names it
COLOURS = np.array(
    [[0, 9, 9], [50, 200, 10], [100, 10, 200], [150, 60, 60], [200, 250, 30]], dtype=np.uint8
)


def png(array: np.ndarray | Image.Image) -> bytes:
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()


def scene_ids(seed: int, size: tuple[int, int] = (32, 48)) -> np.ndarray:
    """An asymmetric map of ids 0..4 in uint8: four disjoint rectangles on void."""
    h, w = size
    rng = np.random.default_rng(seed)
    ids = np.zeros(size, dtype=np.uint8)
    for i in range(1, 5):
        top, left = (h // 2) * ((i - 1) // 2), (w // 2) * ((i - 1) % 2)
        height, width = rng.integers(h // 4, h // 2), rng.integers(w // 4, w // 2)
        ids[top : top + height, left : left + width] = i
    return ids


def scene(seed: int, size: tuple[int, int] = (32, 48)) -> dict[str, bytes]:
    """A sample whose colour IS the segment id."""
    ids = scene_ids(seed, size)
    entries = [
        {"id": i, "text": f"text {i}", "label": f"label {i}", "isthing": i % 2 == 1}
        for i in range(1, 5)
    ]
    return {
        "png": png(COLOURS[ids]),
        "txt": f"caption {seed}".encode(),
        "json": json.dumps({"segments": entries}).encode(),
        "panoptic.png": png(ids),
    }


def write_shard(path: Path, samples: Mapping[str, Mapping[str, Any]]) -> Path:
    with wds.TarWriter(str(path), encoder=False, mtime=0) as writer:
        for key, members in samples.items():
            writer.write({"__key__": key, **members})
    return path


def write_scenes(folder: Path, num_samples: int, per_shard: int = 5, **kwargs: Any) -> Path:
    folder.mkdir(exist_ok=True)
    for first in range(0, num_samples, per_shard):
        keys = range(first, min(first + per_shard, num_samples))
        samples = {f"{i:06d}": scene(i, **kwargs) for i in keys}
        write_shard(folder / f"{first // per_shard:05d}.tar", samples)
    return folder


class Canary:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)
