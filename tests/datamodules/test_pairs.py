from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch.testing import assert_close

from pair_folders import FINGERPRINT, WIDTH, make_rows, write_folder, write_rows
from recorder import Recorder
from spatext.datamodules.pairs import Pairs, PairsDataModule

SIZES = {"b": 31, "a": 17, "c": 22}
NUM = sum(SIZES.values())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    write_folder(folder, SIZES)
    return folder


def make(folder: Path, **options: Any) -> PairsDataModule:
    datamodule = PairsDataModule(folder, **{"batch_size": 8, **options})
    datamodule.setup("fit")
    return datamodule


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        if isinstance(value, torch.Tensor):
            assert_close(other[name], value, rtol=0, atol=0)
        else:
            assert other[name] == value


def test_batch_is_as_documented(folder: Path) -> None:
    pairs = Pairs(folder)
    rows = {key: row for row, key in enumerate(pairs.keys(np.arange(NUM)))}
    loader = make(folder).train_dataloader()
    assert len(loader) == len(loader.batch_sampler)
    for number, batch in enumerate(loader):
        assert set(batch) == {"image_embeds", "text", "is_region", "key", "index"}
        assert batch["image_embeds"].dtype == torch.float32
        assert batch["image_embeds"].shape == (8, WIDTH)
        assert batch["is_region"].tolist() == [False] * 4 + [True] * 4
        assert batch["index"].tolist() == list(range(8 * number, 8 * number + 8))
        found = np.array([rows[key] for key in batch["key"]])
        assert_close(batch["image_embeds"], torch.from_numpy(pairs.image_embeds(found)))
        assert batch["text"] == pairs.texts(found)
        np.testing.assert_array_equal(batch["is_region"], pairs.is_region(found))
        assert [key.endswith("#7") for key in batch["key"]] == batch["is_region"].tolist()


def test_worker_count_changes_nothing(folder: Path) -> None:
    expected = [*(loader := make(folder).train_dataloader()), *loader]
    loader = make(folder, num_workers=2).train_dataloader()
    found = [*loader, *loader]  # the second epoch by the same workers
    assert len(found) == len(expected) == 2 * len(loader)
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("share", [0.25, None])
def test_resume_equals_uninterrupted(folder: Path, num_workers: int, share: float | None) -> None:
    options = {"region_share": share, "seed": 4}
    loader = make(folder, **options).train_dataloader()
    straight = [batch for _ in range(2) for batch in loader]
    first = make(folder, num_workers=num_workers, **options)
    batches = iter(first.train_dataloader())
    for _ in range(3):
        next(batches)
    resumed = make(folder, num_workers=num_workers, **options)
    resumed.load_state_dict(first.state_dict())
    found = list(resumed.train_dataloader())
    for one, other in zip(found, straight[3 : 3 + len(loader)], strict=True):
        assert_same(one, other)


def fit(folder: Path, root: Path, val_pairs: Path | None = None, **options: Any) -> Recorder:
    ckpt_path = options.pop("ckpt_path", None)
    datamodule = PairsDataModule(folder, val_pairs, batch_size=16)
    module = Recorder()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(
        accelerator="cpu", default_root_dir=root, num_sanity_val_steps=0, **quiet, **options
    )
    trainer.fit(module, datamodule, ckpt_path=ckpt_path)
    return module


@pytest.mark.parametrize("step", [2, 4, 5, 8])
def test_lightning_resumes_with_exactly_the_next_batch(
    folder: Path, tmp_path: Path, step: int
) -> None:
    """4 batches an epoch: within one, at its end, just after it, at the end of the second."""
    saver = pl.callbacks.ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1)
    straight = fit(folder, tmp_path, max_epochs=3, callbacks=[saver])
    starts = [index[0] for index, _ in straight.seen]
    assert starts == list(range(0, 16 * len(starts), 16))
    assert len(starts) == 12
    (path,) = tmp_path.glob(f"*step={step}.ckpt")
    resumed = fit(folder, tmp_path, max_epochs=3, ckpt_path=path, enable_checkpointing=False)
    assert resumed.seen == straight.seen[step:]


