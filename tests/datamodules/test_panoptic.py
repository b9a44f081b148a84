from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from recorder import Recorder
from spatext.datamodules.panoptic import PanopticDataModule
from spatext.datamodules.segmenters import GraphSegmenter
from tars import COLOURS, png, scene, scene_ids, write_scenes, write_shard

SIZES = {"image_size": 32, "crop_size": 16}


def make(shards: Path, **kwargs: Any) -> PanopticDataModule:
    kwargs = {"segmenter": "stored", "batch_size": 4, **SIZES, **kwargs}
    datamodule = PanopticDataModule(shards, **kwargs)
    datamodule.setup("fit")
    return datamodule


def collect(batches: Any) -> dict[str, Any]:
    """All rows of several batches under one another."""
    rows: dict[str, Any] = {}
    for batch in batches:
        for name, value in batch.items():
            if isinstance(value, torch.Tensor):
                rows[name] = torch.cat([rows[name], value]) if name in rows else value
            else:
                rows[name] = rows.get(name, []) + value
    return rows


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(other[name], value, rtol=0, atol=0)
        else:
            assert other[name] == value


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("shards"), 13)


@pytest.fixture(scope="module")
def epoch(shards: Path) -> dict[str, Any]:
    return collect(make(shards).train_dataloader())


def test_batch_is_as_documented(epoch: dict[str, Any]) -> None:
    shapes = {
        name: (value.dtype, tuple(value.shape))
        for name, value in epoch.items()
        if isinstance(value, torch.Tensor)
    }
    assert shapes == {
        "image": (torch.float32, (12, 3, 32, 32)),
        "index": (torch.int64, (12,)),
        "ids": (torch.uint8, (12, 32, 32)),
        "valid": (torch.bool, (12, 3)),
        "crops": (torch.uint8, (12, 3, 3, 16, 16)),
    }
    assert set(epoch) - set(shapes) == {"caption", "key", "texts"}
    assert epoch["image"].min() >= -1
    assert epoch["image"].max() <= 1
    for key, caption in zip(epoch["key"], epoch["caption"], strict=True):
        shard, number = key.split("/")
        assert caption == f"caption {int(number)}"
        assert shard == f"{int(number) // 5:05d}"


def segment_of(row: dict[str, Any], slot: int) -> int:
    """The stored id of a slot, from its text."""
    return int(row["texts"][slot].removeprefix("text "))


