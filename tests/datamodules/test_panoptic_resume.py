"""Order and resumption of the datamodule, with workers and through the Trainer."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl

from panoptic_batches import SIZES, assert_same, collect, make
from recorder import Recorder
from spatext.datamodules.panoptic import PanopticDataModule
from tars import COLOURS, scene_ids


def test_worker_count_changes_nothing(shards: Path, epoch: dict[str, Any]) -> None:
    loader = make(shards, num_workers=2).train_dataloader()
    assert_same(collect(loader), epoch)
    second = collect(loader)  # persistent workers, the next epoch
    assert second["index"].tolist() == list(range(12, 24))
    assert second["key"] != epoch["key"]


def test_pixels_of_a_place_in_the_stream_depend_on_seed_and_place(
    shards: Path, epoch: dict[str, Any]
) -> None:
    assert collect(make(shards, seed=1).train_dataloader())["key"] != epoch["key"]
    dataset = make(shards).train_dataloader().dataset
    one, same, other = dataset[7, 3], dataset[7, 3], dataset[8, 3]
    assert one["key"] == other["key"]
    np.testing.assert_array_equal(one["image"], same["image"])
    np.testing.assert_array_equal(one["crops"], same["crops"])
    assert (one["image"] != other["image"]).any()


def test_resume_equals_uninterrupted(shards: Path) -> None:
    loader = make(shards).train_dataloader()
    straight = [batch for _ in range(3) for batch in loader]
    for num_workers in (0, 2):
        first = make(shards, num_workers=num_workers).train_dataloader()
        batches = iter(first)
        for _ in range(2):
            next(batches)
        resumed = make(shards, num_workers=num_workers).train_dataloader()
        resumed.load_state_dict(first.state_dict())
        for actual, expected in zip(resumed, straight[2 : 2 + len(loader)], strict=True):
            assert_same(actual, expected)


def fit(shards: Path, folder: Path, **kwargs: Any) -> Recorder:
    ckpt_path = kwargs.pop("ckpt_path", None)
    datamodule = PanopticDataModule(
        shards, kwargs.pop("val_shards", None), segmenter="stored", batch_size=4, **SIZES
    )
    module = Recorder()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(accelerator="cpu", default_root_dir=folder, **quiet, **kwargs)
    trainer.fit(module, datamodule, ckpt_path=ckpt_path)
    return module


@pytest.mark.parametrize("step", [2, 3, 4, 6])
def test_lightning_resumes_with_exactly_the_next_batch(
    shards: Path, tmp_path: Path, step: int
) -> None:
    """3 batches an epoch: within one, at its end, just after it, at the end of the second."""
    saver = pl.callbacks.ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1)
    straight = fit(shards, tmp_path, max_epochs=3, callbacks=[saver])
    assert [index for index, _ in straight.seen] == [
        list(range(4 * s, 4 * s + 4)) for s in range(9)
    ]
    (path,) = tmp_path.glob(f"*step={step}.ckpt")
    resumed = fit(shards, tmp_path, max_epochs=3, ckpt_path=path, enable_checkpointing=False)
    assert resumed.seen == straight.seen[step:]


def test_lightning_resumes_from_the_end_of_an_epoch(shards: Path, tmp_path: Path) -> None:
    saver = pl.callbacks.ModelCheckpoint(
        tmp_path, every_n_epochs=1, save_top_k=-1, save_on_train_epoch_end=True
    )
    straight = fit(shards, tmp_path, max_epochs=3, callbacks=[saver])
    (path,) = tmp_path.glob("*step=6.ckpt")
    resumed = fit(shards, tmp_path, max_epochs=3, ckpt_path=path, enable_checkpointing=False)
    assert resumed.seen == straight.seen[6:]


def test_shortened_lightning_epochs_go_on_through_the_data(shards: Path, tmp_path: Path) -> None:
    module = fit(shards, tmp_path, max_epochs=4, limit_train_batches=2, enable_checkpointing=False)
    assert [index[0] for index, _ in module.seen] == [0, 4, 8, 12, 16, 20, 24, 28]


def test_validation_sees_each_sample_once_centred(shards: Path, tmp_path: Path) -> None:
    module = fit(
        shards,
        tmp_path,
        val_shards=shards,
        max_epochs=1,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
    )
    assert module.validated == [f"{n // 5:05d}/{n:06d}" for n in range(13)]
    datamodule = PanopticDataModule(shards, shards, segmenter="stored", **SIZES)
    datamodule.setup("validate")
    batch = collect(datamodule.val_dataloader())
    expected = np.stack([COLOURS[scene_ids(n)][:, 8:40] for n in range(13)])
    pixels = ((batch["image"] + 1) * 127.5).round().byte().permute(0, 2, 3, 1)
    np.testing.assert_array_equal(pixels, expected)
    assert batch["index"].tolist() == list(range(13))
