"""Buckets, a skip list, segments found on the device and workers, all at once, and resumed."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from spatext.datamodules.index_opening import open_index
from spatext.datamodules.locations import expand_shards
from spatext.datamodules.panoptic import PanopticDataModule
from spatext.datamodules.skip_list import Skipped, write_skip_list
from tars import scene, write_shard

SHAPES = [(32, 32), (24, 40), (24, 40), (40, 24)]
NUM, PER_SHARD = 40, 13
GONE = [0, 5, 18, 39]


class Halves:
    """A left and a right segment in each image."""

    input_size = 16

    def segment(
        self, pixels: torch.Tensor, sizes: list[tuple[int, int]]
    ) -> tuple[torch.Tensor, list[dict[int, dict[str, Any]]]]:
        ids = torch.zeros(len(pixels), 16, 16, dtype=torch.int32)
        for row, (h, w) in zip(ids, sizes, strict=True):
            row[:h, : w // 2], row[:h, w // 2 : w] = 1, 2
        return ids, [{1: {"text": "left"}, 2: {"text": "right"}}] * len(pixels)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Shards, and a list of four of their samples."""
    folder = tmp_path_factory.mktemp("data")
    for first in range(0, NUM, PER_SHARD):
        numbers = range(first, min(first + PER_SHARD, NUM))
        samples = {f"{i:03d}": scene(i, SHAPES[i % len(SHAPES)]) for i in numbers}
        write_shard(folder / f"{first:03d}.tar", samples)
    skip = folder / "skip.jsonl"
    index = open_index(expand_shards(folder))
    write_skip_list(skip, index, [Skipped(i, f"{i:03d}", "") for i in GONE])
    return folder, skip


def make(data: tuple[Path, Path], num_workers: int, state: dict[str, Any]) -> PanopticDataModule:
    folder, skip = data
    datamodule = PanopticDataModule(
        folder, folder, image_size=32, buckets={"step": 8}, crop_size=8, segmenter=Halves(),
        batch_size=2, num_workers=num_workers, window_shards=2, skip=skip,
    )  # fmt: skip
    datamodule.setup("fit")
    datamodule.load_state_dict(state)
    return datamodule


def facts(datamodule: PanopticDataModule, batch: dict[str, Any]) -> list[Any]:
    batch = datamodule.on_after_batch_transfer(batch, 0)
    assert batch["ids"].shape == (2, *batch["image"].shape[-2:])
    sums = [batch[name].double().sum().item() for name in ("image", "ids", "crops")]
    return [batch["key"], batch["index"].tolist(), batch["texts"], list(batch["ids"].shape), *sums]


def test_a_resumed_run_goes_on_with_the_same_batches(data: tuple[Path, Path]) -> None:
    whole = make(data, 0, {})
    loader = whole.train_dataloader()
    straight = [facts(whole, batch) for _ in range(2) for batch in loader]
    assert len({tuple(shape) for _, _, _, shape, *_ in straight}) == 3
    seen = {key.split("/")[1] for keys, *_ in straight for key in keys}
    assert seen == {f"{i:03d}" for i in range(NUM) if i not in GONE}
    assert {text for _, _, texts, *_ in straight for row in texts for text in row} == {
        "left", "right", "",
    }  # fmt: skip
    state: dict[str, Any] = {}
    found = []
    for num_workers, num_batches in ((2, 5), (0, len(loader) - 3), (2, 9)):
        datamodule = make(data, num_workers, json.loads(json.dumps(state)))
        batches = datamodule.train_dataloader()
        for _, batch in zip(range(num_batches), batches, strict=False):
            found.append(facts(datamodule, batch))
        state = datamodule.state_dict()
        assert state["global_samples"] == 2 * len(found)
    assert found == straight[: len(found)]
    assert len(found) > len(loader)


def test_validation_has_squares_of_all_samples(data: tuple[Path, Path]) -> None:
    datamodule = make(data, 0, {})
    loader = datamodule.val_dataloader()
    assert not isinstance(loader, list)
    keys = []
    for batch in loader:
        batch = datamodule.on_after_batch_transfer(batch, 0)
        assert batch["ids"].shape[-2:] == batch["image"].shape[-2:] == (32, 32)
        keys += batch["key"]
    assert len(set(keys)) == len(keys) == NUM
