"""Small folders of embedding pairs for the tests of the datamodules."""

from pathlib import Path
from typing import Any

import numpy as np

from spatext.datamodules.pair_files import PairRows, write_shard

WIDTH = 5
SIZES = {"b": 13, "a": 7, "empty": 0, "c": 20}
NUM = sum(SIZES.values())
FINGERPRINT = {"clip": "a", "scale": "raw", "embed_dim": WIDTH}
TEXTS = (
    "a red circle",
    "",
    "ein gr\u00fcnes Dreieck",
    "\u8d64\u3044\u4e38\u306e\u4e0a\u306b\u72ac",
    "\U0001f415 and a \U0001f408\u200d\u2b1b",
    "x" * 300,
)


def make_rows(shard: str, num: int, seed: int = 0, share: float = 0.4) -> PairRows:
    """Regions and images mixed, in numbers that differ between shards."""
    rng = np.random.default_rng([seed, *shard.encode()])
    scale = 1 + 9 * np.arange(WIDTH)
    is_region = rng.random(num) < share
    embeds = rng.normal(2, scale, (num, WIDTH)) + 3 * is_region[:, None]
    texts = [f"{TEXTS[int(rng.integers(len(TEXTS)))]}|{row}" for row in range(num)]
    texts = [text if row % 3 else "" for row, text in enumerate(texts)]
    keys = [f"{shard}/{row:03d}{'#7' if region else ''}" for row, region in enumerate(is_region)]
    return PairRows(embeds.astype(np.float32), is_region, texts, keys)


def write_rows(folder: Path, shard: str, rows: PairRows, **facts: Any) -> None:
    defaults: dict[str, Any] = {
        "fingerprint": FINGERPRINT,
        "source": {"file": f"{shard}.tar", "bytes": 1},
        "options": {},
        "bad": {},
    }
    write_shard(folder, shard, rows, **(defaults | facts))


def write_folder(folder: Path, sizes: dict[str, int], **facts: Any) -> dict[str, PairRows]:
    shards = {shard: make_rows(shard, num) for shard, num in sizes.items()}
    for shard, rows in shards.items():
        write_rows(folder, shard, rows, **facts)
    return shards
