"""Wide images with segments and captions, to embed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from datamodules.tars import png
from runs import compose_config
from tiny import SIZE

TEXTS = {1: "gr\u00fcnes Feld", 2: "\u8d64\u3044\u4e38 \U0001f415", 3: "tiny", 4: ""}


def draw(number: int, size: tuple[int, int] = (32, 52)) -> tuple[np.ndarray, np.ndarray]:
    """Smooth colours, and ids whose centre square holds 1, 2 and 4 and too little of 3."""
    rng = np.random.default_rng(number)
    h, w = size
    waves = rng.uniform(0.02, 0.2, (3, 2))
    y, x = np.arange(h)[:, None, None], np.arange(w)[:, None]
    pixels = (127.5 + 120 * np.sin(y * waves[:, 0] + x * waves[:, 1] + number)).astype(np.uint8)
    ids = np.zeros(size, dtype=np.uint8)
    ids[2:14, 5:30], ids[16:30, 14 + number :], ids[:3, 40:44], ids[4:14, 33:40] = 1, 2, 3, 4
    return pixels, ids


def sample(number: int, caption: str) -> dict[str, Any]:
    pixels, ids = draw(number)
    entries = [{"id": i, "text": text} for i, text in TEXTS.items()]
    return {
        "__key__": f"{number:03d}",
        "png": png(pixels),
        "txt": caption.encode(),
        "json": json.dumps({"segments": entries}).encode(),
        "panoptic.png": png(ids),
    }


CAPTIONS = ("ein Bild \u00fcber W\u00f6rter", "", "two dogs", "a blue sea", "\u6d77", "a circle")


def config(workspace: Path, shards: Path | str, out: Path, *overrides: str) -> DictConfig:
    options = [
        f"out={out}",
        f"datamodule.shards={shards}",
        f"datamodule.image_size={SIZE}",
        f"datamodule.crop_size={SIZE}",
        "datamodule.num_workers=0",
        f"clip.name=local-dir:{workspace / 'base' / 'clip'}",
        "clip.pretrained=null",
        "batch_size=4",
        "device=cpu",
        "num_threads=2",
        *overrides,
    ]
    return compose_config("embed", options)
