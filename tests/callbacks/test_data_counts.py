"""Counts of runs over shards of which it is known what is wrong with them."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import webdataset
from PIL import Image
from pytorch_lightning.loggers import CSVLogger

from runs import read_metrics
from spatext.callbacks.data_counts import DataCounts
from spatext.datamodules.panoptic import PanopticDataModule
from spatext.tools.shapes import png
from tiny_runs import TinyData, TinyModule, make_trainer


class Student(TinyModule):
    def loss(self, batch: dict[str, Any], x: torch.Tensor) -> torch.Tensor:
        return super().loss(batch, x.flatten(1)[:, :4])


def write_shard(path: Path) -> Path:
    """Eight images: three have no segment, one is cut, and one is no image."""
    with webdataset.TarWriter(str(path), encoder=False, mtime=0) as tar:
        for number in range(8):
            ids = np.zeros((16, 16), dtype=np.uint8)
            ids[:, :8] = number >= 3
            noise = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
            image = png(np.asarray(Image.fromarray(noise)))
            if number == 6:
                image = image[: len(image) // 2]
            tar.write(
                {
                    "__key__": f"{number}",
                    "png": b"<html>" if number == 7 else image,
                    "txt": b"text",
                    "panoptic.png": png(ids),
                }
            )
    return path


def run(folder: Path, datamodule: pl.LightningDataModule) -> dict[str, dict[int, float]]:
    logger = CSVLogger(folder, name="", version="logs", flush_logs_every_n_steps=1)
    trainer = make_trainer(
        folder, max_steps=4, log_every_n_steps=2, logger=logger, callbacks=[DataCounts()],
        max_epochs=-1,
    )  # fmt: skip
    trainer.fit(Student(), datamodule)
    return read_metrics(folder)


def test_bad_samples_and_images_without_segments(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_shard(tmp_path / "00000.tar")
    datamodule = PanopticDataModule(
        tmp_path, segmenter="stored", image_size=16, crop_size=8, batch_size=4, shuffle=False,
        max_bad_share=1.0,
    )  # fmt: skip
    with caplog.at_level(logging.WARNING, logger="spatext.callbacks"):
        metrics = run(tmp_path, datamodule)
    loader = datamodule.train_loader
    assert loader is not None
    assert loader.num_seen == 16
    bad = metrics["data/bad_samples"]
    assert list(bad) == [1, 3]  # of two steps each, an epoch
    assert 2 <= bad[1] < bad[3] == loader.bad.total()
    counts = datamodule.segment_counts
    assert counts.num_images == 16
    assert 6 <= counts.num_without < 12  # those that stand in may have none either
    assert metrics["data/without_segments"][3] == counts.num_without / 16
    (record,) = caplog.records
    message = record.getMessage()
    assert message.startswith(f"{loader.bad.total()} bad samples among 16, in 1 shards: {{'")
    assert "image truncated or invalid" in message
    assert "not JPEG|PNG|WEBP" in message


def test_other_data_has_nothing_to_count(tmp_path: Path) -> None:
    assert not {name for name in run(tmp_path, TinyData()) if name.startswith("data/")}
