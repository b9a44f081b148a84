from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from panoptic_batches import collect, make
from spatext.datamodules.segmenters import GraphSegmenter
from tars import COLOURS, png, scene, scene_ids, write_shard


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
