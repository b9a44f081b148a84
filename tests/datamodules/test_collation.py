"""What the trainer's device does to a batch: the same batches as without a trainer."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image

from spatext.datamodules.panoptic import PanopticDataModule
from spatext.datamodules.segmenters import GraphSegmenter
from tars import png, scene_ids, write_shard

SIZES: dict[str, Any] = {"image_size": 24, "crop_size": 16, "batch_size": 4}
# (h, w): windows up to 64 pixels go to the device, larger ones are cut by the workers
SHAPES = [(60, 80), (64, 64), (33, 57), (100, 70), (130, 130), (41, 64), (20, 50), (64, 90)]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    samples = {}
    for number, (h, w) in enumerate(SHAPES):
        rng = np.random.default_rng(number)
        blocks = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        members = {"png": png(blocks.resize((w, h))), "txt": b"a"}
        if number != 2:  # this one has no segment
            members["panoptic.png"] = png(scene_ids(number, (h, w)))
        else:
            members["panoptic.png"] = png(np.zeros((h, w), dtype=np.uint8))
        samples[f"{number:03d}"] = members
    write_shard(folder / "0.tar", samples)
    return folder


class Keeper(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[dict[str, Any]] = []

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        self.seen.append(batch)
        return self.weight.sum()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self.seen.append(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def make(shards: Path, **options: Any) -> PanopticDataModule:
    return PanopticDataModule(shards, shards, **(SIZES | {"segmenter": "stored"} | options))


def trained(datamodule: PanopticDataModule) -> list[dict[str, Any]]:
    """An epoch and a validation."""
    module = Keeper()
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, num_sanity_val_steps=0,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(module, datamodule)
    return module.seen


def loaded(datamodule: PanopticDataModule) -> list[dict[str, Any]]:
    datamodule.setup("fit")
    val = datamodule.val_dataloader()
    assert not isinstance(val, list)
    return [*datamodule.train_dataloader(), *val]


def assert_same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert len(found) == len(expected) == 4
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            if isinstance(value, torch.Tensor):
                assert value.dtype == other[name].dtype, name
                torch.testing.assert_close(value, other[name], rtol=0, atol=0, msg=name)
            else:
                assert value == other[name]


@pytest.mark.parametrize("crops", ["workers", "device"])
def test_a_trainer_changes_nothing(shards: Path, crops: str) -> None:
    """Neither that images travel as bytes nor that crops are cut on the device."""
    expected = loaded(make(shards))
    assert expected[0]["image"].dtype == torch.float32
    assert sum(int(batch["valid"].sum()) for batch in expected) > 15
    assert any(not row.any() for batch in expected for row in batch["valid"])
    assert_same(trained(make(shards, crops=crops)), expected)


def test_crops_of_a_segmenter_are_cut_on_the_device(shards: Path) -> None:
    """With workers, and images of which some have larger windows."""
    options = {"segmenter": GraphSegmenter()}
    found = trained(make(shards, crops="device", num_workers=2, **options))
    assert_same(found, loaded(make(shards, **options)))


def test_what_workers_send(shards: Path) -> None:
    datamodule = make(shards, crops="device", shuffle=False, random_crop=False, k_min=3)
    datamodule.trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    datamodule.setup("fit")
    first, second = datamodule.train_dataloader()
    assert first["image"].dtype == torch.uint8
    uncut = first["uncut"]
    assert uncut["pixels"].shape == (3, 64, 64, 4)  # the fourth window is of 70 pixels
    assert set(uncut["row"].tolist()) == {0, 1}  # the third has no segment
    assert uncut["labels"][0].max() == first["valid"][0].sum()
    assert not first["crops"][:3].any()
    assert first["crops"][3][first["valid"][3]].flatten(1).any(dim=1).all()
    assert second["uncut"]["pixels"].shape == (3, 64, 64, 4)


def test_another_place_is_refused(shards: Path) -> None:
    with pytest.raises(ValueError, match=r"datamodule\.crops is 'gpu', expected workers or device"):
        make(shards, crops="gpu")