def test_ids_and_crops_stay_aligned_with_the_image(epoch: dict[str, Any]) -> None:
    """The colour IS the segment id, through random crop and flip."""
    colours = torch.from_numpy(COLOURS)
    num_checked = 0
    for n in range(12):
        row = {name: value[n] for name, value in epoch.items()}
        pixels = ((row["image"] + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0)
        for slot in range(3):
            mask = row["ids"] == slot + 1
            assert mask.any() == row["valid"][slot]
            if not row["valid"][slot]:
                continue
            colour = colours[segment_of(row, slot)]
            assert (pixels[mask] == colour).all()
            assert not (pixels[~mask] == colour).all(dim=-1).any()  # the whole segment
            crop = row["crops"][slot].permute(1, 2, 0)
            # a rectangle: black or its own colour, but for the resized edge between them
            own = (crop.float() - colour).abs().amax(dim=-1) <= 26
            black = crop.amax(dim=-1) <= 26
            assert own[7:9, 7:9].all()
            assert (own | black).float().mean() >= 0.7
            num_checked += 1
    assert num_checked > 15


def test_flip_and_crop_do_happen_and_can_be_switched_off(shards: Path) -> None:
    centred = make(shards, random_crop=False, flip=False, shuffle=False, batch_size=13)
    (batch,) = centred.train_dataloader()
    (moved,) = make(shards, shuffle=False, batch_size=13).train_dataloader()
    kinds = Counter[str]()
    for n in range(13):
        expected = COLOURS[scene_ids(n)][:, 8:40]
        pixels = ((batch["image"][n] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(pixels, expected)
        actual = ((moved["image"][n] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
        full = COLOURS[scene_ids(n)]
        for offset in range(17):
            window = full[:, offset : offset + 32]
            kinds["plain"] += bool((actual == window).all())
            kinds["flipped"] += bool((actual == window[:, ::-1]).all())
    assert kinds["plain"] >= 3
    assert kinds["flipped"] >= 3


def test_slots_beyond_the_chosen_are_zeros(epoch: dict[str, Any]) -> None:
    invalid = ~epoch["valid"]
    assert invalid.any()
    assert epoch["valid"].any()
    assert (epoch["crops"][invalid] == 0).all()
    assert (epoch["crops"][~invalid].flatten(1).amax(dim=1) > 0).all()
    assert [[bool(text) for text in texts] for texts in epoch["texts"]] == epoch["valid"].tolist()
    counts = epoch["valid"].sum(dim=1)
    assert (epoch["ids"].flatten(1).amax(dim=1) == counts).all()
    assert set(counts.tolist()) == {1, 2, 3}


def test_k_never_exceeds_the_segments_present(tmp_path: Path) -> None:
    ids = np.zeros((32, 32), dtype=np.uint8)
    ids[:16, :16], ids[20:, 20:] = 1, 2
    ids[0, 31] = 3  # below 5 %
    sample = {**scene(0), "png": png(COLOURS[ids]), "panoptic.png": png(ids)}
    write_shard(tmp_path / "0.tar", {str(i): sample for i in range(8)})
    batch = collect(make(tmp_path, k_min=3, k_max=5).train_dataloader())
    np.testing.assert_array_equal(batch["valid"], [[True] * 2 + [False] * 3] * 8)
    assert {text for texts in batch["texts"] for text in texts} == {"text 1", "text 2", ""}


def test_share_counts_after_the_crop(tmp_path: Path) -> None:
    """A strip of 6 % of the image, outside the centre crop but for 2 %."""
    ids = np.zeros((32, 64), dtype=np.uint8)
    ids[:, 13:17] = 1
    ids[:, 20:40] = 2
    sample = {**scene(0), "png": png(COLOURS[ids]), "panoptic.png": png(ids)}
    write_shard(tmp_path / "0.tar", {str(i): sample for i in range(4)})
    kwargs = {"random_crop": False, "k_min": 2, "k_max": 2, "flip": False}
    (batch,) = make(tmp_path, **kwargs).train_dataloader()
    assert batch["texts"] == [["text 2", ""]] * 4
    (batch,) = make(tmp_path, min_area=0.02, **kwargs).train_dataloader()
    assert [sorted(texts) for texts in batch["texts"]] == [["text 1", "text 2"]] * 4


@pytest.mark.parametrize("segmenter", ["stored", None])
def test_image_without_segments_is_kept(tmp_path: Path, segmenter: str | None) -> None:
    sample = {**scene(0), "panoptic.png": png(np.zeros((32, 48), dtype=np.uint8))}
    write_shard(tmp_path / "0.tar", {str(i): sample for i in range(4)})
    (batch,) = make(tmp_path, segmenter=segmenter).train_dataloader()
    assert not batch["valid"].any()
    assert not batch["ids"].any()
    assert not batch["crops"].any()
    assert batch["texts"] == [["", "", ""]] * 4


def test_things_and_stuff_switch(shards: Path) -> None:
    for switch, kept in (("stuff", {"text 1", "text 3"}), ("things", {"text 2", "text 4"})):
        batch = collect(make(shards, **{switch: False}, k_max=4).train_dataloader())
        assert {text for texts in batch["texts"] for text in texts if text} == kept


def test_crops_come_from_the_full_resolution(tmp_path: Path) -> None:
    """A pattern finer than a pixel of the training image is sharp in the crop."""
    ids = np.zeros((128, 128), dtype=np.uint8)
    ids[48:80, 48:80] = 1
    pixels = np.zeros((128, 128, 3), dtype=np.uint8)
    pixels[48:80:2, 48:80] = 240
    sample = {**scene(0), "png": png(pixels), "panoptic.png": png(ids)}
    write_shard(tmp_path / "0.tar", {str(i): sample for i in range(4)})
    (batch,) = make(tmp_path, crop_size=32).train_dataloader()
    expected = torch.from_numpy(pixels[48:80, 48:80]).permute(2, 0, 1)
    for n in range(4):
        torch.testing.assert_close(batch["crops"][n, 0], expected, rtol=0, atol=0)


def test_graph_segmenter_finds_the_scene(shards: Path) -> None:
    segmenter = GraphSegmenter(sigma=0.1)
    batch = collect(make(shards, segmenter=segmenter, min_area=0.06).train_dataloader())
    assert (batch["valid"].sum(dim=1) >= 1).all()
    pixels = batch["image"].permute(0, 2, 3, 1)
    pure = []
    for n in range(12):
        for k in range(1, int(batch["ids"][n].max()) + 1):
            inside = pixels[n][batch["ids"][n] == k]
            pure.append(bool((inside == inside[0]).all(dim=-1).float().mean() > 0.8))
    assert np.mean(pure) > 0.8


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


@pytest.fixture
def one_bad(tmp_path: Path) -> Path:
    samples = {f"{i:06d}": scene(i) for i in range(13)}
    samples["000004"]["png"] = samples["000004"]["png"][:-40]
    write_shard(tmp_path / "00000.tar", samples)
    return tmp_path


@pytest.mark.parametrize("num_workers", [0, 2])
def test_bad_sample_is_replaced_and_no_other_moves(
    one_bad: Path, tmp_path_factory: pytest.TempPathFactory, num_workers: int
) -> None:
    clean = tmp_path_factory.mktemp("clean")
    write_shard(clean / "00000.tar", {f"{i:06d}": scene(i) for i in range(13)})
    loader = make(one_bad, num_workers=num_workers, shuffle=False).train_dataloader()
    batch = collect(loader)
    expected = collect(make(clean, shuffle=False).train_dataloader())
    assert_same(batch, collect(make(one_bad, shuffle=False).train_dataloader()))
    assert loader.bad == {"00000: image truncated or invalid": 1}
    assert loader.num_seen == 12
    assert batch["key"][4] != expected["key"][4] == "00000/000004"
    assert batch["index"].tolist() == expected["index"].tolist()
    others = [n for n in range(12) if n != 4]
    for name, value in expected.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(batch[name][others], value[others], rtol=0, atol=0)
        else:
            assert [batch[name][n] for n in others] == [value[n] for n in others]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_above_the_ceiling_the_loader_stops_with_the_counts(
    one_bad: Path, num_workers: int
) -> None:
    kwargs = {"shuffle": False, "num_workers": num_workers}
    message = r"1 bad samples among 8, .*max_bad_share = 0.0: {'00000: image truncated or inv"
    with pytest.raises(RuntimeError, match=message):
        list(make(one_bad, max_bad_share=0.0, **kwargs).train_dataloader())
    assert len(list(make(one_bad, max_bad_share=0.001, **kwargs).train_dataloader())) == 3


def test_replacements_may_be_bad_themselves(tmp_path: Path) -> None:
    samples = {f"{i:06d}": scene(i) for i in range(12)}
    for key in list(samples)[2:]:
        samples[key]["png"] = b"<html>"
    write_shard(tmp_path / "0.tar", samples)
    loader = make(tmp_path, max_bad_share=1.0).train_dataloader()
    assert set(collect(loader)["key"]) == {"0/000000", "0/000001"}
    assert loader.bad["0: not JPEG|PNG|WEBP"] > 10  # more than there are: draws failed as well


def test_nothing_but_bad_samples_ends(tmp_path: Path) -> None:
    sample = {**scene(0), "png": b"<html>"}
    write_shard(tmp_path / "0.tar", {str(i): sample for i in range(4)})
    with pytest.raises(RuntimeError, match="100 bad samples in a row"):
        list(make(tmp_path).train_dataloader())


def test_stored_mode_without_id_maps_says_what_to_do(tmp_path: Path) -> None:
    sample = scene(0)
    del sample["panoptic.png"]
    write_shard(tmp_path / "00000.tar", {"a": scene(1), "b": sample, "c": scene(2)})
    with pytest.raises(ValueError, match=r"00000\.tar: sample b has no b\.panoptic\.png") as error:
        make(tmp_path)
    message = str(error.value)
    assert "1 of 3 samples" in message
    assert "datamodule=graph, mask2former, oneformer or eomt" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"k_min": 4}, "k_min = 4, datamodule.k_max = 3"),
        ({"k_max": 256}, "k_max = 256"),
        ({"k_min": 0, "k_max": 0}, "k_max = 0"),
        ({"min_area": 5.0}, "min_area = 5.0"),
        ({"things": False, "stuff": False}, "both off"),
        ({"segmenter": "graph"}, "segmenter is 'graph'"),
        (
            {"segmenter": GraphSegmenter(), "stuff": False},
            'need datamodule.segmenter = "stored" or a pan',
        ),
    ],
)
def test_wrong_options_are_refused_at_once(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PanopticDataModule("none", **{"segmenter": "stored", **SIZES, **kwargs})