def test_lightning_refuses_other_pairs(folder: Path, tmp_path: Path) -> None:
    """As many of either kind, but others."""
    saver = pl.callbacks.ModelCheckpoint(tmp_path / "saved", every_n_train_steps=1, save_top_k=-1)
    fit(folder, tmp_path, max_steps=2, callbacks=[saver])
    other = tmp_path / "other"
    write_folder(other, SIZES)
    rows = make_rows("b", SIZES["b"])
    write_rows(other, "b", type(rows)(-rows.image_embeds, rows.is_region, rows.texts, rows.keys))
    (path,) = (tmp_path / "saved").glob("*step=2.ckpt")
    with pytest.raises(ValueError, match="cannot resume the data: digest was"):
        fit(other, tmp_path, max_steps=3, ckpt_path=path)


def test_validation_sees_each_pair_once(folder: Path, tmp_path: Path) -> None:
    module = fit(folder, tmp_path, folder, max_steps=1, enable_checkpointing=False)
    module.validated.clear()
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, num_sanity_val_steps=0
    )
    datamodule = PairsDataModule(folder, folder, batch_size=16)
    trainer.validate(module, datamodule, verbose=False)
    expected = [f"{shard}/{row:03d}" for shard, num in sorted(SIZES.items()) for row in range(num)]
    assert [key.removesuffix("#7") for key in module.validated] == expected


class OfTwo(pl.Trainer):
    """What a datamodule asks of the trainer of one of two processes."""

    world_size = 2
    global_rank = 0


def test_ranks_have_their_parts_of_training_and_validation(folder: Path) -> None:
    whole = make(folder, val_pairs=folder, batch_size=8, region_share=0.25)
    ranks = []
    for rank in range(2):
        half = PairsDataModule(folder, folder, batch_size=4, region_share=0.25)
        half.trainer = OfTwo(accelerator="cpu", logger=False)
        half.trainer.global_rank = rank
        half.setup("fit")
        ranks.append(half)
        mine = ([0, 1, 2, 6], [3, 4, 5, 7])[rank]  # of 6 images and 2 regions
        for part, batch in zip(half.train_dataloader(), whole.train_dataloader(), strict=True):
            assert part["index"].tolist() == batch["index"][mine].tolist()
            assert part["key"] == [batch["key"][row] for row in mine]
        assert half.statistics()[0].tolist() == whole.statistics()[0].tolist()
    keys = [key for half in ranks for batch in half.val_dataloader() for key in batch["key"]]
    assert sorted(keys) == sorted(Pairs(folder).keys(np.arange(NUM)))
    one, other = (len(half.val_dataloader()) for half in ranks)
    assert one == other


@pytest.mark.parametrize("share", [0.5, 0.3, None])
def test_statistics_are_those_of_what_is_drawn(folder: Path, share: float | None) -> None:
    """Over the mixture of the batches: 0.3 of 8 is 2 regions."""
    pairs = Pairs(folder)
    drawn = None if share is None else round(share * 8) / 8
    mean, std = make(folder, region_share=share).statistics()
    expected = pairs.statistics(drawn)
    np.testing.assert_array_equal(mean, expected[0])
    np.testing.assert_array_equal(std, expected[1])
    rows, region = np.arange(NUM), pairs.is_region(np.arange(NUM))
    x = pairs.image_embeds(rows).astype(np.float64)
    if share == 0.5:
        np.testing.assert_allclose(mean, (x[region].mean(0) + x[~region].mean(0)) / 2, rtol=1e-6)
    if share is None:
        np.testing.assert_allclose(std, x.std(axis=0), rtol=1e-6)


def test_fingerprint_is_that_of_the_pairs(folder: Path) -> None:
    assert make(folder).fingerprint == FINGERPRINT


def test_mistakes_are_told_at_setup(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        make(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="31 region pairs, fewer than the 36 of one global batch"):
        make(folder, batch_size=72)
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        make(folder, val_pairs=tmp_path / "nowhere")
    write_rows(tmp_path, "v", make_rows("v", 9), fingerprint={**FINGERPRINT, "scale": "unit"})
    with pytest.raises(ValueError, match=r"val_pairs are of .*'unit'.*, expected those of"):
        make(folder, val_pairs=tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"region_share": 1.5}, "region_share is 1.5"),
        ({"region_share": -0.5}, "region_share is -0.5"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_wrong_options_are_refused_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PairsDataModule("nowhere", **options)
