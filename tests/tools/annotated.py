"""Shards to annotate, and spatext-annotate in this process, composed as users do it."""

from pathlib import Path

import numpy as np
from PIL import Image

from datamodules.tars import png, write_shard
from runs import compose_config
from spatext.tools.annotate import COMMANDS

NUM_SHARDS, PER_SHARD = 3, 4


def write_pictures(folder: Path) -> Path:
    """s0.tar, s1.tar and s2.tar of four pictures that have no segments yet."""
    folder.mkdir()
    for shard in range(NUM_SHARDS):
        samples = {}
        for i in range(PER_SHARD):
            rng = np.random.default_rng(10 * shard + i)
            blocks = Image.fromarray(rng.integers(0, 256, (3, 4, 3), dtype=np.uint8))
            image = png(blocks.resize((48, 40), Image.Resampling.BICUBIC))
            samples[f"{shard}{i}"] = {"png": image, "txt": b"caption"}
        write_shard(folder / f"s{shard}.tar", samples)
    return folder


def call(command: str, shards: Path | str, *overrides: str) -> int:
    """By the graph segmenter, unless said otherwise; what it returns is how many things failed."""
    options = [
        *(f"datamodule.shards={shards}", "datamodule=graph", "device=cpu", "threads=2"),
        *("num_threads=1", "batch_size=3", *overrides),
    ]
    return COMMANDS[command](compose_config("annotate", options))


def contents(folder: Path) -> dict[str, bytes]:
    """Of sidecars and manifests."""
    names = ("*.tar", "*.annotation.json")
    return {path.name: path.read_bytes() for name in names for path in folder.glob(name)}
