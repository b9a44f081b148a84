"""Encodings of images of several sizes, beside training that makes them anew."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from cached import ALL, CENTRE, batches, config, load, make
from spatext.datamodules.encoding_files import read_manifest
from spatext.datamodules.panoptic import PanopticDataModule
from spatext.datamodules.skip_list import Skipped, write_skip_list
from spatext.tools.cache import cache
from tars import scene, write_shard
from tiny import CHANNELS

pytestmark = pytest.mark.filterwarnings("ignore:You are trying to `self.log")
BUCKETS = {"step": 4}  # 16 x 16, 12 x 20, 20 x 12
SHAPES = [(32, 32), (24, 40), (40, 24)]
NUM = 24
OPTIONS: dict[str, Any] = {"buckets": BUCKETS, "flip": True}


@pytest.fixture(scope="module")
def world(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ in buckets, val/ in squares, both with all kinds beside them."""
    folder = tmp_path_factory.mktemp("buckets")
    for split, num in (("train", NUM), ("val", 4)):
        (folder / split).mkdir()
        for first in range(0, num, 8):
            numbers = range(first, min(first + 8, num))
            samples = {f"{i:03d}": scene(i, SHAPES[i % 3]) for i in numbers}
            write_shard(folder / split / f"{first:03d}.tar", samples)
    val = f"datamodule.val_shards={folder / 'val'}"
    made = cache(config(base, folder / "train", val, "+datamodule.buckets.step=4", "dtype=float32"))
    assert len(made) == 4 * 3
    return folder


def test_batches_and_losses_are_those_of_online_training(world: Path, base: Path) -> None:
    """Of each size, mirrored or not, through two epochs."""
    online, cached = load(base), load(base)
    sizes = set[tuple[int, int]]()
    found = batches(make(world / "train", ALL | {"images": False}, **OPTIONS), 12)
    plain = batches(make(world / "train", None, **OPTIONS), 12)
    for one, other in zip(plain, found, strict=True):
        height, width = one["image"].shape[-2:]
        assert other["moments"].shape == (4, 2, CHANNELS, height // 2, width // 2)
        for name in ("ids", "valid", "index"):
            assert torch.equal(one[name], other[name])
        if (height, width) not in sizes or len(sizes) < 3:
            expected, value = online.training_step(one, 0), cached.training_step(other, 0)
            assert_close(value, expected, rtol=1e-5, atol=1e-5)
        sizes.add((height, width))
    assert sizes == {(16, 16), (12, 20), (20, 12)}


def test_samples_that_are_left_out_move_nothing(world: Path, tmp_path: Path) -> None:
    """Entries go by the index of all samples."""
    records = make(world / "train", None).records
    write_skip_list(tmp_path / "skip", records, [Skipped(i, f"{i:03d}", "") for i in (0, 5)])
    options = OPTIONS | {"skip": tmp_path / "skip"}
    (one, *_), (other, *_) = (
        batches(make(world / "train", encodings, **options), 1) for encodings in (ALL, None)
    )
    assert_close(one["embeds"].shape[:2], other["valid"].shape)
    assert torch.equal(one["image"], other["image"])
    whole = {
        key: row
        for batch in batches(make(world / "train", ALL, **(OPTIONS | {"flip": False})), 6)
        for key, row in zip(batch["key"], batch["text"], strict=True)
    }
    for key, row in zip(one["key"], one["text"], strict=True):
        assert torch.equal(row, whole[key])


def test_validation_has_squares(world: Path) -> None:
    datamodule = PanopticDataModule(
        world / "train", world / "val", encodings=ALL, **(CENTRE | OPTIONS)
    )
    datamodule.setup("fit")
    (batch,) = datamodule.val_dataloader()
    assert batch["moments"].shape == (4, 2, CHANNELS, 8, 8)
    manifest = read_manifest(world / "train" / "encodings" / "000.moments.json")
    assert manifest.shape == [2, CHANNELS]
    assert manifest.recipe["view"]["buckets"] == {"step": 4, "area": 256, "max_aspect": 2.0}
    assert np.prod(batch["moments"].shape[1:]) == 2 * CHANNELS * 64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"buckets": None}, r"made with datamodule\.buckets = \{'area': 256, .*\}, now None; exp"),
        ({"buckets": {"step": 2}}, r"made with datamodule\.buckets\.step = 4, now 2; expected"),
    ],
)
def test_other_sizes_are_refused(world: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(world / "train", {"moments": True}, **(OPTIONS | options))
    # Captions have no size.
    (batch, *_) = batches(make(world / "train", {"text": True}, **(OPTIONS | options)), 1)
    assert batch["text"].shape[0] == 4
